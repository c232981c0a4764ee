from collections.abc import Callable
from typing import Any

import pytest

from palestra.types import Score, Unscorable

Verify = Callable[..., Score]
ADD = "a, b = map(int, input().split())\nprint(a + b)"
CASES = {"cases": [{"input": f"{i} {i}\n", "output": f"{2 * i}\n"} for i in range(1, 5)]}


def test_a_program_that_solves_every_case_passes(verify: Verify) -> None:
    score = verify(ADD, CASES)
    assert (score.value, score.explanation) == (1.0, "passed 4 of 4")
    assert score.parts["passed"] == 1.0


@pytest.mark.parametrize(
    ("program", "fault"),
    [
        ("print(2)", "wrong_answer"),
        ("import sys\nsys.exit(0)", "wrong_answer"),
        (f"{ADD}\nraise ValueError('x')", "runtime_error"),
        (f"{ADD}\nimport os\nos._exit(3)", "runtime_error"),
        ("print(", "compile_error"),
        ("if True:\nprint(1)", "compile_error"),
        ("while True:\n    pass", "timeout"),
        ("x = bytearray(10**9)", "memory"),
        ("while True:\n    print('x' * 1000)", "timeout"),
    ],
)
def test_what_is_wrong_is_told_apart(verify: Verify, program: str, fault: str) -> None:
    score = verify(program, CASES, timeout_s=1.0)
    assert score.value == 0.0
    assert score.parts[fault] == 1.0
    assert sum(score.parts[f] for f in score.parts if f != "passed") == 1.0


def test_the_share_of_cases_counts_if_asked_for(verify: Verify) -> None:
    program = f"{ADD}\nif a == 3:\n    while True: pass"
    assert verify(program, CASES, timeout_s=1.0).value == 0.0
    score = verify(program, CASES, timeout_s=1.0, partial=True)
    assert score.value == 0.75
    assert score.explanation.startswith("timeout, passed 3 of 4: case 3")


def test_all_cases_together_have_a_limit_too(verify: Verify) -> None:
    program = f"{ADD}\nimport time\ntime.sleep(0.8)"
    score = verify(program, CASES, timeout_s=2.0, total_timeout_s=1.5)
    assert score.parts["timeout"] == 1.0


def test_an_expected_output_that_no_sandbox_keeps_is_unscorable(verify: Verify) -> None:
    answer = {"cases": [{"input": "", "output": "x" * 1_000_000}]}
    with pytest.raises(Unscorable, match="more output"):
        verify("print('x' * 1_000_000)", answer)


def test_a_run_cannot_break_the_next_one(verify: Verify) -> None:
    # The file of the program is written anew for each case; a folder in its place is its fault.
    program = f"import os\n{ADD}\nos.remove('main.py')"
    assert verify(program, CASES).value == 1.0
    program += "\nos.mkdir('main.py')"
    score = verify(program, CASES, partial=True)
    assert 0 < score.value < 1


def test_a_reference_solution_that_fails_is_the_tasks_fault(verify: Verify) -> None:
    wrong = {**CASES, "solution": "print(0)"}
    with pytest.raises(Unscorable, match="own solution"):
        verify("print(2)", wrong)
    right: dict[str, Any] = {**CASES, "solution": ADD}
    assert verify("print(2)", right).value == 0.0
    assert verify(ADD, right).value == 1.0
