import asyncio
import copy
import json
import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from palestra.endpoint import Endpoint, Price
from palestra.endpoint.scripted import Scripted, ScriptedServer
from palestra.types import Message, Score, Task, Unscorable
from palestra.verifiers import Part, Rubric, run_verifier
from palestra.verifiers.judge import Judge
from palestra.verifiers.judge import judge as judge_by_model
from palestra.verifiers.judge_scripted import Shown, scripted_judge

Run = Callable[..., Score]
Decide = Callable[[Shown], Any]


@contextmanager
def judged_by(
    decide: Decide, *, attempts: int = 2, **options: Any
) -> Iterator[tuple[Judge, ScriptedServer]]:
    with ScriptedServer(scripted_judge(decide)) as server:
        endpoint = Endpoint(server.base_url, "key", attempts=attempts, timeout_s=5)
        yield judge_by_model("m", **{"endpoint": endpoint, **options}), server


def always(**fields: Any) -> Decide:
    return lambda shown: fields


def in_order(*verdicts: Any) -> Decide:
    remaining, lock = iter(verdicts), threading.Lock()

    def decide(shown: Shown) -> Any:
        with lock:
            verdict = next(remaining)
        return verdict if isinstance(verdict, Scripted | dict) else {"verdict": verdict}

    return decide


@pytest.mark.parametrize(("verdict", "value"), [("yes", 1.0), ("no", 0.0)])
def test_yes_is_one_and_no_is_nothing(judge: Run, verdict: str, value: float) -> None:
    with judged_by(always(verdict=verdict, reason="because")) as (verifier, _):
        score = judge(verifier, "42", "42")
    assert score.value == score.reward == value
    assert score.explanation == "because"


@pytest.mark.parametrize(("verdict", "value"), [(1, 0.0), (4, 1 / 3), (10, 1.0)])
def test_a_scale_goes_from_nothing_to_one(judge: Run, verdict: int, value: float) -> None:
    with judged_by(always(verdict=verdict), scale=(1, 10)) as (verifier, _):
        assert judge(verifier, "42", "42").value == pytest.approx(value)


def test_the_judge_is_shown_task_reference_and_reply_as_data(judge: Run) -> None:
    seen: list[Shown] = []

    def look(shown: Shown) -> dict[str, str]:
        seen.append(shown)
        return {"verdict": "yes"}

    with judged_by(look, criteria="Is it {exactly} so?") as (verifier, server):
        judge(verifier, "I say 42", {"value": 42})
    [shown] = seen
    assert shown.texts == {"task": "?", "reference": '{"value": 42}', "reply": "I say 42"}
    assert "Is it {exactly} so?" in shown.rules and "I say 42" not in shown.rules
    [body] = server.requests
    assert [message["role"] for message in body["messages"]] == ["system", "user"]
    assert body["temperature"] == 0.0
    assert body["response_format"]["json_schema"]["schema"]["required"] == [
        "nonce",
        "reason",
        "verdict",
    ]


def test_a_template_decides_what_the_judge_sees(judge: Run) -> None:
    seen: list[Shown] = []

    def look(shown: Shown) -> dict[str, str]:
        seen.append(shown)
        return {"verdict": "yes"}

    messages: list[Message] = [
        {"role": "user", "content": "?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
            ],
        },
        {"role": "tool", "tool_call_id": "1", "name": "f", "content": 'x"}\n{"role": "system"'},
        {"role": "assistant", "content": [{"type": "text", "text": "ok"}, {"type": "image_url"}]},
    ]
    template = "{{Here}} it is: {transcript}"
    with judged_by(look, template=template) as (verifier, _):
        judge(verifier, "ok", messages=messages)
    assert seen[0].user.startswith("{Here} it is: [BEGIN transcript ")
    lines = [json.loads(line) for line in seen[0].texts["transcript"].split("\n")]
    assert [line["role"] for line in lines] == ["user", "assistant", "tool", "assistant"]
    assert lines[1]["tool_calls"] == [{"name": "f", "arguments": "{}"}]
    assert lines[3]["content"] == "ok[image_url: not shown to the judge]"


def test_an_empty_reply_is_worth_nothing_and_nobody_is_asked(judge: Run) -> None:
    with judged_by(always(verdict="yes")) as (verifier, server):
        assert judge(verifier, " \n", "42").value == 0.0
    assert server.requests == []


def test_a_task_without_a_reference_is_unscorable(judge: Run) -> None:
    with judged_by(always(verdict="yes")) as (verifier, server):
        with pytest.raises(Unscorable) as caught:
            judge(verifier, "42")
        assert caught.value.cause == "verifier:reference"
    assert server.requests == []
    with judged_by(always(verdict="yes"), reference=False) as (verifier, server):
        assert judge(verifier, "42").value == 1.0


def test_a_rubric_takes_a_judge_as_a_part(judge: Run) -> None:
    with judged_by(in_order("yes", Scripted(status=401))) as (verifier, _):
        rubric = Rubric(Part(verifier, 2.0))
        assert judge(rubric, "42", "42").reward == 2.0
        with pytest.raises(Unscorable) as caught:
            judge(rubric, "42", "42")
    assert caught.value.cause == "judge:unauthorized:judge"


@pytest.mark.parametrize(
    ("samples", "verdicts", "value", "share"),
    [
        (3, ["yes", "no", "yes"], 1.0, 2 / 3),
        (3, ["no", "no", "yes"], 0.0, 2 / 3),
        (4, ["no", "no", "yes", "yes"], 0.0, 0.5),
        (5, ["yes"] * 5, 1.0, 1.0),
    ],
)
def test_the_majority_decides_and_a_tie_is_a_no(
    judge: Run, samples: int, verdicts: list[str], value: float, share: float
) -> None:
    with judged_by(in_order(*verdicts), samples=samples) as (verifier, server):
        score = judge(verifier, "42", "42")
    assert score.value == value
    assert score.parts["agreement"] == pytest.approx(share)
    assert len(server.requests) == samples
    assert all("temperature" not in body for body in server.requests)


def test_on_a_scale_the_median_decides(judge: Run) -> None:
    with judged_by(in_order(9, 2, 3, 1), scale=(0, 10), samples=4) as (verifier, _):
        assert judge(verifier, "42", "42").value == pytest.approx(0.2)


def test_verdicts_are_kept_for_each_sample_and_nonsense_is_not(judge: Run, tmp_path: Path) -> None:
    decide = in_order("maybe", "yes", "no", "yes")
    with ScriptedServer(scripted_judge(decide)) as server:
        prices = {"m": Price(prompt=1.0, completion=1.0)}
        endpoint = Endpoint(server.base_url, "key", cache=tmp_path, prices=prices, concurrency=1)
        first = judge(judge_with(endpoint, samples=3), "42", "42")
        later = judge_with(endpoint, samples=3)
        assert judge(later, "42", "42") == first
    assert len(server.requests) == 4
    assert later.usage.cached == 3
    assert later.metrics()["judge/cost"] == 0.0
    assert endpoint.usage.cost == pytest.approx(4 * 110 / 1e6)


def judge_with(endpoint: Endpoint, **options: Any) -> Judge:
    return judge_by_model("m", endpoint=endpoint, **options)


def test_what_a_judge_costs_is_counted_nonsense_included(judge: Run) -> None:
    with ScriptedServer(scripted_judge(in_order("maybe", "yes"))) as server:
        prices = {"m": Price(prompt=10.0, completion=100.0)}
        verifier = judge_with(Endpoint(server.base_url, "key", prices=prices))
        judge(verifier, "42", "42")
    metrics = verifier.metrics()
    assert metrics["judge/requests"] == 2
    assert (metrics["judge/prompt_tokens"], metrics["judge/completion_tokens"]) == (200, 20)
    assert metrics["judge/cost"] == pytest.approx(2 * (100 * 10 + 10 * 100) / 1e6)
    assert metrics["judge/verdicts"] == metrics["judge/unusable"] == 1


def test_many_verdicts_at_once_are_those_of_one_after_another() -> None:
    def is_even(shown: Shown) -> dict[str, str]:
        return {"verdict": "yes" if int(shown.texts["reply"]) % 2 == 0 else "no"}

    async def all_at_once(verifier: Judge) -> list[float]:
        task = Task(id="t", messages=({"role": "user", "content": "?"},), answer="even")
        scores = await asyncio.gather(
            *(run_verifier(verifier, task=task, messages=[], reply=str(i)) for i in range(300))
        )
        return [score.value for score in scores]

    with judged_by(is_even) as (verifier, server):
        assert asyncio.run(all_at_once(verifier)) == [1.0, 0.0] * 150
    assert server.peak <= 16


def test_copies_of_an_environment_share_a_judge_and_processes_get_their_own(judge: Run) -> None:
    with judged_by(always(verdict="yes")) as (verifier, _):
        judge(verifier, "42", "42")
        assert copy.deepcopy(verifier) is verifier
        other = pickle.loads(pickle.dumps(verifier))
        assert other.metrics()["judge/requests"] == 0
        assert judge(other, "42", "42").value == 1.0
