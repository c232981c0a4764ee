import asyncio
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from palestra.tools import State
from palestra.types import Episode, Failure, Message, Score, Task, Unscorable
from palestra.verifiers import check_verifier, exact, number, run_verifier
from palestra.verifiers.context import KNOWN_PARAMETERS, last_reply

TASK = Task(id="t", messages=({"role": "user", "content": "6 * 7?"},), answer="42")
SYSTEM: Message = {"role": "system", "content": "Be brief."}


def judge(
    verifier: Callable[..., Any],
    reply: str = "42",
    *,
    task: Task = TASK,
    state: State | None = None,
    timeout_s: float = 10.0,
) -> Score:
    messages = [SYSTEM, *task.messages, {"role": "assistant", "content": reply}]
    return asyncio.run(
        run_verifier(verifier, task=task, messages=messages, state=state, timeout_s=timeout_s)
    )


def test_a_verifier_gets_what_its_parameters_name() -> None:
    seen: dict[str, Any] = {}

    def verifier(stop_reason: str, messages: Any, state: Any, task: Any, *, answer: str) -> bool:
        seen.update(stop=stop_reason, messages=messages, state=state, task=task, answer=answer)
        return True

    state = State()
    assert judge(verifier, state=state).value == 1.0
    assert seen["messages"][-1] == {"role": "assistant", "content": "42"}
    assert (seen["stop"], seen["answer"]) == ("answer", "42")
    assert seen["state"] is state
    assert seen["task"] is TASK


def test_a_verifier_with_keyword_arguments_gets_everything() -> None:
    def verifier(**available: Any) -> bool:
        return set(available) == set(KNOWN_PARAMETERS)

    assert judge(verifier).value == 1.0


def test_reply_and_answer_may_be_given() -> None:
    run = run_verifier(number, task=TASK, messages=(), reply="it is 43", answer="43")
    assert asyncio.run(run).value == 1.0


def test_the_shipped_verifiers_run() -> None:
    assert judge(number, "It is 42.").value == 1.0
    assert judge(exact, "It is 42.").value == 0.0


def test_async_verifiers_run_on_the_event_loop_and_plain_ones_do_not() -> None:
    async def inline(reply: str) -> bool:
        return threading.current_thread() is threading.main_thread()

    def threaded(reply: str) -> bool:
        return threading.current_thread() is threading.main_thread()

    assert (judge(inline).value, judge(threaded).value) == (1.0, 0.0)


@dataclass  # unhashable
class Judge:
    name: str

    async def __call__(self, reply: str) -> float:
        return 0.5


def test_an_object_with_an_async_call_is_a_verifier() -> None:
    check_verifier(Judge("j"))
    assert judge(Judge("j")).value == 0.5


_SCORE = Score(value=0.25, reward=-1.0)


@pytest.mark.parametrize(
    ("returned", "score"),
    [
        (True, Score(value=1.0)),
        (False, Score(value=0.0)),
        (1, Score(value=1.0)),
        (0.25, Score(value=0.25)),
        (_SCORE, _SCORE),
        (np.float32(0.5), Score(value=0.5)),
        (np.bool_(True), Score(value=1.0)),
        (np.array(0.5), Score(value=0.5)),
    ],
)
def test_scores_numbers_and_bools_are_verdicts(returned: Any, score: Score) -> None:
    assert judge(lambda reply: returned) == score


@pytest.mark.parametrize(
    ("returned", "detail"),
    [
        (1.5, "a score must be between 0 and 1, got 1.5"),
        (-1, "a score must be between 0 and 1, got -1"),
        (float("inf"), "a score must be between 0 and 1, got inf"),
        (float("nan"), "a score must be between 0 and 1, got nan"),
        (None, "a verifier returns a Score, a bool or a number from 0 to 1, got None"),
        ("1", "a verifier returns a Score, a bool or a number from 0 to 1, got '1'"),
        (1 + 0j, "a verifier returns a Score, a bool or a number from 0 to 1, got (1+0j)"),
    ],
)
def test_anything_else_is_a_failure_of_the_verifier(returned: Any, detail: str) -> None:
    with pytest.raises(Failure) as raised:
        judge(lambda reply: returned)
    assert (raised.value.cause, raised.value.detail) == ("verifier", detail)


# Whose fault it is


@pytest.mark.parametrize(
    "error", [ValueError("bad"), MemoryError(), RecursionError(), KeyError("x"), SystemExit(1)]
)
def test_an_answer_that_makes_the_verifier_raise_is_wrong(error: BaseException) -> None:
    def verifier(reply: str) -> bool:
        if reply:
            raise error
        return False

    score = judge(verifier)
    assert score.value == 0.0
    assert score.explanation.startswith(
        f"the verifier failed on this answer: {type(error).__name__}"
    )


def test_an_answer_that_makes_the_verifier_hang_is_wrong() -> None:
    release = threading.Event()

    def verifier(reply: str) -> bool:
        return bool(reply) and release.wait(30)

    start = time.perf_counter()
    score = judge(verifier, timeout_s=0.1)
    release.set()
    assert time.perf_counter() - start < 5
    assert score == Score(
        value=0.0, explanation="the verifier failed on this answer: no verdict after 0.1 s"
    )


@pytest.mark.parametrize("reply", ["nan", "inf", "-inf", "1.5", "-0.1"])
def test_a_verdict_out_of_range_is_the_verifiers_fault_whatever_the_answer(reply: str) -> None:
    def as_number(reply: str) -> float:
        return float(reply or 0)

    def as_score(reply: str) -> Score:
        return Score(value=float(reply or 0))

    for verifier in (as_number, as_score):
        with pytest.raises(Failure, match="must be between 0 and 1, got") as raised:
            judge(verifier, reply)
        assert raised.value.cause == "verifier"


def test_a_score_of_a_reward_that_is_not_finite_is_the_verifiers_fault() -> None:
    with pytest.raises(Failure, match="reward must be a finite number, got inf"):
        judge(lambda reply: Score(value=0.5, reward=float("inf")))


def test_an_answer_that_makes_a_message_verifier_raise_is_wrong() -> None:
    def verifier(messages: Any) -> bool:
        prompt, last = messages[:-1], messages[-1]
        assert prompt == [SYSTEM, *TASK.messages]
        return bool(last["content"]) and bool(1 / 0)

    assert judge(verifier).value == 0.0


@pytest.mark.parametrize("is_async", [True, False])
def test_a_verifier_that_raises_on_any_answer_is_broken(is_async: bool) -> None:
    def plain(reply: str) -> bool:
        raise KeyError("reference")

    async def coroutine(reply: str) -> bool:
        raise KeyError("reference")

    with pytest.raises(Failure) as raised:
        judge(coroutine if is_async else plain)
    assert (raised.value.cause, raised.value.detail) == ("verifier", "KeyError: 'reference'")
    assert isinstance(raised.value.__cause__, KeyError)


@pytest.mark.parametrize("is_async", [True, False])
def test_a_verifier_that_hangs_on_any_answer_is_broken(is_async: bool) -> None:
    release = threading.Event()

    def plain(reply: str) -> bool:
        return release.wait(30)

    async def coroutine(reply: str) -> bool:
        await asyncio.sleep(30)
        return True

    with pytest.raises(Failure, match=r"no verdict after 0\.05 s"):
        judge(coroutine if is_async else plain, timeout_s=0.05)
    release.set()


def test_a_reference_that_makes_the_verifier_raise_is_not_the_answers_fault() -> None:
    def verifier(reply: str, answer: str) -> bool:
        return int(answer) == len(reply)

    with pytest.raises(Failure, match="ValueError: invalid literal"):
        judge(verifier, task=Task(id="t", messages=TASK.messages, answer="forty-two"))


def test_an_exception_that_does_not_come_back_was_a_hiccup() -> None:
    tries = []

    def verifier(reply: str) -> bool:
        tries.append(reply)
        if len(tries) == 1:
            raise ConnectionError("the judge restarts")
        return reply == "42"

    assert judge(verifier).value == 1.0
    assert tries == ["42", "", "42"]


@pytest.mark.parametrize("error", [Unscorable("judge down"), Failure("judge", "gone")])
def test_a_verdict_on_the_episode_passes(error: Exception) -> None:
    def verifier(reply: str) -> bool:
        raise error

    with pytest.raises(type(error)) as raised:
        judge(verifier)
    assert raised.value is error


def test_the_verifiers_own_timeout_error_is_an_exception_like_others() -> None:
    async def verifier(reply: str) -> bool:
        raise TimeoutError("the judge is slow")

    with pytest.raises(Failure, match="TimeoutError: the judge is slow"):
        judge(verifier)


def test_cancelling_passes() -> None:
    async def verifier(reply: str) -> bool:
        await asyncio.sleep(30)
        return True

    async def main() -> None:
        task = asyncio.create_task(run_verifier(verifier, task=TASK, messages=TASK.messages))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())


# What it is given


def test_the_episode_is_the_conversation_as_turns() -> None:
    seen: list[Episode] = []

    def look(episode: Episode) -> bool:
        seen.append(episode)
        return True

    call: Message = {"role": "assistant", "content": "", "tool_calls": []}
    result: Message = {"role": "tool", "tool_call_id": "call_0", "content": "42"}
    last: Message = {"role": "assistant", "content": "42"}
    messages = [SYSTEM, *TASK.messages, call, result, last]
    assert asyncio.run(run_verifier(look, task=TASK, messages=messages)).value == 1.0
    (episode,) = seen
    assert episode.task is TASK
    assert episode.prompt == (SYSTEM, *TASK.messages)
    assert [turn.message for turn in episode.turns] == [call, last]
    assert [turn.observation for turn in episode.turns] == [(result,), ()]
    assert [turn.parent for turn in episode.turns] == [None, 0]
    assert episode.messages == messages


@pytest.mark.parametrize(
    ("messages", "reply"),
    [
        ([], ""),
        ([{"role": "user", "content": "hi"}], ""),
        ([{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}], "a"),
        ([{"role": "assistant", "content": "a"}, {"role": "assistant", "content": None}], ""),
        ([{"role": "assistant", "tool_calls": []}], ""),
        ([{"role": "assistant", "reasoning_content": "hm", "content": "a"}], "a"),
        (
            [{"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "image"}]}],
            "a",
        ),
    ],
)
def test_the_reply_is_the_text_of_the_last_assistant_message(
    messages: list[Message], reply: str
) -> None:
    assert last_reply(messages) == reply


def _positional(reply: str, /) -> bool:
    return True


@pytest.mark.parametrize(
    ("verifier", "expected"),
    [
        (lambda completion: 1, r'asks for "completion", but it can only be given task, answer, r'),
        (lambda anwser: 1, r'asks for "anwser" \(did you mean "answer"\?\)'),
        (lambda episodes: 1, r"judges all episodes of a task together: make it a part of a Rubric"),
        (lambda *replies: 1, r'cannot take "\*replies": its arguments are passed by name'),
        (_positional, "_positional cannot take .* passed by name"),
        ("number", "a verifier must be a function, got 'number'"),
    ],
)
def test_a_verifier_that_cannot_be_called_is_refused_early(verifier: Any, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        check_verifier(verifier)


def test_parameters_with_defaults_may_have_any_name() -> None:
    def verifier(reply: str, tolerance: float = 0.5) -> float:
        return tolerance

    check_verifier(verifier)
    assert judge(verifier).value == 0.5
