import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import palestra
from palestra.endpoint import Endpoint
from palestra.endpoint.scripted import Scripted, ScriptedServer
from palestra.types import Failure, Outcome, Score, Task, Unscorable
from palestra.verifiers.judge import Judge
from palestra.verifiers.judge import judge as judge_by_model
from palestra.verifiers.judge_scripted import Shown, scripted_judge

Run = Callable[..., Score]
TASK = Task(id="t", messages=({"role": "user", "content": "?"},), answer="42")
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


def judge_with(endpoint: Endpoint, **options: Any) -> Judge:
    return judge_by_model("m", endpoint=endpoint, **options)


NOT_VERDICTS: list[Any] = [
    "I would say yes.",
    "",
    '{"verdict": "yes", "reason": ""}',
    {"verdict": "maybe"},
    {"verdict": True},
    {"verdict": ["yes"]},
    {"verdict": "yes", "reason": 7},
    {"verdict": "yes", "confidence": 1},
    {"nonce": "0" * 32, "verdict": "yes"},
    {"nonce": None, "verdict": "yes"},
    {"score": 1},
]


@pytest.mark.parametrize("nonsense", NOT_VERDICTS)
def test_nonsense_is_asked_again_and_then_unscorable_never_nothing(
    judge: Run, nonsense: Any
) -> None:
    with (
        judged_by(lambda shown: nonsense) as (verifier, server),
        pytest.raises(Unscorable) as caught,
    ):
        judge(verifier, "42", "42")
    assert caught.value.cause == "judge:nonsense"
    assert len(server.requests) == 3
    nonces = {body["messages"][0]["content"] for body in server.requests}
    assert len(nonces) == 3  # a new one each time
    assert verifier.metrics()["judge/unusable"] == 3
    assert verifier.metrics()["judge/unscorable/nonsense"] == 1


@pytest.mark.parametrize("number", [0, 11, 4.5, "4", True, None])
def test_a_number_off_the_scale_is_no_verdict(judge: Run, number: Any) -> None:
    with (
        judged_by(lambda shown: {"verdict": number}, scale=(1, 10)) as (verifier, _),
        pytest.raises(Unscorable) as caught,
    ):
        judge(verifier, "42", "42")
    assert caught.value.cause == "judge:nonsense"


def test_a_verdict_after_nonsense_counts(judge: Run) -> None:
    with judged_by(in_order("maybe", "no", "yes")) as (verifier, server):
        assert judge(verifier, "42", "42").value == 0.0
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("trouble", "kind"),
    [
        (Scripted(status=401), "unauthorized"),
        (Scripted(status=404), "not_found"),
        (Scripted(status=400), "rejected"),
        (Scripted(status=429), "rate_limited"),
        (Scripted(status=429, headers={"retry-after": "9999"}), "rate_limited"),
        (Scripted(status=500), "server"),
        (Scripted(raw="<html>"), "malformed"),
        (Scripted(cut_after=5), "unreachable"),
        (Scripted(text='{"verdict": "y', finish_reason="length"), "cut"),
        (Scripted(text="", refusal="I cannot judge this"), "refused"),
        (Scripted(text="", finish_reason="content_filter"), "refused"),
    ],
)
def test_whatever_is_wrong_with_the_judge_is_unscorable_with_the_cause(
    judge: Run, trouble: Scripted, kind: str
) -> None:
    with judged_by(lambda shown: trouble) as (verifier, _), pytest.raises(Unscorable) as caught:
        judge(verifier, "42", "42")
    assert caught.value.cause == f"judge:{kind}"
    assert verifier.metrics()[f"judge/unscorable/{kind}"] == 1


def test_a_judge_that_takes_too_long_is_unscorable_and_not_the_answers_fault(judge: Run) -> None:
    slow = Scripted(delay_s=30)
    with (
        judged_by(lambda shown: slow, timeout_s=0.5) as (verifier, _),
        pytest.raises(Unscorable) as caught,
    ):
        judge(verifier, "42", "42", timeout_s=0.2)  # the environment's limit is not the judge's
    assert caught.value.cause == "judge:timeout"


def test_a_judge_that_is_not_there_is_unscorable(judge: Run) -> None:
    with ScriptedServer(lambda body: "") as server:
        gone = server.base_url
    with pytest.raises(Unscorable) as caught:
        judge(judge_with(Endpoint(gone, "key", attempts=2)), "42", "42")
    assert caught.value.cause == "judge:unreachable"


def test_a_bug_in_the_judge_is_a_failure_and_not_the_answers_fault(judge: Run) -> None:
    with judged_by(always(verdict="yes")) as (verifier, _):
        verifier._template = "{nobody}"
        with pytest.raises(Failure) as caught:
            judge(verifier, "42", "42")
    assert caught.value.cause == "judge"


def in_an_env(verifier: Judge) -> palestra.ToolEnv:
    return palestra.ToolEnv(tasks=[{"prompt": "6*7?", "answer": "42"}], verifier=verifier)


def test_an_environment_takes_a_judge_and_survives_its_loss() -> None:
    with judged_by(in_order("yes", Scripted(status=401))) as (verifier, _):
        env = in_an_env(verifier)
        env.reset(seed=0)
        _, reward, terminated, _, info = env.step("42")
        assert (reward, terminated) == (1.0, True)
        env.reset(seed=0)
        _, reward, terminated, truncated, info = env.step("42")
        assert (reward, truncated) == (0.0, True)
        assert info["outcome"] == Outcome.UNSCORABLE
        env.close()


@pytest.mark.parametrize(("lost", "is_scored"), [(1, True), (2, False)])
def test_more_than_half_of_the_samples_have_to_be_there(
    judge: Run, lost: int, is_scored: bool
) -> None:
    verdicts = [Scripted(status=401)] * lost + ["yes"] * (3 - lost)
    with judged_by(in_order(*verdicts), samples=3) as (verifier, _):
        if is_scored:
            assert judge(verifier, "42", "42").value == 1.0
        else:
            with pytest.raises(Unscorable):
                judge(verifier, "42", "42")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"template": "{task} {reply} {nobody}"}, "nobody"),
        ({"template": "{task}"}, "reply"),
        ({"template": "{reply"}, "malformed"),
        ({"template": "{reply!r}"}, "conversion"),
        ({"template": "{reply.__class__}"}, "__class__"),
        ({"scale": (5, 5)}, "scale"),
        ({"scale": (1, 1000)}, "scale"),
        ({"samples": 0}, "samples"),
        ({"samples": 3, "temperature": 0.0}, "temperature"),
        ({"base_url": "http://localhost/v1"}, "either"),
        ({"endpoint": None}, "OPENAI_BASE_URL"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"name": ""}, "name"),
    ],
)
def test_what_is_wrong_with_a_judge_is_said_when_it_is_made(
    monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], message: str
) -> None:
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    endpoint = Endpoint("http://localhost/v1", "key")
    with pytest.raises(ValueError, match=message):
        judge_by_model("m", **{"endpoint": endpoint, **options})


def test_a_loop_that_stands_still_is_not_the_answers_fault() -> None:
    async def stand_still(verifier: Judge) -> None:
        asyncio.get_running_loop().call_later(0.1, time.sleep, 1.0)
        async with asyncio.timeout(0.5):  # is over, as is the judge's, when the loop goes on
            await verifier(TASK, "42", "42")

    with (
        judged_by(lambda shown: Scripted(delay_s=30), timeout_s=0.3) as (verifier, _),
        pytest.raises(Unscorable) as caught,
    ):
        asyncio.run(stand_still(verifier))
    assert caught.value.cause == "judge:timeout"


def test_whoever_asks_may_cancel() -> None:
    async def cancel(verifier: Judge) -> None:
        async with asyncio.timeout(0.2):
            await verifier(TASK, "42", "42")

    with (
        judged_by(lambda shown: Scripted(delay_s=30)) as (verifier, _),
        pytest.raises(TimeoutError),
    ):
        asyncio.run(cancel(verifier))
