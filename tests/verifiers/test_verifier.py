import asyncio
import math
import time
from collections.abc import Callable
from typing import Any

import pytest

from palestra.types import Failure, Score
from palestra.verifiers import number, verifier
from palestra.verifiers.verifier import Declaration, declaration_of

Judge = Callable[..., Score]


def test_a_declared_function_is_still_the_function() -> None:
    @verifier
    def same(reply: str, answer: str) -> bool:
        """Equal."""
        return reply == answer

    assert same("a", "a")
    assert same.__doc__ == "Equal."
    assert declaration_of(same) == Declaration(name="same")


def test_a_plain_function_needs_no_declaration() -> None:
    assert declaration_of(number) == Declaration(name="number")


@pytest.mark.parametrize(("reply", "value"), [("", 1.0), ("1234", 0.6), ("1234567890", 0.0)])
def test_a_number_is_a_reward_and_the_value_is_its_place_in_the_range(
    judge: Judge, reply: str, value: float
) -> None:
    @verifier(range=(-1, 0), shaping=True)
    def brief(reply: str) -> float:
        return -len(reply) / 10

    score = judge(brief, reply)
    assert score.reward == -len(reply) / 10
    assert score.value == pytest.approx(value)


@pytest.mark.parametrize("returned", [0.5, -1.5, math.nan, Score(value=1.0), True])
def test_a_reward_outside_of_the_range_is_the_verifiers_fault(judge: Judge, returned: Any) -> None:
    @verifier(range=(-1, 0))
    def penalty(reply: str) -> Any:
        return returned

    with pytest.raises(Failure, match="must be between -1 and 0, got"):
        judge(penalty, "x")


def test_trouble_that_an_answer_provokes_costs_it_the_least_of_the_range(judge: Judge) -> None:
    @verifier(range=(-2, 3))
    def fragile(reply: str) -> float:
        return 1 / (1 - len(reply))

    score = judge(fragile, "x")
    assert (score.value, score.reward) == (0.0, -2.0)


def test_a_time_limit_of_its_own_goes_before_the_environments(judge: Judge) -> None:
    @verifier(timeout_s=0.05)
    async def slow(reply: str) -> bool:
        await asyncio.sleep(30 if reply else 0)
        return True

    @verifier(timeout_s=10)
    def patient(reply: str) -> bool:
        time.sleep(0.1)
        return True

    assert judge(slow, "x", timeout_s=30).explanation.endswith("no verdict after 0.05 s")
    assert judge(patient, "x", timeout_s=0.01).value == 1.0


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"range": (1, 0)}, "range of verifier f must be two finite numbers, the smaller first"),
        ({"range": (0, math.inf)}, "must be two finite numbers"),
        ({"range": (0, math.nan)}, "must be two finite numbers"),
        ({"timeout_s": 0}, "timeout_s of verifier f must be a positive number of seconds, got 0"),
        ({"timeout_s": math.inf}, "must be a positive number"),
    ],
)
def test_a_declaration_that_makes_no_sense_is_refused(
    options: dict[str, Any], problem: str
) -> None:
    def f(reply: str) -> bool:
        return True

    with pytest.raises(ValueError, match=problem):
        verifier(**options)(f)


def test_what_cannot_carry_a_declaration_is_refused() -> None:
    with pytest.raises(ValueError, match="upper cannot carry a declaration: write a function"):
        verifier("x".upper)
