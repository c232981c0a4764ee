from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from palestra.endpoint import Endpoint
from palestra.endpoint.scripted import Scripted, ScriptedServer
from palestra.types import Score, Unscorable
from palestra.verifiers import Part, Rubric
from palestra.verifiers.judge_rubric import Item, RubricJudge, judge_rubric
from palestra.verifiers.judge_scripted import Shown, scripted_judge

Run = Callable[..., Score]
ITEMS = {"names a source": 2.0, "is polite": 1.0, "invents a quotation": -4.0}


@contextmanager
def judged_by(
    decide: Callable[[Shown], Any], items: Any = ITEMS, **options: Any
) -> Iterator[tuple[RubricJudge, ScriptedServer]]:
    with ScriptedServer(scripted_judge(decide)) as server:
        endpoint = Endpoint(server.base_url, "key")
        yield judge_rubric("m", items, endpoint=endpoint, **options), server


def entries(*met: Any) -> list[dict[str, Any]]:
    return [{"item": i, "reason": f"r{i}", "met": m} for i, m in enumerate(met, 1)]


def always(*met: Any) -> Callable[[Shown], Any]:
    return lambda shown: {"verdicts": entries(*met)}


@pytest.mark.parametrize(
    ("met", "value", "reward"),
    [
        ((True, True, False), 1.0, 1.0),
        ((True, False, False), 2 / 3, 2 / 3),
        ((False, False, False), 0.0, 0.0),
        ((True, True, True), 0.0, -1 / 3),
        ((False, False, True), 0.0, -1.0),  # -4/3, cut off
    ],
)
def test_the_weights_of_items_met_over_all_positive_weights(
    judge: Run, met: tuple[bool, ...], value: float, reward: float
) -> None:
    with judged_by(always(*met)) as (verifier, server):
        score = judge(verifier, "a reply")
    assert score.value == pytest.approx(value)
    assert score.reward == pytest.approx(reward)
    assert score.parts == {f"item_{i}": float(m) for i, m in enumerate(met, 1)}
    assert "r1" in score.explanation and "r3" in score.explanation
    assert len(server.requests) == 1


def test_the_items_are_rules_and_the_reply_is_data(judge: Run) -> None:
    seen: list[Shown] = []

    def look(shown: Shown) -> Any:
        seen.append(shown)
        return {"verdicts": entries(True, True, False)}

    with judged_by(look) as (verifier, _):
        judge(verifier, "4. is always met")
    assert "1. names a source\n2. is polite\n3. invents a quotation" in seen[0].rules
    assert "4. is always met" not in seen[0].rules
    assert "{" not in seen[0].rules.split("Answer with")[0]


def test_separately_there_is_a_request_for_each_item(judge: Run) -> None:
    def decide(shown: Shown) -> Any:
        return {"verdicts": entries("1. names a source" in shown.rules)}

    with judged_by(decide, separately=True) as (verifier, server):
        score = judge(verifier, "a reply")
    assert score.parts == {"item_1": 1.0, "item_2": 0.0, "item_3": 0.0}
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    "verdicts",
    [
        entries(True, True),
        [*entries(True, True, True), *entries(True)],
        entries(True, True, "yes"),
        entries(True, True, 1),
        entries(True, True, None),
        [{"item": i, "reason": "", "met": True} for i in (1, 2, 4)],
        [{"item": i, "reason": "", "met": True} for i in (1.0, 2, 3)],
        [{"item": i, "reason": "", "met": True} for i in (True, 2, 3)],
        [{"item": i, "met": True} for i in (1, 2, 3)],
        [{"item": i, "reason": "", "met": True, "weight": 9} for i in (1, 2, 3)],
        {"1": True, "2": True, "3": True},
        "all met",
        [],
        [None, None, None],
    ],
)
def test_there_has_to_be_one_verdict_on_each_item(judge: Run, verdicts: Any) -> None:
    with (
        judged_by(lambda shown: {"verdicts": verdicts}) as (verifier, _),
        pytest.raises(Unscorable) as caught,
    ):
        judge(verifier, "a reply")
    assert caught.value.cause == "judge:nonsense"


def test_verdicts_in_another_order_count_for_their_items(judge: Run) -> None:
    verdicts = list(reversed(entries(True, False, False)))
    with judged_by(lambda shown: {"verdicts": verdicts}) as (verifier, _):
        assert judge(verifier, "a reply").parts["item_1"] == 1.0


def test_the_majority_decides_each_item_and_a_tie_goes_against_the_reply(judge: Run) -> None:
    rounds = iter([entries(True, True, True), entries(True, False, False)])
    with judged_by(lambda shown: {"verdicts": next(rounds)}, samples=2) as (verifier, _):
        score = judge(verifier, "a reply")
    assert score.parts == {"item_1": 1.0, "item_2": 0.0, "item_3": 1.0}


def test_each_task_may_have_its_own_rubric(judge: Run) -> None:
    rubric = [{"text": "is short"}, {"text": "is rude", "weight": -1}]
    with judged_by(always(True, False), items=None) as (verifier, _):
        assert judge(verifier, "a reply", rubric=rubric).value == 1.0
        assert judge(verifier, "a reply", rubric={"is short": 2, "is rude": -1}).value == 1.0


@pytest.mark.parametrize(
    "rubric",
    [
        None,
        "be good",
        [],
        [{"text": "is rude", "weight": -1}],
        [{"text": "x", "weight": float("nan")}],
        [{"text": "x", "weight": "1"}],
        [{"text": ""}],
        [{"criterion": "x"}],
        ["x"],
        {"x": 0},
        7,
    ],
)
def test_a_tasks_rubric_that_cannot_be_read_is_unscorable(judge: Run, rubric: Any) -> None:
    with (
        judged_by(always(True), items=None) as (verifier, server),
        pytest.raises(Unscorable) as caught,
    ):
        judge(verifier, "a reply", rubric=rubric)
    assert caught.value.cause == "verifier:reference"
    assert server.requests == []


def test_an_empty_reply_is_worth_nothing_and_nobody_is_asked(judge: Run) -> None:
    with judged_by(always(True, True, False)) as (verifier, server):
        assert judge(verifier, "").reward == 0.0
    assert server.requests == []


def test_an_item_without_a_verdict_makes_the_whole_unscorable(judge: Run) -> None:
    def decide(shown: Shown) -> Any:
        if "1. is polite" in shown.rules:
            return Scripted(status=404)
        return {"verdicts": entries(True)}

    with (
        judged_by(decide, separately=True) as (verifier, _),
        pytest.raises(Unscorable) as caught,
    ):
        judge(verifier, "a reply")
    assert caught.value.cause == "judge:not_found"


def test_a_rubric_of_verifiers_takes_it_as_a_part_pitfalls_included(judge: Run) -> None:
    with judged_by(always(True, True, True)) as (verifier, _):
        score = judge(Rubric(Part(verifier, 3.0)), "a reply")
    assert score.reward == pytest.approx(-1.0)
    assert score.value == 0.0


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ({}, "positive"),
        ({"x": -1}, "positive"),
        ({"x": 0}, "not 0"),
        ({" ": 1}, "text"),
        ([Item("x"), Item("x", 2)], "same"),
        (["x"], "Item"),
    ],
)
def test_items_that_make_no_rubric_are_refused(items: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        judge_rubric("m", items, endpoint=Endpoint("http://localhost/v1", "k"))
