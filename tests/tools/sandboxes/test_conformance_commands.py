"""Every backend: commands get what they are given, and end at their deadline with their output."""

from __future__ import annotations

import time
from typing import Any

import pytest

from palestra.tools.sandboxes import Sandbox


def test_a_sequence_is_run_as_it_is_and_a_string_by_the_shell(sandbox: Sandbox) -> None:
    assert sandbox.sync.run(["echo", "$HOME", "a  b"]).stdout == "$HOME a  b\n"
    assert sandbox.sync.run("echo a | tr a b; echo ${HOME:+set}").stdout == "b\nset\n"


def test_output_and_errors_come_apart(sandbox: Sandbox) -> None:
    result = sandbox.sync.run("echo out; echo err >&2")
    assert (result.stdout, result.stderr, result.exit_code) == ("out\n", "err\n", 0)


@pytest.mark.parametrize("data", ["text ü\n", b"bytes \xff", "", b"x" * 3_000_000])
def test_the_standard_input_is_what_was_given(sandbox: Sandbox, data: str | bytes) -> None:
    expected = data.encode() if isinstance(data, str) else data
    sandbox.sync.run("cat > copy", stdin=data)
    assert sandbox.sync.read("copy") == expected


def test_an_input_that_nobody_reads_does_no_harm(sandbox: Sandbox) -> None:
    assert sandbox.sync.run("exec <&-; sleep 0.1; echo fine", stdin=b"x" * 1_000_000).stdout == (
        "fine\n"
    )


def test_the_environment_is_extended_for_one_command(sandbox: Sandbox) -> None:
    assert sandbox.sync.run("echo $A-$HOME", env={"A": "1"}).stdout.startswith("1-/")
    assert sandbox.sync.run("echo $A").stdout == "\n"


def test_programs_are_found_on_the_path_that_was_given(sandbox: Sandbox) -> None:
    sandbox.sync.write("bin/hello", "#!/bin/sh\necho hello\n")
    sandbox.sync.run("chmod +x bin/hello")
    home = sandbox.sync.run("echo $HOME").stdout.strip()
    assert sandbox.sync.run(["hello"], env={"PATH": f"{home}/bin"}).stdout == "hello\n"
    assert sandbox.sync.run(["bin/hello"]).stdout == "hello\n"
    assert sandbox.sync.run(["hello"]).exit_code == 127


def test_the_folder_is_the_work_folder_or_the_one_that_was_given(sandbox: Sandbox) -> None:
    home = sandbox.sync.run("pwd").stdout.strip()
    assert sandbox.sync.python("import os; os.getcwd()").value == repr(home)
    sandbox.sync.run("mkdir -p a/b")
    assert sandbox.sync.run("pwd", cwd="a/b").stdout == f"{home}/a/b\n"
    assert sandbox.sync.run("pwd", cwd="/usr").stdout == "/usr\n"
    assert sandbox.sync.run("pwd").stdout == f"{home}\n"


def test_the_exit_status_is_the_command_s(sandbox: Sandbox) -> None:
    for code in (0, 1, 3, 126, 255):
        assert sandbox.sync.run(f"exit {code}").exit_code == code


def test_a_signal_is_a_negative_status(sandbox: Sandbox) -> None:
    for name, number in (("KILL", 9), ("TERM", 15), ("SEGV", 11)):
        result = sandbox.sync.run(f"kill -{name} $$")
        assert result.exit_code == -number and result.ended == ""


def test_what_cannot_be_started_is_told(sandbox: Sandbox) -> None:
    for command in (["no-such-program"], ["/etc"], ["."], [""]):
        result = sandbox.sync.run(command)
        assert result.exit_code in (126, 127) and result.stderr, command
    assert sandbox.sync.run("echo on").stdout == "on\n"


def test_nonsense_is_answered_like_a_program_that_is_not_there(sandbox: Sandbox) -> None:
    nonsense: list[dict[str, Any]] = [
        {"command": []},
        {"command": ["echo", "a\0b"]},
        {"command": "echo \0"},
        {"command": "true", "cwd": "no/such/folder"},
        {"command": "true", "cwd": "a\0b"},
        {"command": "true", "env": {"A": "\0"}},
        {"command": "true", "env": {"A\0": "a"}},
        {"command": "true", "env": {"A=B": "a"}},
        {"command": ["\ud800"]},
        {"command": "true", "env": {"\ud800": "\ud800"}},
    ]
    for options in nonsense:
        result = sandbox.sync.run(**options)
        assert result.exit_code in (126, 127) and result.stderr, options
    assert sandbox.sync.run("echo on").stdout == "on\n"


def test_odd_arguments_arrive_as_they_are(sandbox: Sandbox) -> None:
    odd = ["a\nb", "", " ", "\u202eright", "\udcff", "-n", "'\"$`"]
    code = "import sys, os; sys.stdout.buffer.write(os.fsencode('|'.join(sys.argv[1:])))"
    result = sandbox.sync.run(["python3", "-c", code, *odd])
    assert result.stdout == "|".join(odd).replace("\udcff", "\ufffd")


def test_at_its_deadline_a_command_is_killed_and_what_it_wrote_is_kept(sandbox: Sandbox) -> None:
    began = time.monotonic()
    result = sandbox.sync.run("echo out; echo err >&2; sleep 60; echo never", timeout_s=0.5)
    assert time.monotonic() - began < 4
    assert result.timed_out and result.exit_code == -9
    assert (result.stdout, result.stderr) == ("out\n", "err\n")


def test_the_whole_group_ends_at_the_deadline(sandbox: Sandbox) -> None:
    command = "(sleep 1; echo late > late) & echo early > early; sleep 60"
    assert sandbox.sync.run(command, timeout_s=0.3).timed_out
    time.sleep(1.5)
    assert [entry.name for entry in sandbox.sync.list()] == ["early"]


def test_the_variables_survive_a_command_s_deadline(sandbox: Sandbox) -> None:
    sandbox.sync.python("x = 1")
    sandbox.sync.run("trap '' TERM INT HUP; while :; do :; done", timeout_s=0.3)
    assert sandbox.sync.python("x").value == "1"


def test_a_background_child_runs_on_after_the_call(sandbox: Sandbox) -> None:
    result = sandbox.sync.run("(sleep 0.5; echo done > done) > /dev/null 2>&1 & echo started")
    assert result.stdout == "started\n"
    assert result.left_running >= (sandbox.backend in ("namespace", "docker"))
    end = time.monotonic() + 10
    while time.monotonic() < end and not sandbox.sync.list():
        time.sleep(0.1)
    assert sandbox.sync.read("done") == b"done\n"


def test_a_pipe_held_open_by_a_child_does_not_hold_the_call(sandbox: Sandbox) -> None:
    began = time.monotonic()
    result = sandbox.sync.run("sleep 60 & echo started", timeout_s=30)
    assert time.monotonic() - began < 10
    assert (result.stdout, result.exit_code, result.ended) == ("started\n", 0, "")


def test_closing_its_output_does_not_end_a_command(sandbox: Sandbox) -> None:
    result = sandbox.sync.run("exec >&- 2>&-; sleep 0.3; exit 7")
    assert (result.exit_code, result.stdout) == (7, "")


def test_long_output_loses_its_middle_with_a_note(sandbox: Sandbox) -> None:
    most = sandbox.spec.limits.output_bytes
    result = sandbox.sync.run(
        f"echo begin; head -c {2 * most} /dev/zero | tr '\\0' x; echo; echo end; echo short >&2"
    )
    assert result.stdout.startswith("begin\nxxx") and result.stdout.endswith("xxx\nend\n")
    cut = 2 * most + len("begin\n\nend\n") - most
    assert f"\n[… {cut:,} bytes cut …]\n" in result.stdout
    assert result.stderr == "short\n" and result.exit_code == 0


def test_output_of_just_the_limit_is_whole(sandbox: Sandbox) -> None:
    most = sandbox.spec.limits.output_bytes
    assert sandbox.sync.run(f"head -c {most} /dev/zero | tr '\\0' x").stdout == "x" * most


def test_binary_output_is_only_named(sandbox: Sandbox) -> None:
    result = sandbox.sync.run("head -c 300000 /dev/zero; echo fine >&2")
    assert result.stdout == "[binary output, 300,000 bytes, not shown]"
    assert result.stderr == "fine\n"


def test_without_input_a_reader_sees_the_end(sandbox: Sandbox) -> None:
    assert sandbox.sync.run("cat; echo end", timeout_s=10).stdout == "end\n"


def test_pipelines_end_as_they_do_elsewhere(sandbox: Sandbox) -> None:
    """SIGPIPE is not ignored, as it is in Python itself."""
    result = sandbox.sync.run("yes | head -n 1", timeout_s=10)
    assert (result.stdout, result.stderr) == ("y\n", "")
