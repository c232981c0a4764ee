import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from palestra.endpoint import Endpoint
from palestra.endpoint.scripted import Scripted, ScriptedServer
from palestra.types import Score, Task, Unscorable
from palestra.verifiers import Part, Rubric
from palestra.verifiers.judge_pairwise import PairwiseJudge, judge_pairwise
from palestra.verifiers.judge_scripted import Shown, scripted_judge

Run = Callable[..., Score]
TASK = Task(id="t", messages=({"role": "user", "content": "?"},))


@contextmanager
def judged_by(
    decide: Callable[[Shown], Any], **options: Any
) -> Iterator[tuple[PairwiseJudge, ScriptedServer]]:
    with ScriptedServer(scripted_judge(decide)) as server:
        yield judge_pairwise("m", endpoint=Endpoint(server.base_url, "key"), **options), server


def prefers(good: str) -> Callable[[Shown], dict[str, str]]:
    """A judge without bias: the reply with this word is better."""

    def decide(shown: Shown) -> dict[str, str]:
        has_it = [good in shown.texts[place] for place in ("first", "second")]
        if has_it[0] == has_it[1]:
            return {"verdict": "tie"}
        return {"verdict": "first" if has_it[0] else "second"}

    return decide


@pytest.mark.parametrize(
    ("reply", "value"), [("a good one", 1.0), ("a bad one", 0.0), ("good too", 0.5)]
)
def test_a_win_a_loss_and_a_tie(judge: Run, reply: str, value: float) -> None:
    other = "a good answer" if reply != "a good one" else "an answer"
    with judged_by(prefers("good")) as (verifier, server):
        score = judge(verifier, reply, other)
    assert score.value == value
    assert len(server.requests) == 2


def test_both_orders_are_asked(judge: Run) -> None:
    orders: list[tuple[str, str]] = []

    def look(shown: Shown) -> dict[str, str]:
        orders.append((shown.texts["first"], shown.texts["second"]))
        return {"verdict": "tie"}

    with judged_by(look) as (verifier, _):
        judge(verifier, "ours", "theirs")
    assert sorted(orders) == [("ours", "theirs"), ("theirs", "ours")]


@pytest.mark.parametrize("place", ["first", "second"])
def test_a_judge_that_likes_a_place_makes_ties_and_is_counted(judge: Run, place: str) -> None:
    with judged_by(lambda shown: {"verdict": place}) as (verifier, _):
        assert judge(verifier, "ours", "theirs").value == 0.5
    assert verifier.metrics()["judge_pairwise/order_decided"] == 1


def test_a_win_in_one_order_and_a_tie_in_the_other_is_a_tie(judge: Run) -> None:
    def half(shown: Shown) -> dict[str, str]:
        return {"verdict": "first" if shown.texts["first"] == "ours" else "tie"}

    with judged_by(half) as (verifier, _):
        assert judge(verifier, "ours", "theirs").value == 0.5


def alternating(*preferred: str) -> Callable[[Shown], dict[str, str]]:
    """For each sample, a pair of requests, the reply that is preferred in both orders."""
    lock = threading.Lock()
    remaining = {order: iter(preferred) for order in ("ours first", "theirs first")}

    def decide(shown: Shown) -> dict[str, str]:
        ours_first = shown.texts["first"] == "ours"
        with lock:
            better = next(remaining["ours first" if ours_first else "theirs first"])
        return {"verdict": "first" if (better == "ours") == ours_first else "second"}

    return decide


@pytest.mark.parametrize(
    ("preferred", "value"),
    [
        (["ours", "ours", "ours"], 1.0),
        (["theirs", "theirs", "theirs"], 0.0),
    ],
)
def test_the_majority_of_samples_decides(judge: Run, preferred: list[str], value: float) -> None:
    with judged_by(alternating(*preferred), samples=3) as (verifier, server):
        assert judge(verifier, "ours", "theirs").value == value
    assert len(server.requests) == 6


def test_samples_without_a_majority_are_a_tie(judge: Run) -> None:
    asked: dict[str, int] = {}
    lock = threading.Lock()

    def undecided(shown: Shown) -> dict[str, str]:
        with lock:
            count = asked[shown.texts["first"]] = asked.get(shown.texts["first"], 0) + 1
        # Of each order one says ours, one theirs: whichever are paired, there is no majority.
        ours = "first" if shown.texts["first"] == "ours" else "second"
        theirs = "second" if ours == "first" else "first"
        return {"verdict": ours if count == 1 else theirs}

    with judged_by(undecided, samples=2) as (verifier, _):
        assert judge(verifier, "ours", "theirs").value == 0.5


def test_equal_replies_tie_and_empty_ones_lose_and_nobody_is_asked(judge: Run) -> None:
    with judged_by(lambda shown: {"verdict": "first"}) as (verifier, server):
        assert judge(verifier, "same ", "same").value == 0.5
        assert judge(verifier, " ", "other").value == 0.0
        compared = asyncio.run(verifier.compare(TASK, "x", ""))
    assert compared.better == "first" and compared.asked == ()
    assert server.requests == []


def test_the_other_reply_may_be_in_the_tasks_info(judge: Run) -> None:
    with judged_by(prefers("good"), against="baseline") as (verifier, _):
        assert judge(verifier, "good", baseline="bad").value == 1.0
        with pytest.raises(Unscorable) as caught:
            judge(verifier, "good", "an answer")
    assert caught.value.cause == "verifier:reference"


def test_an_order_without_a_verdict_makes_the_whole_unscorable(judge: Run) -> None:
    def one_sided(shown: Shown) -> Any:
        return {"verdict": "first"} if shown.texts["first"] == "ours" else Scripted(status=401)

    with judged_by(one_sided) as (verifier, _), pytest.raises(Unscorable) as caught:
        judge(verifier, "ours", "theirs")
    assert caught.value.cause == "judge:unauthorized"


@pytest.mark.parametrize("verdict", ["A", "third", None, 1, ["first"]])
def test_another_preference_is_no_verdict(judge: Run, verdict: Any) -> None:
    with (
        judged_by(lambda shown: {"verdict": verdict}) as (verifier, _),
        pytest.raises(Unscorable) as caught,
    ):
        judge(verifier, "ours", "theirs")
    assert caught.value.cause == "judge:nonsense"


def test_a_rubric_takes_it_as_a_part(judge: Run) -> None:
    with judged_by(prefers("good")) as (verifier, _):
        assert judge(Rubric(Part(verifier, 2)), "good", "bad").reward == 2.0


@pytest.mark.parametrize("template", ["{task} {first}", "{second}", "{first} {second} {reply}"])
def test_a_template_without_both_replies_is_refused(template: str) -> None:
    with pytest.raises(ValueError, match="template"):
        judge_pairwise("m", endpoint=Endpoint("http://localhost/v1", "k"), template=template)
