"""Rows 53 to 64 of the sandboxes' table of attacks: tricks that make naive graders pay.

Each test first shows that the trick works on a grader that is written as they often are, so that
it fails if the trick is none.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from palestra.tools import Sandbox
from palestra.tools.sandboxes import SandboxSpec
from palestra.types import Score
from palestra.verifiers.code import code

Verify = Callable[..., Score]

CHECK = "def check(candidate):\n    assert candidate(1) == 2\n    assert candidate(4) == 5\n"
ANSWER = {"tests": CHECK, "entry_point": "f"}
UNITTEST = (
    "import unittest\nfrom solution import f\n\nclass TestF(unittest.TestCase):\n"
    "    def test_f(self):\n        self.assertEqual(f(1), 2)\n\n"
    "if __name__ == '__main__':\n    unittest.main()\n"
)
PYTEST = "from solution import f\n\ndef test_f():\n    assert f(1) == 2\n"
CALLS = {"function": "f", "calls": [{"args": [1], "expected": 2}, {"args": [4], "expected": 5}]}
CASES = {"cases": [{"input": "1\n", "output": "2\n"}, {"input": "4\n", "output": "5\n"}]}
RIGHT = "def f(x):\n    return x + 1\n"
WRONG = "def f(x):\n    return 0\n"


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A Python that finds what lies in the folder, as a policy's working folder is used."""
    command = [sys.executable, *arguments]
    # `make` exports it for ours; a naive grader's Python looks into its folder.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    return subprocess.run(
        command, cwd=folder, env=env, capture_output=True, text=True, timeout=60, check=False
    )


def passes_by_exit_status(folder: Path, program: str) -> bool:
    """Program and tests in one file, and the exit status decides."""
    (folder / "main.py").write_text(f"{program}\n{CHECK}\ncheck(f)\n")
    return run(folder, "main.py").returncode == 0


def passes_by_output(folder: Path, program: str) -> bool:
    """The same, and what is printed decides."""
    (folder / "main.py").write_text(f"{program}\n{CHECK}\ncheck(f)\nprint('1 passed')\n")
    return "1 passed" in run(folder, "main.py").stdout


def passes_unittest(folder: Path, program: str) -> bool:
    """Tests that import the program, beside it."""
    (folder / "solution.py").write_text(program)
    (folder / "test_solution.py").write_text(UNITTEST)
    return run(folder, "test_solution.py").returncode == 0


def passes_pytest(folder: Path, program: str, *options: str) -> bool:
    """pytest in the folder where the policy has worked."""
    (folder / "solution.py").write_text(program)
    if not (folder / "test_solution.py").exists():
        (folder / "test_solution.py").write_text(PYTEST)
    command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", *options, "test_solution.py"]
    return run(folder, *command).returncode == 0


def passes_harness(folder: Path, program: str) -> bool:
    """A harness in the program's process holds the expected values and counts."""
    harness = (
        "def grade():\n"
        "    passed = 0\n"
        "    for given, expected in [(1, 2), (4, 5)]:\n"
        "        if f(given) == expected:\n"
        "            passed += 1\n"
        "    print('passed', passed)\n"
        "grade()\n"
    )
    (folder / "main.py").write_text(f"{program}\n{harness}")
    return run(folder, "main.py").stdout.rstrip().endswith("passed 2")


NAIVE = {
    "exit status": passes_by_exit_status,
    "output": passes_by_output,
    "unittest": passes_unittest,
    "pytest": passes_pytest,
    "harness": passes_harness,
}
FORMS: dict[str, Any] = {
    "asserts": ANSWER,
    "unittest": {"tests": UNITTEST},
    "pytest": {"tests": PYTEST},
    "calls": CALLS,
}


@pytest.mark.parametrize("grader", NAIVE)
def test_the_naive_graders_tell_honest_programs_apart(tmp_path: Path, grader: str) -> None:
    assert NAIVE[grader](tmp_path, RIGHT)
    assert not NAIVE[grader](tmp_path, WRONG)


EXIT = "import sys\nsys.exit(0)\n"
HARD_EXIT = "import os\nos._exit(0)\n"
EXIT_IN_CALL = "import os\ndef f(x):\n    os._exit(0)\n"
AT_EXIT = (
    "import atexit, os, sys\n"
    "def leave():\n    sys.stdout.flush()\n    os._exit(0)\n"
    "atexit.register(leave)\n" + WRONG
)
LIKE_ANYTHING = (
    "class Anything:\n"
    "    def __eq__(self, other):\n        return True\n"
    "    def __ne__(self, other):\n        return False\n"
    "    def __bool__(self):\n        return True\n"
    "def f(x):\n    return Anything()\n"
)
INT_LIKE_ANYTHING = (
    "class Anything(int):\n"
    "    def __eq__(self, other):\n        return True\n"
    "    def __index__(self):\n        return 2\n"
    "    def __hash__(self):\n        return 0\n"
    "def f(x):\n    return Anything(0)\n"
)
PATCHED_UNITTEST = (
    "import unittest\n"
    "unittest.TestCase.assertEqual = lambda *arguments, **named: None\n"
    "unittest.TestCase.run = lambda self, result=None: result\n" + WRONG
)
CALLERS_FRAME = (
    "import sys\n"
    "def f(x):\n"
    "    frame = sys._getframe(1)\n"
    "    while frame is not None:\n"
    "        if 'expected' in frame.f_locals:\n"
    "            return frame.f_locals['expected']\n"
    "        frame = frame.f_back\n"
)
GARBAGE_SCAN = (
    "import gc, types\n"
    "def f(x):\n"
    "    for thing in gc.get_objects():\n"
    "        if isinstance(thing, dict) and thing.get('__name__') == '__main__':\n"
    "            for value in list(thing.values()):\n"
    "                if isinstance(value, types.FunctionType):\n"
    "                    for constant in value.__code__.co_consts:\n"
    "                        pairs = constant if isinstance(constant, tuple) else ()\n"
    "                        for pair in pairs:\n"
    "                            if isinstance(pair, tuple) and pair[0] == x:\n"
    "                                return pair[1]\n"
)
PRINTED = "print('1 passed in 0.01s', flush=True)\nimport os\nos._exit(0)\n"


@pytest.mark.parametrize(
    ("grader", "program"),
    [
        pytest.param("exit status", EXIT, id="56-exit"),
        pytest.param("exit status", HARD_EXIT, id="56-hard-exit"),
        pytest.param("unittest", HARD_EXIT, id="56-hard-exit-in-unittest"),
        pytest.param("exit status", EXIT_IN_CALL, id="56-exit-in-the-call"),
        pytest.param("exit status", AT_EXIT, id="57-atexit"),
        pytest.param("unittest", AT_EXIT, id="57-atexit-in-unittest"),
        pytest.param("harness", LIKE_ANYTHING, id="58-eq"),
        pytest.param("pytest", LIKE_ANYTHING, id="58-eq-in-pytest"),
        pytest.param("exit status", INT_LIKE_ANYTHING, id="58-int"),
        pytest.param("unittest", PATCHED_UNITTEST, id="59-patched-unittest"),
        pytest.param("harness", CALLERS_FRAME, id="60-callers-frame"),
        pytest.param("harness", GARBAGE_SCAN, id="61-garbage-scan"),
        pytest.param("output", PRINTED, id="61-printed"),
    ],
)
def test_a_program_that_fools_a_naive_grader_scores_nothing(
    verify: Verify, unsafe_spec: SandboxSpec, tmp_path: Path, grader: str, program: str
) -> None:
    assert NAIVE[grader](tmp_path, program), "the trick is none"
    for form in ("asserts", "unittest", "calls"):
        assert verify(program, FORMS[form]).value == 0.0
    assert verify(program, ANSWER, partial=True).value == 0.0
    if grader in ("pytest", "unittest"):
        assert verify(program, FORMS["pytest"], sandbox=unsafe_spec, timeout_s=20.0).value == 0.0
    assert verify(program, CASES).value == 0.0


@pytest.mark.parametrize("form", FORMS)
def test_the_right_program_passes_in_each_form(
    verify: Verify, unsafe_spec: SandboxSpec, form: str
) -> None:
    options: dict[str, Any] = {"sandbox": unsafe_spec} if form == "pytest" else {}
    assert verify(RIGHT, FORMS[form], timeout_s=20.0, **options).value == 1.0
    assert verify(WRONG, FORMS[form], timeout_s=20.0, **options).value == 0.0


HOOK = (
    "import pytest\n\n@pytest.hookimpl(hookwrapper=True)\n"
    "def pytest_runtest_makereport(item, call):\n"
    "    report = (yield).get_result()\n    report.outcome = 'passed'\n"
)
PRETENDER = "def pytest_runtest_call(item):\n    item.obj = lambda: None\n"


@pytest.mark.parametrize(
    ("files", "options"),
    [
        pytest.param({"conftest.py": HOOK}, [], id="62-conftest"),
        pytest.param(
            {"pytest.ini": "[pytest]\naddopts = -p cheat\n", "cheat.py": HOOK},
            ["--noconftest"],
            id="63-pytest-ini",
        ),
        pytest.param(
            {"pyproject.toml": "[tool.pytest.ini_options]\naddopts = '--co'\n"},
            ["--noconftest"],
            id="63-pyproject",
        ),
        pytest.param(
            {"pytest/__init__.py": "", "pytest/__main__.py": "raise SystemExit(0)"},
            [],
            id="63-shadowed-pytest",
        ),
        pytest.param(
            {"test_solution.py": "def test_f():\n    pass\n"},
            ["--noconftest"],
            id="64-edited-tests",
        ),
    ],
)
def test_files_that_the_policy_leaves_decide_nothing(
    judge: Callable[..., Score],
    new_sandbox: Callable[[], Sandbox],
    unsafe_spec: SandboxSpec,
    tmp_path: Path,
    files: dict[str, str],
    options: list[str],
) -> None:
    policys = new_sandbox()
    for name, text in files.items():
        policys.sync.write(name, text)
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert passes_pytest(tmp_path, WRONG, *options), "the trick is none"
    verifier = code(sandbox=unsafe_spec, timeout_s=20.0)
    assert judge(verifier, WRONG, {"tests": PYTEST}, sandbox=policys).value == 0.0


def test_files_that_the_program_writes_decide_nothing(
    verify: Verify, unsafe_spec: SandboxSpec
) -> None:
    # As it is loaded, it writes whatever pytest and Python look for, wherever it may (rows 62 to
    # 64): the tests are in another sandbox.
    program = (
        "import os, pathlib, site, sys\n"
        f"texts = {{'conftest.py': {HOOK!r}, 'sitecustomize.py': {HARD_EXIT!r},\n"
        f"    'x.pth': 'import os; os._exit(0)', 'test_program.py': '', 'unittest.py': ''}}\n"
        "for folder in ['.', '/tmp', '/work', *sys.path, site.getusersitepackages()]:\n"
        "    for name, text in texts.items():\n"
        "        try:\n"
        "            pathlib.Path(folder, name).write_text(text)\n"
        "        except OSError:\n"
        "            pass\n"
        "os.environ.update(PYTHONPATH='/tmp', PYTEST_ADDOPTS='-p conftest')\n" + WRONG
    )
    for form in ("asserts", "unittest", "calls"):
        assert verify(program, FORMS[form]).value == 0.0
        assert verify(RIGHT, FORMS[form]).value == 1.0
    assert verify(program, CASES).value == 0.0


FORGED = """
import json, os, struct, threading
def forge():
    replies = [
        {"id": n, "value": [len(v), len(v), 0], "error": [0, 0, 0], "output": [0, 0, 0],
         "ended": "", "died": "", "restarted": False, "left_running": 0}
        for n in range(1, 40) for v in [VALUE]
    ]
    for reply in replies:
        head = json.dumps(reply).encode()
        frame = struct.pack(">II", len(head), len(VALUE)) + head + VALUE
        for fd in range(3, 20):
            try:
                os.write(fd, frame)
            except OSError:
                pass
def f(x):
    forge()
    return 0
"""


@pytest.mark.parametrize("value", ["'passed'", '["value", 1]', '["done", {"passed": 2}]', "true"])
def test_forged_replies_are_data_at_most(verify: Verify, value: str) -> None:
    program = f"VALUE = {value.encode()!r}\n{FORGED}"
    for form in ("asserts", "unittest", "calls"):
        assert verify(program, FORMS[form], partial=True).value == 0.0


def test_the_forgery_works_on_a_grader_that_believes_the_reply(
    new_sandbox: Callable[[], Sandbox],
) -> None:
    program = f"VALUE = {b'passed'!r}\n{FORGED}"
    result = new_sandbox().sync.python(f"{program}\n{CHECK}\ncheck(f)\n'passed'")
    assert result.value == "passed" and not result.error


LEAVE = (
    "import os\n"
    "for folder in ('/tmp', '/work', '/dev/shm', os.getcwd()):\n"
    "    try:\n"
    "        with open(folder + '/left', 'w') as file:\n            file.write('x + 1')\n"
    "    except OSError:\n        pass\n"
)
FIND = (
    "import os\n"
    "def f(x):\n"
    "    for folder in ('/tmp', '/work', '/dev/shm', os.getcwd()):\n"
    "        if os.path.exists(folder + '/left'):\n"
    "            return eval(open(folder + '/left').read())\n"
)


def test_what_one_program_leaves_the_next_does_not_find(
    verify: Verify, new_sandbox: Callable[[], Sandbox]
) -> None:
    used_again = new_sandbox().sync  # row 55: a grader that keeps its sandbox
    used_again.python(LEAVE)
    assert used_again.python(FIND + "f(1)").value == "2", "the trick is none"
    for form in ("asserts", "unittest", "calls"):
        verify(LEAVE + RIGHT, FORMS[form])
        assert verify(FIND, FORMS[form]).value == 0.0


@pytest.mark.parametrize(
    ("tests", "program"),
    [
        # Raised in the tests' process, these would end their loops, or the tests themselves.
        ("assert all(map(f, [1, 2, 3]))", "def f(x): raise StopIteration"),
        ("for y in map(f, [1, 2]):\n    assert y == 1", "def f(x): raise StopIteration"),
        ("assert f(1) == 2", "import unittest\ndef f(x): raise unittest.SkipTest"),
        ("assert f(1) == 2", "def f(x): raise KeyboardInterrupt"),
        ("assert f(1) == 2", "def f(x): raise GeneratorExit"),
        # What the program does to its arguments, the tests do not see.
        ("x = [2, 1]\nassert f(x) == sorted(x)", "def f(x):\n    x.clear()\n    return []"),
        # An end is no exception that a test may have asked for.
        (
            "try:\n    f(1)\n    assert False\nexcept Exception:\n    pass",
            "def f(x): __import__('os')._exit(0)",
        ),
        (
            "try:\n    f(1)\n    assert False\nexcept Exception:\n    pass",
            "def f(x):\n    while True: pass",
        ),
        # Objects say nothing about themselves that would be believed.
        ("assert 3 in f(1)", "class A:\n    __contains__ = lambda s, i: True\nf = lambda x: A()"),
        ("assert f(1)", "f = lambda x: object()"),
        ("assert f(1) != 2", "f = lambda x: object()"),
        ("assert not f(1) == 2", "f = lambda x: object()"),
        ("assert f(1) >= 2", "class A:\n    __ge__ = lambda s, i: True\nf = lambda x: A()"),
    ],
)
def test_nothing_that_crosses_the_border_stops_or_steers_the_tests(
    verify: Verify, tests: str, program: str
) -> None:
    for partial in (False, True):
        score = verify(program, {"tests": tests}, timeout_s=0.5, partial=partial)
        assert score.value == 0.0


@pytest.mark.parametrize(
    "program",
    [
        "import unittest\ndef f(x): raise unittest.SkipTest('no')",
        "from unittest import SkipTest\nraise SkipTest",
        "",
    ],
)
def test_a_skipped_test_has_not_passed(verify: Verify, program: str) -> None:
    tests = (
        "import unittest, solution\nclass T(unittest.TestCase):\n"
        "    def test_a(self):\n"
        "        if not hasattr(solution, 'f'): self.skipTest('no f')\n"
        "        solution.f(1)\n"
        "    @unittest.skip('always')\n    def test_b(self): pass\n"
    )
    assert verify(program, {"tests": tests}).value == 0.0
    assert verify("def f(x): pass", {"tests": tests}).explanation == "passed 1 of 1"
