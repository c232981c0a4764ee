import asyncio
import math
import random
from collections.abc import Callable
from typing import Any

import pytest

from palestra.endpoint import Endpoint
from palestra.endpoint.scripted import Scripted, ScriptedServer
from palestra.types import Task
from palestra.verifiers.judge import Judge, judge
from palestra.verifiers.judge_agreement import (
    JudgedPair,
    JudgedReply,
    measure_judge,
    measure_pairwise_judge,
)
from palestra.verifiers.judge_pairwise import PairwiseJudge, judge_pairwise
from palestra.verifiers.judge_scripted import Shown, scripted_judge
from palestra.verifiers.judge_statistics import agreement, correlation, self_consistency

TASK = Task(id="t", messages=({"role": "user", "content": "?"},), answer="42")


def table(both_yes: int, only_a: int, only_b: int, both_no: int) -> tuple[list[bool], list[bool]]:
    cells = [(True, True)] * both_yes + [(True, False)] * only_a
    cells += [(False, True)] * only_b + [(False, False)] * both_no
    return [a for a, _ in cells], [b for _, b in cells]


def test_kappa_of_a_table_worked_by_hand() -> None:
    # 20 + 15 of 50 agree; by chance 0.5 * 0.6 + 0.5 * 0.4 = 0.5
    found = agreement(*table(20, 5, 10, 15))
    assert found.count == 50
    assert found.accuracy == pytest.approx(0.7)
    assert found.kappa == pytest.approx(0.4)


def test_the_interval_of_kappa_is_that_of_the_delta_method_worked_by_hand() -> None:
    # Shares 0.4, 0.1 | 0.2, 0.3; margins 0.5, 0.5 of the one and 0.6, 0.4 of the other.
    found = agreement(*table(20, 5, 10, 15))
    diagonal = 0.4 * (1 - 1.1 * 0.6) ** 2 + 0.3 * (1 - 0.9 * 0.6) ** 2
    off = 0.6**2 * (0.1 * (0.6 + 0.5) ** 2 + 0.2 * (0.4 + 0.5) ** 2)
    variance = (diagonal + off - (0.4 - 0.5 * 0.6) ** 2) / (50 * 0.5**2)
    assert found.kappa_low == pytest.approx(0.4 - 1.959964 * math.sqrt(variance), abs=1e-6)
    assert found.kappa_high == pytest.approx(0.4 + 1.959964 * math.sqrt(variance), abs=1e-6)


def test_the_interval_of_kappa_holds_what_resampling_gives() -> None:
    ours, theirs = table(200, 50, 100, 150)
    found = agreement(ours, theirs)
    rng = random.Random(0)
    pairs = list(zip(ours, theirs, strict=True))
    kappas = []
    for _ in range(1000):
        drawn = rng.choices(pairs, k=len(pairs))
        kappas.append(agreement([a for a, _ in drawn], [b for _, b in drawn]).kappa)
    kappas.sort()
    assert found.kappa_low == pytest.approx(kappas[25], abs=0.012)
    assert found.kappa_high == pytest.approx(kappas[975], abs=0.012)


@pytest.mark.parametrize(
    ("ours", "theirs", "kappa"),
    [
        ("abcabc", "abcabc", 1.0),
        ("aabb", "bbaa", -1.0),
        ("aabb", "abab", 0.0),
        ("aaab", "aaaa", 0.0),
        ("aaaa", "aaaa", math.nan),
        ("", "", math.nan),
    ],
)
def test_kappa_at_its_ends(ours: str, theirs: str, kappa: float) -> None:
    assert agreement(ours, theirs).kappa == pytest.approx(kappa, nan_ok=True)


def test_raters_of_different_things_are_refused() -> None:
    with pytest.raises(ValueError, match="3 and 2"):
        agreement("abc", "ab")


def test_self_consistency_is_the_share_of_equal_pairs() -> None:
    # 1 of 3 pairs, 1 of 1; single verdicts and missing ones make no pair
    assert self_consistency([(1, 1, 0), (2, 2, None), (3, None, None)]) == 2 / 4
    assert math.isnan(self_consistency([(1,), (2,)]))


def test_correlation_by_hand() -> None:
    assert correlation([1, 2, 3], [2, 4, 6]) == pytest.approx(1.0)
    assert correlation([1, 2, 3, 4], [1, -1, -1, 1]) == pytest.approx(0.0)
    assert math.isnan(correlation([1, 1], [1, 2]))


def replies(*labelled: tuple[str, float]) -> list[JudgedReply]:
    return [JudgedReply(task=TASK, reply=reply, label=label) for reply, label in labelled]


def pointwise(server: ScriptedServer, **options: Any) -> Judge:
    return judge("m", endpoint=Endpoint(server.base_url, "key"), **options)


def pairwise(server: ScriptedServer, **options: Any) -> PairwiseJudge:
    return judge_pairwise("m", endpoint=Endpoint(server.base_url, "key"), **options)


def says(condition: Callable[[str], bool]) -> Callable[[Shown], dict[str, str]]:
    return lambda shown: {"verdict": "yes" if condition(shown.texts["reply"]) else "no"}


def test_a_judge_that_is_right_agrees_with_the_labels() -> None:
    cases = replies(("42", 1.0), ("it is 42", 1.0), ("41", 0.0), ("none of these", 0.0))
    with ScriptedServer(scripted_judge(says(lambda reply: "42" in reply))) as server:
        report = asyncio.run(measure_judge(pointwise(server), cases, repeats=2))
    assert report.agreement.accuracy == report.agreement.kappa == 1.0
    assert report.self_consistency == 1.0
    assert report.unscorable == 0
    assert math.isnan(report.length_bias)  # no error, so none that goes with length


def test_a_judge_that_likes_length_is_found_out() -> None:
    cases = replies(("42", 1.0), ("4" * 200, 0.0), ("41", 0.0), ("42 " * 100, 1.0))
    with ScriptedServer(scripted_judge(says(lambda reply: len(reply) > 50))) as server:
        report = asyncio.run(measure_judge(pointwise(server), cases))
    assert report.agreement.accuracy == 0.5
    assert report.agreement.kappa == 0.0
    assert report.length_bias > 0.5


def test_what_has_no_verdict_is_counted_and_left_out() -> None:
    def partly(shown: Shown) -> Any:
        broken = shown.texts["reply"] == "broken"
        return Scripted(status=400, error={"param": "model"}) if broken else {"verdict": "yes"}

    with ScriptedServer(scripted_judge(partly)) as server:
        report = asyncio.run(
            measure_judge(pointwise(server), replies(("42", 1.0), ("broken", 1.0), ("41", 0.0)))
        )
    assert report.unscorable == 1
    assert report.agreement.count == 2
    assert "cases: 2, 1 unscorable" in report.lines()


def test_a_judge_that_wavers_is_inconsistent_with_itself() -> None:
    answers = iter(["yes", "no", "yes", "yes"])
    with ScriptedServer(scripted_judge(lambda shown: {"verdict": next(answers)})) as server:
        report = asyncio.run(measure_judge(pointwise(server), replies(("42", 1.0)), repeats=4))
    assert report.self_consistency == 0.5  # 3 of 6 pairs


def test_a_judge_is_compared_with_another_in_place_of_labels() -> None:
    cases = [JudgedReply(task=TASK, reply=reply) for reply in ("42", "forty-two", "41", "no")]
    strict = scripted_judge(says(lambda reply: reply == "42"))
    lenient = scripted_judge(says(lambda reply: reply in ("42", "forty-two")))
    with ScriptedServer(strict) as one, ScriptedServer(lenient) as other:
        report = asyncio.run(measure_judge(pointwise(one), cases, against=pointwise(other)))
    assert report.agreement.accuracy == 0.75
    assert report.agreement.kappa == pytest.approx(0.5)


def pairs(*labelled: tuple[str, str, str | None]) -> list[JudgedPair]:
    return [JudgedPair(task=TASK, first=a, second=b, label=label) for a, b, label in labelled]


def longer_first(shown: Shown) -> dict[str, str]:
    first, second = len(shown.texts["first"]), len(shown.texts["second"])
    return {"verdict": "tie" if first == second else "first" if first > second else "second"}


def test_a_pairwise_judge_that_likes_length_is_found_out() -> None:
    cases = pairs(("right", "wrong, but at length", "first"), ("long and right", "no", "first"))
    with ScriptedServer(scripted_judge(longer_first)) as server:
        report = asyncio.run(measure_pairwise_judge(pairwise(server), cases))
    assert report.agreement.accuracy == 0.5
    assert report.length_bias == pytest.approx(0.5)  # always the longer; the labels half the time
    assert report.order_decided == 0.0
    assert math.isnan(report.position_bias)


@pytest.mark.parametrize(("place", "bias"), [("first", 0.5), ("second", -0.5)])
def test_a_pairwise_judge_that_likes_a_place_is_found_out(place: str, bias: float) -> None:
    with ScriptedServer(scripted_judge(lambda shown: {"verdict": place})) as server:
        report = asyncio.run(
            measure_pairwise_judge(pairwise(server), pairs(("a", "b", "first"), ("c", "d", "tie")))
        )
    assert (report.order_decided, report.position_bias) == (1.0, bias)
    assert report.agreement.accuracy == 0.5  # all ties


def test_pairwise_judges_are_compared_with_each_other() -> None:
    cases = pairs(("aa", "b", None), ("a", "bb", None), ("a", "b", None))
    with (
        ScriptedServer(scripted_judge(longer_first)) as one,
        ScriptedServer(scripted_judge(longer_first)) as other,
    ):
        report = asyncio.run(
            measure_pairwise_judge(pairwise(one), cases, against=pairwise(other), repeats=2)
        )
    assert report.agreement.kappa == report.self_consistency == 1.0


@pytest.mark.parametrize(
    ("cases", "options", "message"),
    [
        ([], {}, "no cases"),
        (replies(("42", 2.0)), {}, "from 0 to 1"),
        ([JudgedReply(task=TASK, reply="42")], {}, "from 0 to 1"),
        (replies(("42", 1.0)), {"repeats": 0}, "repeats"),
    ],
)
def test_cases_that_cannot_be_measured_are_refused(
    cases: list[JudgedReply], options: dict[str, Any], message: str
) -> None:
    verifier = judge("m", endpoint=Endpoint("http://localhost/v1", "k"))
    with pytest.raises(ValueError, match=message):
        asyncio.run(measure_judge(verifier, cases, **options))
