import asyncio
import math
from collections.abc import Callable
from typing import Any

import pytest

from palestra.types import Failure, Score, Task, Unscorable
from palestra.verifiers import Part, Rubric, number, verifier
from palestra.verifiers.verifier import declaration_of

Judge = Callable[..., Score]


@verifier(range=(-1, 0), shaping=True)
def brief(reply: str) -> float:
    return -min(1.0, len(reply) / 100)


def polite(reply: str) -> bool:
    return "please" in reply


def test_the_reward_is_the_weighted_sum_and_the_value_leaves_shaping_out(judge: Judge) -> None:
    rubric = Rubric(Part(number), Part(brief, 0.5))
    score = judge(rubric, "x " * 24 + "42", "42")
    assert (score.value, score.reward) == (1.0, 0.75)
    assert dict(score.parts) == {"number": 1.0, "brief": -0.5}
    score = judge(rubric, "x " * 24 + "41", "42")
    assert (score.value, score.reward) == (0.0, -0.25)


def test_the_value_weighs_what_is_not_shaping(judge: Judge) -> None:
    rubric = Rubric(Part(number, 3), Part(polite, 1))
    assert judge(rubric, "42", "42").value == 0.75
    assert judge(rubric, "please: 41", "42").value == 0.25
    assert judge(rubric, "please: 41", "42").reward == 1.0


def test_a_negative_weight_is_a_pitfall_and_the_value_is_cut_off_at_0(judge: Judge) -> None:
    rubric = Rubric(Part(number, 2), Part(polite, -3, name="begging"))
    assert judge(rubric, "42", "42") == Score(
        value=1.0, reward=2.0, parts={"number": 1.0, "begging": 0.0}
    )
    score = judge(rubric, "please 42", "42")
    assert (score.value, score.reward) == (0.0, -1.0)


def test_a_part_of_weight_0_is_only_measured(judge: Judge) -> None:
    score = judge(Rubric(Part(number), Part(polite, 0)), "please 41", "42")
    assert (score.value, score.reward) == (0.0, 0.0)
    assert score.parts["polite"] == 1.0


def test_a_part_may_be_made_shaping_and_given_a_range(judge: Judge) -> None:
    def lines(reply: str) -> int:
        return -reply.count("\n")

    part = Part(lines, 0.1, range=(-10, 0), shaping=True)
    score = judge(Rubric(Part(number), part), "\n\n42", "42")
    assert score.reward == 1.0 - 0.2
    assert score.value == 1.0


@pytest.mark.parametrize("returned", [1.5, -0.5, math.nan, math.inf, Score(value=1.0, reward=2.0)])
def test_a_part_out_of_its_range_fails_the_whole_by_name(judge: Judge, returned: Any) -> None:
    with pytest.raises(Failure, match="must be between 0 and 1, got") as raised:
        judge(Rubric(Part(number), Part(lambda reply: returned, 0, name="odd")), "42", "42")
    assert raised.value.cause == "verifier:odd"


def test_an_unscorable_part_makes_the_whole_unscorable_by_name(judge: Judge) -> None:
    with pytest.raises(Unscorable, match="number needs a number") as raised:
        judge(Rubric(Part(number), Part(brief)), "42", "forty-two")
    assert raised.value.cause == "verifier:reference:number"


def test_a_part_that_an_answer_makes_fail_costs_it_the_least(judge: Judge) -> None:
    @verifier(range=(-1, 0), shaping=True)
    def fragile(reply: str) -> float:
        return -float(bool(1 / (2 - len(reply))))

    score = judge(Rubric(Part(number), Part(fragile)), "42", "42")
    assert (score.value, score.reward) == (1.0, 0.0)


def test_rubrics_nest(judge: Judge) -> None:
    inner = Rubric(Part(number, 2), Part(brief), name="inner")
    assert declaration_of(inner).range == (-1.0, 2.0)
    outer = Rubric(Part(inner, 0.5), Part(polite, 0.25))
    assert declaration_of(outer).range == (-0.5, 1.25)
    score = judge(outer, "42", "42")
    assert score.reward == pytest.approx(0.5 * (2 - 0.02))


def test_many_parts_never_leave_the_range_by_rounding(judge: Judge) -> None:
    parts = [Part(lambda reply: 1.0, 0.1, name=f"p{i}") for i in range(30)]
    score = judge(Rubric(Part(Rubric(*parts), name="all"), Part(polite, 0)), "x")
    assert score.value == 1.0


def test_a_rubric_can_be_called_by_other_verifiers() -> None:
    rubric = Rubric(Part(number))

    async def twice(task: Task, reply: str) -> float:
        score = await rubric(task=task, reply=reply)
        assert isinstance(score, Score)
        return score.value / 2

    task = Task(id="t", messages=(), answer="42")
    assert asyncio.run(twice(task, "42")) == 0.5


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: Rubric(), "rubric needs a part that judges the answer"),
        (lambda: Rubric(Part(number, 0)), "needs a part that judges the answer"),
        (lambda: Rubric(Part(brief)), "needs a part that judges the answer"),
        (
            lambda: Rubric(number),  # type: ignore[arg-type]
            "a rubric is made of Part",
        ),
        (lambda: Rubric(Part(number), Part(number)), 'two parts of rubric are called "number"'),
        (
            lambda: Part("number"),  # type: ignore[arg-type]
            "a verifier must be a function, got 'number'",
        ),
        (lambda: Part(number, math.nan), "weight of part number must be finite, got nan"),
        (lambda: Part(number, range=(0, 0)), "range of verifier number must be two finite"),
        (lambda: Part(number, range=(0, math.inf)), "range of verifier number must be two finite"),
    ],
)
def test_a_rubric_that_makes_no_sense_is_refused(make: Callable[[], Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        make()
