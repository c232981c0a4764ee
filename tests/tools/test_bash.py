"""The `bash` tool in real sandboxes: one shell, as far as a model can tell."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from palestra.tools import bash, python
from palestra.types import ToolResult

Play = Callable[..., list[ToolResult]]

quick = bash.with_options(timeout_s=0.5)


def run(play: Play, *commands: str) -> list[ToolResult]:
    return play(*((bash, {"command": command}) for command in commands))


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("echo out; echo err >&2", "out\nerr"),
        ("true", "[no output]"),
        ("echo no; exit 3", "no\n[exit code 3]"),
        ("no_such_program", "bash: line 1: no_such_program: command not found\n[exit code 127]"),
        ("kill -9 $$", "[killed by SIGKILL]"),
        ("cat", "[no output]"),
        ("echo $#", "0"),
        ("cat <<X\na\nX\n", "a"),
        ("set -x; true", "++ true"),
        ("printf 'a\\0b'", "[binary output, 3 bytes, not shown]"),
    ],
)
def test_a_command_shows_its_output_and_how_it_ended(play: Play, command: str, shown: str) -> None:
    (result,) = run(play, command)
    assert (result.error, result.content) == (None, shown)


def test_the_folder_variables_and_functions_live_on(play: Play) -> None:
    *_, result = run(
        play,
        "mkdir inner && cd inner; x=1; export Y=$'two\\nlines'; a=(1 '2 3'); f() { echo f $1; }",
        'basename "$PWD"; echo $x; python3 -c "import os; print(repr(os.environ[\'Y\']))"; '
        'echo "${a[1]}"; f 4',
    )
    assert result.content == "inner\n1\n'two\\nlines'\n2 3\nf 4"


def test_what_exits_early_keeps_its_changes_and_what_is_killed_does_not(play: Play) -> None:
    _, late, *_, result = play(
        (bash, {"command": "x=1; exit 3"}),
        (quick, {"command": "x=2; sleep 30"}),
        (bash, {"command": "echo $x"}),
    )
    assert late.error == "timeout"
    assert result.content == "1"


def test_a_command_past_its_deadline_answers_with_what_it_has(play: Play) -> None:
    (result,) = play((quick, {"command": "echo partial; sleep 30; echo never"}))
    assert (result.error, result.content) == ("timeout", "partial\n[timed out after 0.5 s]")


@pytest.mark.timeout(60)
def test_a_background_process_does_not_hold_the_call(play: Play) -> None:
    started, after = run(
        play,
        "sleep 300 & echo $! > pid; echo started",
        "kill -0 $(cat pid) && echo alive; kill $(cat pid)",
    )
    assert started.content.startswith("started")
    assert after.content.startswith("alive")


def test_bash_and_python_share_the_files(play: Play) -> None:
    _, result = play(
        (bash, {"command": "echo from bash > note"}),
        (python, {"code": "print(open('note').read())"}),
    )
    assert result.content == "from bash"


def test_hostile_state_harms_only_its_own_session(play: Play) -> None:
    *_, result = run(
        play, "printf() { :; }; declare() { :; }; cd() { :; }; PATH=", "unset -f cd", "echo here"
    )
    assert result.content == "here"
