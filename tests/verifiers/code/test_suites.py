from collections.abc import Callable
from typing import Any

import pytest

from palestra.tools.sandboxes import SandboxSpec
from palestra.types import Score, Unscorable

Verify = Callable[..., Score]

ADD = "def add(a, b):\n    return a + b"
STACK = """
class Empty(LookupError):
    pass

class Stack:
    def __init__(self, items=()):
        self.items = list(items)

    def push(self, item):
        self.items.append(item)

    def pop(self):
        if not self.items:
            raise Empty("nothing there")
        return self.items.pop()

    def __len__(self):
        return len(self.items)

    def __iter__(self):
        yield from self.items

    def __getitem__(self, i):
        return self.items[i]

def first(stack):
    return stack.items[0]

def count(n):
    for i in range(n):
        yield i

LIMIT = 3
"""
UNITTEST = """
import unittest
from solution import Empty, LIMIT, Stack, count, first

class TestStack(unittest.TestCase):
    def setUp(self):
        self.stack = Stack([1])

    def test_push_and_pop(self):
        self.stack.push({"a": (1, 2)})
        self.assertEqual(self.stack.pop(), {"a": (1, 2)})
        self.assertEqual(len(self.stack), 1)

    def test_looking_into_it(self):
        self.assertIn(1, self.stack)
        self.assertEqual(list(self.stack), [1])
        self.assertEqual(self.stack[0], 1)
        self.assertEqual(self.stack.items, [1])
        self.assertIsInstance(self.stack, Stack)
        self.assertEqual(first(self.stack), 1)

    def test_an_empty_one(self):
        self.stack.pop()
        with self.assertRaises(Empty) as caught:
            self.stack.pop()
        self.assertEqual(str(caught.exception), "nothing there")
        with self.assertRaises(LookupError):
            self.stack.pop()

    def test_others(self):
        self.assertEqual(list(count(3)), [0, 1, 2])
        self.assertEqual(LIMIT, 3)
"""
PYTEST = """
import pytest
from solution import add

@pytest.fixture
def one():
    return 1

@pytest.mark.parametrize("n", [1, 2, 3])
def test_add(n, one):
    assert add(n, one) == n + 1

def test_types():
    with pytest.raises(TypeError, match="unsupported"):
        add(1, None)

class TestMore:
    def test_lists(self):
        assert add([1], [2]) == [1, 2]

@pytest.mark.skip
def test_later():
    assert False
"""


def test_assertions_are_counted_one_by_one(verify: Verify) -> None:
    answer = {"tests": ["assert add(1, 2) == 3", "assert add([], []) == []", "assert True"]}
    assert verify(ADD, answer).explanation == "passed 2 of 2"
    wrong = "def add(a, b):\n    return 3"
    assert verify(wrong, answer).value == 0.0
    assert verify(wrong, answer, partial=True).value == 0.5


def test_check_gets_the_function_and_helpers_come_from_the_prompt(verify: Verify) -> None:
    answer = {
        "prompt": "import math\ndef poly(xs, x):\n    return sum(c * x**i for i, c in "
        'enumerate(xs))\n\ndef find_zero(xs):\n    """A zero."""\n',
        "tests": "METADATA = {}\n\ndef check(candidate):\n    for c in range(1, 5):\n"
        "        xs = [-c, 1]\n        assert abs(poly(xs, candidate(xs))) < 1e-6\n"
        "    assert candidate([0, 2]) == 0, 'message'\n",
        "entry_point": "find_zero",
    }
    assert verify("    return -xs[0] / xs[1]", answer).explanation == "passed 5 of 5"
    # The program's own helper is not the one that the tests use.
    assert verify("    return 7\ndef poly(xs, x): return 0", answer).value == 0.0


@pytest.mark.parametrize(
    "tests",
    [
        "try:\n    f(-1)\n    assert False\nexcept ValueError as e:\n    assert str(e) == 'neg'",
        "assert [f(x) for x in (1, 2)] == [1, 2]",
        "def helper(n):\n    assert f(n) == n\nfor i in range(3): helper(i)",
        "x = [1]\nf(x)\nassert x == [1]",
        "assert f(None) is None and not f(0) and f(1) in (1, 2) and f((1,)) == (1,)",
        "assert f(1) == 1 if True else f(2)",
    ],
)
def test_tests_of_any_shape_are_understood(verify: Verify, tests: str) -> None:
    program = "def f(x):\n    if x == -1: raise ValueError('neg')\n    return x"
    assert verify(program, {"tests": tests}).value == 1.0
    assert verify("def f(x):\n    return 5", {"tests": tests}).value in (0.0, float("[1]" in tests))


def test_unittest_looks_into_objects_that_stay_where_they_are(verify: Verify) -> None:
    assert verify(STACK, {"tests": UNITTEST}).explanation == "passed 4 of 4"
    without = STACK.replace('raise Empty("nothing there")', "return None")
    score = verify(without, {"tests": UNITTEST}, partial=True)
    assert score.value == 0.75
    assert score.parts["wrong_answer"] == 1.0
    missing = STACK.replace("LIMIT", "LIMITS")
    assert verify(missing, {"tests": UNITTEST}, partial=True).value == 0.0


def test_pytest_runs_fixtures_parameters_and_classes(
    verify: Verify, unsafe_spec: SandboxSpec
) -> None:
    score = verify(ADD, {"tests": PYTEST}, sandbox=unsafe_spec, timeout_s=20.0)
    assert score.explanation == "passed 5 of 5"
    wrong = "def add(a, b):\n    return a + b if isinstance(a, int) and a < 3 else 0"
    score = verify(wrong, {"tests": PYTEST}, sandbox=unsafe_spec, timeout_s=20.0, partial=True)
    assert score.value == 0.6
    assert verify("", {"tests": PYTEST}, sandbox=unsafe_spec).value == 0.0


def test_what_a_program_prints_reaches_the_tests(verify: Verify, unsafe_spec: SandboxSpec) -> None:
    tests = (
        "from solution import hello\n"
        "def test_hello(capsys):\n    hello()\n    assert capsys.readouterr().out == 'hello\\n'\n"
    )
    program = "def hello():\n    print('hello')"
    assert verify(program, {"tests": tests}, sandbox=unsafe_spec, timeout_s=20.0).value == 1.0
    assert verify("def hello(): 0", {"tests": tests}, sandbox=unsafe_spec).value == 0.0


@pytest.mark.parametrize(
    ("program", "fault"),
    [
        ("def add(a, b) return", "compile_error"),
        ("1/0", "runtime_error"),
        ("def add(a, b): return a - b", "wrong_answer"),
        ("def add(a, b): return object()", "wrong_answer"),
        ("def add(a, b): raise KeyError", "runtime_error"),
        ("def add(a, b): raise MemoryError", "memory"),
        ("def add(a, b): return bytearray(10**9)", "memory"),
        ("def add(a, b):\n    while True: pass", "timeout"),
        ("def add(a, b): __import__('os')._exit(0)", "runtime_error"),
    ],
)
def test_what_is_wrong_is_told_apart(verify: Verify, program: str, fault: str) -> None:
    answer = {"tests": "def check(candidate):\n    assert candidate(1, 2) == 3"}
    score = verify(program, {**answer, "entry_point": "add"}, timeout_s=1.0)
    assert score.value == 0.0
    assert score.parts[fault] == 1.0, score.explanation


def test_after_a_crash_the_rest_still_counts(verify: Verify) -> None:
    program = f"import os\n{ADD} if a != 2 else os._exit(0)"
    answer = {"tests": [f"assert add({i}, 1) == {i + 1}" for i in range(4)]}
    assert verify(program, answer, partial=True).value == 0.75
    program = f"{ADD}\nimport time\ntime.sleep(0.6)"  # each start takes time
    assert verify(program, answer, timeout_s=1.0).value == 1.0


def test_a_slow_test_of_values_that_the_program_gave_is_its_fault(verify: Verify) -> None:
    answer = {"tests": "while f() != 1: pass"}
    assert verify("f = lambda: 0", answer, total_timeout_s=1.0).parts["timeout"] == 1.0


@pytest.mark.parametrize(
    ("tests", "problem"),
    [
        ("import nonexistent\nassert f(1) == 1", "do not start: ModuleNotFoundError"),
        ("from solution import f\nimport nonexistent\nassert f(1) == 1", "do not start"),
        ("raise ValueError('x')\nassert f(1) == 1", "do not start: ValueError"),
        ("assert f(lambda: 1) == 1", "the tests pass a value of type function"),
        ("x = 1\nassert x == 1", "ask nothing"),
        ("assert True", "ask nothing"),
        ("def check(candidate):\n    assert candidate(1) == 1", "ask nothing"),
        ("import unittest\nclass T(unittest.TestCase):\n    pass", "ask nothing"),
    ],
)
def test_tests_that_test_nothing_are_unscorable(verify: Verify, tests: str, problem: str) -> None:
    with pytest.raises(Unscorable, match=problem):
        verify("def f(x): return 1", {"tests": tests})


def test_a_missing_name_is_the_programs_fault(verify: Verify) -> None:
    for tests in ("assert f(1) == 1", "from solution import f\nassert f(1) == 1"):
        score = verify("def g(x): return 1", {"tests": tests})
        assert score.value == 0.0


def test_the_state_of_one_run_does_not_reach_the_next(verify: Verify) -> None:
    # The sandbox of the tests is used again, their process is not.
    leaving = "import builtins, os, solution\nbuiltins.left = 1\nopen('left', 'w').close()\n"
    looking = "import builtins, os\nassert not hasattr(builtins, 'left') and not os.listdir()\n"
    for tests in (leaving + "assert solution.f() == 1", looking + "assert f() == 1"):
        answer: dict[str, Any] = {"tests": tests}
        assert verify("f = lambda: 1", answer).value == 1.0
