from collections.abc import Callable
from typing import Any

import pytest

from palestra.types import Score, Unscorable

Verify = Callable[..., Score]


def calls(*expected: Any, function: str = "f", args: tuple[Any, ...] = ()) -> dict[str, Any]:
    """`f()` has to give each of these in turn."""
    return {"function": function, "calls": [{"args": args, "expected": e} for e in expected]}


@pytest.mark.parametrize(
    ("program", "answer"),
    [
        ("def f(a, b=1): return a + b", {"function": "f", "calls": [{"args": [1], "expected": 2}]}),
        (
            "def f(a, *, b): return [a, b]",
            {"function": "f", "calls": [{"args": [1], "kwargs": {"b": 2}, "expected": [1, 2]}]},
        ),
        ("f = lambda: {'a': {1, 2}, (1, 2): None}", calls({"a": {2, 1}, (1, 2): None})),
        ("f = lambda: 10 ** 5000", calls(10**5000)),
        ("f = lambda: float('nan')", calls(float("nan"))),
        ("f = lambda: 0.1 + 0.2", calls(0.3)),
        ("f = lambda: (1, 2)", calls([1, 2])),
        ("f = lambda: '\\ud800\\0'", calls("\ud800\0")),
        ("from collections import OrderedDict\nf = lambda: OrderedDict(a=1)", calls({"a": 1})),
        ("class Solution:\n    def f(self): return 1", calls(1, function="Solution.f")),
        ("n = 0\ndef f():\n    global n\n    n += 1\n    return n", calls(1, 2, 3)),
        ("def f():\n    print('x' * 10000)\n    return 1", calls(1)),
        ("if __name__ == '__main__':\n    exit()\nf = lambda: 1", calls(1)),
    ],
)
def test_right_results_pass(verify: Verify, program: str, answer: Any) -> None:
    assert verify(program, answer).value == 1.0


@pytest.mark.parametrize(
    ("program", "fault", "said"),
    [
        ("def f(): return 2", "wrong_answer", "call 1"),
        ("def f(): return True", "wrong_answer", ""),
        ("def f(): return object()", "wrong_answer", ""),
        ("def f(): return f", "wrong_answer", ""),
        ("def f(): return 'x' * 2_000_000", "wrong_answer", "a value of"),
        ("def f():\n    x = []\n    x.append(x)\n    return x", "wrong_answer", "nested deeper"),
        ("def f(): return 1/0", "runtime_error", "ZeroDivisionError"),
        ("def f(): return f()", "runtime_error", "RecursionError"),
        ("def g(): return 1", "runtime_error", "name 'f' is not defined"),
        ("def f(): raise SystemExit", "runtime_error", "SystemExit"),
        ("def f(): __import__('os')._exit(0)", "runtime_error", "exit status 0"),
        ("def f(): __import__('ctypes').string_at(0)", "runtime_error", "SIGSEGV"),
        ("1/0", "runtime_error", "ZeroDivisionError"),
        ("import numpi", "runtime_error", "No module named"),
        ("def f() return 1", "compile_error", "SyntaxError"),
        ("def f():\n    while True: pass", "timeout", "no answer after 1 s"),
        (
            "def f():\n    while True:\n        try: g()\n        except BaseException: 0",
            "timeout",
            "",
        ),
        ("while True: pass", "timeout", ""),
        ("def f(): return bytearray(10**9)", "memory", ""),
        ("def f():\n    x = [0]\n    while True: x += x", "memory", ""),
    ],
)
def test_what_is_wrong_is_told_apart(verify: Verify, program: str, fault: str, said: str) -> None:
    score = verify(program, calls(1), timeout_s=1.0)
    assert score.value == 0.0
    assert score.parts[fault] == 1.0, score.explanation
    assert said in score.explanation


def test_expected_results_are_not_told(verify: Verify) -> None:
    score = verify("def f(): return 1", calls("the expected text"))
    assert "expected text" not in score.explanation


def test_the_share_of_calls_counts_if_asked_for(verify: Verify) -> None:
    program = (
        "import os\n"
        "def f(x):\n"
        "    if x == 2: os._exit(0)\n"
        "    if x == 3: os.kill(1, 9); os.kill(os.getppid(), 9)\n"
        "    if x == 4: return -1\n"
        "    return x\n"
    )
    answer = {"function": "f", "calls": [{"args": [x], "expected": x} for x in range(1, 6)]}
    assert verify(program, answer).value == 0.0
    score = verify(program, answer, partial=True)
    assert score.value == 0.6  # nothing inside can kill the first process
    assert score.explanation.startswith("runtime error, passed 3 of 5: call 2")


def test_tuples_can_be_told_from_lists(verify: Verify) -> None:
    assert verify("f = lambda: (1, 2)", calls((1, 2)), strict_tuples=True).value == 1.0
    assert verify("f = lambda: (1, 2)", calls([1, 2]), strict_tuples=True).value == 0.0


def test_no_program_is_no_answer(verify: Verify, judge: Any, spec: Any) -> None:
    from palestra.verifiers.code import code

    for reply in ("", "I cannot.", "```python\nf = lambda: 1", "```text\nf\n```"):
        score = judge(code(sandbox=spec), reply, calls(1))
        assert score.value == 0.0
        assert score.parts["no_program"] + score.parts["compile_error"] == 1.0


def test_a_prompt_is_completed(verify: Verify) -> None:
    answer = {
        **calls(3, args=(1, 2), function="add"),
        "prompt": 'def add(a: int, b: int) -> int:\n    """The sum."""\n',
    }
    for program in ("    return a + b", "return a + b", "def add(a, b):\n    return a + b"):
        assert verify(program, answer).value == 1.0
    assert verify("    pass", answer).value == 0.0


def test_an_answer_in_no_form_is_unscorable(verify: Verify) -> None:
    with pytest.raises(Unscorable):
        verify("f = 1", "f() == 1")
