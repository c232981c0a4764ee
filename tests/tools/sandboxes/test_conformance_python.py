"""Every backend: the Python session keeps its variables, and nothing that it does ends the rest."""

from __future__ import annotations

import time

import pytest

from palestra.tools.sandboxes import Sandbox

# Interpreters notice nothing while this runs.
DEAF = "import collections, itertools\ncollections.deque(itertools.count(), maxlen=0)"
STUBBORN = """
while True:
    try:
        while True:
            pass
    except BaseException:
        pass
"""


def test_variables_live_across_calls(sandbox: Sandbox) -> None:
    sandbox.sync.python("x = [1]\ndef double(): return x * 2")
    sandbox.sync.python("import math as m; x.append(2)")
    assert sandbox.sync.python("double(), m.pi > 3").value == "([1, 2, 1, 2], True)"


def test_the_last_expression_is_echoed_and_none_is_not(sandbox: Sandbox) -> None:
    assert sandbox.sync.python("a = 'ü'\na").value == "'ü'"
    assert sandbox.sync.python("a; None").value == ""
    assert sandbox.sync.python("b = 1").value == ""
    assert sandbox.sync.python("_").value == "'ü'"
    assert sandbox.sync.python("").value == ""


def test_output_and_errors_are_kept_in_order(sandbox: Sandbox) -> None:
    code = (
        "import sys, os\nprint('a')\nprint('b', file=sys.stderr)\nos.system('echo c')\nprint('d')"
    )
    assert sandbox.sync.python(code).output == "a\nb\nc\nd\n"


def test_exceptions_are_text_about_the_code_alone(sandbox: Sandbox) -> None:
    result = sandbox.sync.python("def f():\n    return 1 / 0\nf()")
    assert result.error.startswith("Traceback")
    assert "return 1 / 0" in result.error and "line 3" in result.error
    assert result.error.endswith("ZeroDivisionError: division by zero")
    assert "guest" not in result.error and "palestra" not in result.error
    assert result.ended == result.died == ""


def test_any_exception_leaves_the_session_alive(sandbox: Sandbox) -> None:
    failures = [
        ("def f(:", "SyntaxError"),
        ("a\0b", "null bytes"),
        ("raise SystemExit(3)", "SystemExit"),
        ("exit()", "SystemExit"),
        ("raise BaseException('base')", "BaseException: base"),
        ("class E(Exception):\n def __str__(self): raise self\nraise E", "E"),
        ("class R:\n def __repr__(self): return 3\nR()", "TypeError"),
        ("'\\ud800'.encode()", "UnicodeEncodeError"),
        ("raise ValueError('\\ud800')", "ValueError"),
        ("raise ExceptionGroup('all', [KeyError('one')])", "one"),
    ]
    sandbox.sync.python("x = 1")
    for code, error in failures:
        assert error in sandbox.sync.python(code).error
    assert sandbox.sync.python("x").value == "1"


def test_annotations_mean_what_they_mean_elsewhere(sandbox: Sandbox) -> None:
    code = "def f(a: int): ...\nf.__annotations__"
    assert sandbox.sync.python(code).value == "{'a': <class 'int'>}"


def test_modules_of_the_work_folder_can_be_imported(sandbox: Sandbox) -> None:
    sandbox.sync.write("helper.py", "answer = 42")
    assert sandbox.sync.python("import helper; helper.answer").value == "42"


def test_the_session_is_main(sandbox: Sandbox) -> None:
    assert sandbox.sync.python("__name__, f'{int}', __import__('sys').argv").value == (
        "('__main__', \"<class 'int'>\", [''])"
    )


def test_palestra_itself_is_not_inside(sandbox: Sandbox) -> None:
    if sandbox.backend == "unsafe":
        pytest.skip("it runs the host's interpreter with all of its packages")
    assert "ModuleNotFoundError" in sandbox.sync.python("import palestra").error
    assert sandbox.sync.python("[m for m in __import__('sys').modules if 'pal' in m]").value == "[]"


def test_late_code_is_interrupted_and_keeps_its_variables(sandbox: Sandbox) -> None:
    code = "import time\nx = 1\nprint('so far')\ntime.sleep(60)\nx = 2"
    result = sandbox.sync.python(code, timeout_s=0.5)
    assert result.timed_out and result.died == "" and result.output == "so far\n"
    assert result.error.endswith("KeyboardInterrupt")
    assert sandbox.sync.python("x").value == "1"


@pytest.mark.parametrize("code", [DEAF, STUBBORN, "while True: input = 1; " + "print('y' * 99)"])
def test_hung_code_ends_at_its_deadline(sandbox: Sandbox, code: str) -> None:
    sandbox.sync.python("x = 1")
    began = time.monotonic()
    result = sandbox.sync.python(code, timeout_s=0.5)
    assert result.timed_out
    # The sandbox keeps the deadline itself; its host would wait five seconds longer.
    assert time.monotonic() - began < 4
    after = sandbox.sync.python("'x' in globals()")
    assert after.restarted == bool(result.died) == (after.value == "False")


def test_code_deaf_to_interrupts_is_killed(sandbox: Sandbox) -> None:
    assert sandbox.sync.python(DEAF, timeout_s=0.5).died == "killed by SIGKILL"


@pytest.mark.parametrize(
    ("code", "died"),
    [
        ("import os; os._exit(3)", "exit status 3"),
        ("import ctypes; ctypes.string_at(0)", "killed by SIGSEGV"),
        ("import os; os.kill(os.getpid(), 9)", "killed by SIGKILL"),
        ("import os; os.abort()", "killed by SIGABRT"),
        ("import os; os.execvp('true', ['true'])", "exit status 0"),
    ],
)
def test_the_end_of_the_session_is_told_and_a_new_one_starts(
    sandbox: Sandbox, code: str, died: str
) -> None:
    sandbox.sync.write("kept.txt", "kept")
    result = sandbox.sync.python(f"x = 1\nprint('last words', flush=True)\n{code}")
    assert (result.ended, result.died, result.output) == ("died", died, "last words\n")
    after = sandbox.sync.python("'x' in globals(), open('kept.txt').read()")
    assert after.restarted and after.value == "(False, 'kept')"
    assert not sandbox.sync.python("1").restarted


def test_there_is_nothing_to_read_on_the_standard_input(sandbox: Sandbox) -> None:
    assert sandbox.sync.python("input()").error.endswith("EOFError: EOF when reading a line")
    assert sandbox.sync.python("import sys; sys.stdin.read()").value == "''"


def test_a_session_without_standard_streams_goes_on(sandbox: Sandbox) -> None:
    sandbox.sync.python("import os; os.close(1); os.close(2)")
    assert sandbox.sync.python("6 * 7").value == "42"


def test_what_is_left_running_does_not_hold_the_call(sandbox: Sandbox) -> None:
    code = """
import subprocess, threading, time
threading.Thread(target=time.sleep, args=(30,), daemon=True).start()
child = subprocess.Popen(["sleep", "30"])
print("done")"""
    began = time.monotonic()
    assert sandbox.sync.python(code).output == "done\n"
    assert time.monotonic() - began < 4
    assert sandbox.sync.python("child.poll() is None").value == "True"


def test_children_of_the_session_can_be_waited_for(sandbox: Sandbox) -> None:
    code = "import subprocess; subprocess.run(['sh', '-c', 'exit 3']).returncode"
    assert sandbox.sync.python(code).value == "3"


def test_long_output_and_values_lose_their_middle(sandbox: Sandbox) -> None:
    most = sandbox.spec.limits.output_bytes
    code = f"print('begin' + 'x' * {most} + 'end')\nraise ValueError('y' * {most} + 'last')"
    result = sandbox.sync.python(code)
    assert result.output.startswith("beginx") and result.output.endswith("xend\n")
    assert "bytes cut" in result.output and "bytes cut" in result.error
    assert result.error.endswith("ylast")
    assert len(result.output) < most + 100 and len(result.error) < most + 100


def test_a_long_value_outside_of_ascii_is_cut_like_any_other(sandbox: Sandbox) -> None:
    value = sandbox.sync.python("'😀' * 300_000").value
    assert value.startswith("'😀😀") and value.endswith("😀😀'") and "bytes cut" in value
    assert sandbox.sync.python("1").value == "1"


def test_what_cannot_be_decoded_is_shown_in_its_place(sandbox: Sandbox) -> None:
    code = "import sys\nsys.stdout.buffer.write(b'a\\xffb')\nprint('\\udc80')"
    assert sandbox.sync.python(code).output == "a\ufffdb\\udc80\n"


def test_binary_output_is_only_named(sandbox: Sandbox) -> None:
    code = "import sys; _ = sys.stdout.buffer.write(bytes(range(256)) * 10)"
    assert sandbox.sync.python(code).output == "[binary output, 2,560 bytes, not shown]"


def test_a_long_program_is_taken_whole(sandbox: Sandbox) -> None:
    code = "total = 0\n" + "total += 1\n" * 40_000 + "total"
    assert sandbox.sync.python(code).value == "40000"
