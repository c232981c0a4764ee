"""A session answers with what the trainer wants sampled, and keeps what was sampled."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import pytest

from palestra.rollout import ChatFormat, tool_call
from palestra.rollout.engine_errors import EngineError
from palestra.rollout.serving.api_error import ApiError
from palestra.rollout.serving.reply import ReplyRequest
from palestra.tools import Tool
from palestra.types import Message, Sampling, Structure

QUESTION: list[Message] = [{"role": "user", "content": "What is 17 + 25?"}]


def run(work: Coroutine[Any, Any, Any]) -> Any:
    async def watched() -> Any:
        return await asyncio.wait_for(work, timeout=30)

    return asyncio.run(watched())


def refused(error: pytest.ExceptionInfo[ApiError]) -> tuple[int, str | None]:
    return error.value.status, error.value.code


def test_the_gateways_sampling_overrides_the_clients(
    make_engine: Any, open_session: Any, ask: Any
) -> None:
    async def check() -> None:
        engine = make_engine()
        wanted = Sampling(temperature=0.7, top_p=1.0, top_k=0, max_tokens=50, seed=3)
        session = open_session(engine, sampling=wanted)
        clients = Sampling(temperature=0.0, top_p=0.1, top_k=5, max_tokens=400, seed=9)
        await ask(session, QUESTION, sampling=clients)
        await ask(session, QUESTION, sampling=replace(clients, max_tokens=20))
        first, second = engine.samplings
        assert first == replace(wanted, seed=1000)
        assert second == replace(wanted, seed=1001, max_tokens=20)
        assert [turn.sampling for turn in session.turns] == engine.samplings

    run(check())


@pytest.mark.parametrize("stream", [False, True])
def test_a_follow_up_gets_the_sampled_ids_though_the_client_sent_text(
    make_engine: Any,
    open_session: Any,
    ask: Any,
    add: Tool,
    chat_format: ChatFormat,
    tokenizer: Any,
    stream: bool,
) -> None:
    async def check() -> None:
        says = [tool_call("add", a=17, b=25), "It is 42."]
        engine = make_engine(lambda prompt, number: says[number])
        session = open_session(engine)
        tools = [add.schema()]
        first = await ask(session, QUESTION, tools, stream=stream)
        (call,) = first.message["tool_calls"]
        result = {"role": "tool", "tool_call_id": call["id"], "content": "42"}
        await ask(session, [*QUESTION, first.message, result], tools, stream=stream)
        one, two = session.turns
        assert (one.parent, two.parent) == (None, 0)
        before = (*one.prompt_ids, *one.completion_ids)
        assert two.prompt_ids[: len(before)] == before
        # A client's text, tokenized, has other ids.
        assert list(before) != chat_format.render(QUESTION, tools) + tokenizer.encode(says[0])
        restored = {**result, "tool_call_id": "call_0", "name": "add"}
        assert one.observation == (restored,) and not one.replaces
        assert session.conversation == (*QUESTION, one.message, restored, two.message)
        assert one.message["tool_calls"][0]["id"] == "call_0" != call["id"]
        assert session.stop_reason == "answer"

    run(check())


def test_two_requests_that_extend_one_turn_are_a_fork(
    make_engine: Any, open_session: Any, ask: Any
) -> None:
    async def check() -> None:
        engine = make_engine(lambda prompt, number: f"It is {number}.")
        session = open_session(engine)
        first = await ask(session, QUESTION)
        history = [*QUESTION, first.message]
        sure: list[Message] = [*history, {"role": "user", "content": "Sure?"}]
        why: list[Message] = [*history, {"role": "user", "content": "Why?"}]
        await ask(session, sure)
        await ask(session, why)
        assert [turn.parent for turn in session.turns] == [None, 0, 0]
        assert [turn.replaces for turn in session.turns] == [False, True, False]
        assert session.turns[1].observation == tuple(why)

    run(check())


def test_more_than_one_reply_is_refused_by_name(
    make_engine: Any, open_session: Any, ask: Any
) -> None:
    session = open_session(make_engine())
    with pytest.raises(ApiError, match="one reply") as error:
        run(ask(session, QUESTION, n=2))
    assert (error.value.status, error.value.param) == (400, "n")
    assert session.turns == ()


def test_the_limits_of_an_episode_end_it(make_engine: Any, open_session: Any, ask: Any) -> None:
    async def check() -> None:
        session = open_session(make_engine(), max_turns=2)
        await ask(session, QUESTION)
        await ask(session, QUESTION)
        assert session.stop_reason == "answer"
        with pytest.raises(ApiError) as error:
            await ask(session, QUESTION)
        assert refused(error) == (400, "max_turns")
        assert session.stop_reason == "max_turns"
        assert len(session.turns) == 2

        # Ten digits and the end of the turn: then one token is left.
        session = open_session(make_engine("1234567890"), max_total_tokens=12)
        await ask(session, QUESTION)
        assert session.stop_reason == "answer"
        await ask(session, QUESTION)
        assert [len(turn.completion_ids) for turn in session.turns] == [11, 1]
        assert session.stop_reason == "token_budget"
        with pytest.raises(ApiError) as error:
            await ask(session, QUESTION)
        assert refused(error) == (400, "token_budget")
        assert len(session.turns) == 2

    run(check())


def test_a_conversation_that_outgrows_the_context_ends_it_unless_the_client_shortens_it(
    make_engine: Any, open_session: Any, ask: Any
) -> None:
    async def check() -> None:
        session = open_session(make_engine(context_length=40))
        await ask(session, QUESTION)
        long: list[Message] = [{"role": "user", "content": "1234567890" * 10}]
        with pytest.raises(ApiError) as error:
            await ask(session, long)
        assert refused(error) == (400, "context_length_exceeded")
        assert session.stop_reason == "context"
        await ask(session, QUESTION)
        assert session.stop_reason == "answer"
        assert len(session.turns) == 2

    run(check())


def test_a_reply_cut_by_its_limit_says_which(make_engine: Any, open_session: Any, ask: Any) -> None:
    async def check() -> None:
        session = open_session(make_engine("1234567890"), sampling=Sampling(max_tokens=4))
        await ask(session, QUESTION)
        assert session.stop_reason == "length"
        prompt = len(session.turns[0].prompt_ids)
        session = open_session(make_engine("1234567890", context_length=prompt + 5))
        await ask(session, QUESTION)
        assert session.stop_reason == "context"

    run(check())


def test_a_stream_that_the_client_leaves_is_no_turn_and_ends_the_generation(
    make_engine: Any, open_session: Any, ask: Any
) -> None:
    async def check() -> None:
        engine = make_engine("1234567890")
        session = open_session(engine)
        request = ReplyRequest(messages=tuple(QUESTION), sampling=Sampling(max_tokens=50))
        async with aclosing(session.reply(request, stream=True)) as deltas:
            async for delta in deltas:
                if delta.content:
                    break
        assert engine.running == 0
        assert session.turns == ()
        await ask(session, QUESTION)
        assert session.turns[0].sampling is not None
        assert session.turns[0].sampling.seed == 1001  # the first was another draw

    run(check())


def test_an_engine_that_fails_is_told_as_503_and_remembered_until_it_recovers(
    make_engine: Any, open_session: Any, ask: Any
) -> None:
    async def check() -> None:
        engine = make_engine()
        session = open_session(engine)
        engine.error = EngineError("http://10.0.0.1 is gone")
        with pytest.raises(ApiError) as error:
            await ask(session, QUESTION)
        assert error.value.status == 503
        assert "10.0.0.1" not in error.value.message
        assert session.trouble is not None and session.trouble.cause == "engine"
        assert "10.0.0.1" in session.trouble.detail
        engine.error = None
        await ask(session, QUESTION)
        assert session.trouble is None
        assert len(session.turns) == 1

    run(check())


def test_an_engine_that_does_not_answer_in_time_ends_the_session(
    make_engine: Any, open_session: Any, ask: Any
) -> None:
    async def check() -> None:
        engine = make_engine()
        engine.gate.clear()
        session = open_session(engine, generation_timeout_s=0.05)
        with pytest.raises(ApiError) as error:
            await ask(session, QUESTION)
        assert refused(error) == (503, "timeout")
        assert engine.running == 0
        with pytest.raises(ApiError) as error:
            await ask(session, QUESTION)
        assert refused(error) == (410, "episode_closed")
        assert session.trouble is not None and "no reply in 0.05 s" in session.trouble.detail

    run(check())


@pytest.mark.parametrize("stream", [False, True])
def test_closing_ends_what_is_in_progress_and_refuses_what_follows(
    make_engine: Any, open_session: Any, ask: Any, stream: bool
) -> None:
    async def check() -> None:
        engine = make_engine()
        engine.gate.clear()
        session = open_session(engine)
        asking = [asyncio.create_task(ask(session, QUESTION, stream=stream)) for _ in range(3)]
        while engine.running < 3:  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert session.idle_s == 0
        session.close()
        session.close()
        errors = await asyncio.gather(*asking, return_exceptions=True)
        assert [getattr(error, "code", error) for error in errors] == ["episode_closed"] * 3
        assert engine.running == 0
        with pytest.raises(ApiError) as error:
            await ask(session, QUESTION)
        assert refused(error) == (410, "episode_closed")
        assert (session.turns, session.trouble) == ((), None)

    run(check())


def test_requests_at_the_same_time_each_become_a_turn(
    make_engine: Any, open_session: Any, ask: Any
) -> None:
    async def check() -> None:
        engine = make_engine(lambda prompt, number: f"It is {number}.")
        session = open_session(engine)
        await asyncio.gather(
            *(ask(session, [{"role": "user", "content": f"{n} + 1?"}]) for n in range(8))
        )
        assert len(session.turns) == 8
        assert {turn.parent for turn in session.turns} == {None}
        seeds = {turn.sampling.seed for turn in session.turns if turn.sampling is not None}
        assert seeds == set(range(1000, 1008))

    run(check())


def test_what_the_client_wants_the_reply_to_look_like_stays(
    make_engine: Any, open_session: Any, ask: Any
) -> None:
    structure = Structure(regex="It is [0-9]+.")

    async def check() -> None:
        session = open_session(make_engine())
        await ask(session, QUESTION, sampling=Sampling(max_tokens=50, structure=structure))
        end = await ask(session, QUESTION, stop=(" 4",))
        assert end.message["content"] == "It is"
        assert session.turns[0].sampling is not None
        assert session.turns[0].sampling.structure == structure
        assert session.turns[1].message["content"] == "It is"

    run(check())


def test_messages_that_cannot_be_rendered_are_the_clients_fault(
    make_engine: Any, open_session: Any, ask: Any
) -> None:
    image = {"type": "image_url", "image_url": {"url": "x"}}
    session = open_session(make_engine())
    with pytest.raises(ApiError) as error:
        run(ask(session, [{"role": "user", "content": [image]}]))
    assert error.value.status == 400
    assert (session.trouble, session.stop_reason) == (None, "answer")


def test_wrong_calls_are_counted(make_engine: Any, open_session: Any, ask: Any, add: Tool) -> None:
    async def check() -> None:
        session = open_session(make_engine(tool_call("sub", a=1, b=2)))
        await ask(session, QUESTION, [add.schema()])
        assert [result.error for result in session.turns[0].tool_results] == ["unknown_tool"]

    run(check())
