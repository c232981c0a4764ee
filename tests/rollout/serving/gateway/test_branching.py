"""A client that extends, edits, cuts, re-orders and replays its history, against an oracle.

The oracle knows every request that was answered. It decides by comparing messages, one by one,
which turns a request may be an extension of, and renders it afresh where none is.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from palestra.rollout import ChatFormat, tool_call
from palestra.rollout.serving.api_error import ApiError
from palestra.rollout.serving.gateway_session import GatewaySession
from palestra.tools import Tool
from palestra.trainer.batch import rows_of
from palestra.types import Episode, Message, Outcome, Task, Turn

# Few enough that replies come again, word for word.
REPLIES = (
    "It is 4.",
    "It is 42.",
    tool_call("add", a=1, b=2),
    tool_call("add", b=2, a=1),
    "So: " + tool_call("add", a=3, b=4) + "\n" + tool_call("add", a=5, b=6),
)
USERS = ("What is 1 + 2?", "And 3 + 4?", "Sure?")


@dataclass
class Client:
    """Keeps the histories that it has had, and changes them as it is told."""

    session: GatewaySession
    ask: Any
    tools: list[Any]
    histories: list[list[Message]] = field(default_factory=list)  # each ends with a reply
    asked: list[tuple[list[Message], Message]] = field(default_factory=list)  # and the answer

    async def send(self, messages: list[Message], *, stream: bool) -> None:
        try:
            end = await self.ask(self.session, messages, self.tools, stream=stream)
        except ApiError as error:  # a history that no API takes, e.g. a result without its call
            if (error.status, error.code) != (400, "invalid_value"):
                raise
            return
        self.asked.append((messages, end.message))
        self.histories.append([*messages, end.message])


def follow_up(reply: Message, user: str) -> list[Message]:
    """What a client adds to a reply: the results of its calls, else another question."""
    calls = reply.get("tool_calls") or []
    results = [
        {"role": "tool", "tool_call_id": call["id"], "content": str(index)}
        for index, call in enumerate(calls)
    ]
    return results or [{"role": "user", "content": user}]


def respelled(message: Message) -> Message:
    """The same message as another client would write it."""
    spelled = {**message, "refusal": None}
    if message["role"] == "assistant":
        spelled["content"] = message.get("content") or None
        spelled["tool_calls"] = [
            {
                **call,
                "function": {
                    **call["function"],
                    "arguments": json.dumps(json.loads(call["function"]["arguments"]), indent=1),
                },
            }
            for call in message.get("tool_calls") or ()
        ]
        if not spelled["tool_calls"]:
            del spelled["tool_calls"]
    return spelled


@st.composite
def moves(draw: st.DrawFn) -> tuple[str, int, int, str, bool]:
    """What to do, with which history, at which place, and what to say there."""
    kind = draw(
        st.sampled_from(
            ["extend"] * 4
            + ["respell", "replay", "cut", "edit", "swap", "drop", "begin", "think", "reverse"]
        )
    )
    number = st.integers(0, 1000)
    return kind, draw(number), draw(number), draw(st.sampled_from(USERS)), draw(st.booleans())


def changed(client: Client, kind: str, which: int, where: int, user: str) -> list[Message]:
    """The messages of the next request."""
    begin: list[Message] = [{"role": "user", "content": user}]
    if kind == "begin" or not client.histories:
        return begin
    history = client.histories[which % len(client.histories)]
    if kind == "replay":
        return history[:-1]
    following = [*history, *follow_up(history[-1], user)]
    at = where % len(following)
    if kind == "respell":
        return [*map(respelled, history), *follow_up(history[-1], user)]
    if kind == "cut":
        return following[: at + 1]
    if kind == "edit":
        edited = {**following[at], "content": f"{following[at].get('content') or ''}!"}
        return [*following[:at], edited, *following[at + 1 :]]
    if kind == "swap":
        other = (at + 1) % len(following)
        following[at], following[other] = following[other], following[at]
        return following
    if kind == "drop":
        return following[:at] + following[at + 1 :] or begin
    if kind == "think":
        thought = [
            {**message, "reasoning_content": "Hm."} if message["role"] == "assistant" else message
            for message in history
        ]
        return [*thought, *follow_up(history[-1], user)]
    if kind == "reverse":
        return following[::-1]
    return following


def canonical(message: Message) -> str:
    """What a message says, as one line."""
    calls = [
        [call["id"], call["function"]["name"], json.loads(call["function"]["arguments"])]
        for call in message.get("tool_calls") or ()
    ]
    told = [message["role"], message.get("content") or "", message.get("tool_call_id"), calls]
    return json.dumps(told, sort_keys=True)


def said(messages: list[Message]) -> list[str]:
    return list(map(canonical, restored(messages)))


def thinks(messages: list[Message]) -> bool:
    return any(message.get("reasoning_content") for message in messages)


def may_think_alike(message: Message, sampled: Message) -> bool:
    thinking = message.get("reasoning_content")
    return not thinking or thinking == sampled.get("reasoning_content")


def restored(messages: list[Message]) -> list[Message]:
    """With the ids, the names and the order of results that a training rollout has."""
    calls: dict[str, tuple[str, str]] = {}
    plain: list[Message] = []
    for message in in_order_of_calls(messages):
        if message["role"] == "assistant":
            entries = []
            for index, call in enumerate(message.get("tool_calls") or ()):
                calls[call["id"]] = (f"call_{index}", call["function"]["name"])
                entries.append({**call, "id": f"call_{index}"})
            message = {**message, **({"tool_calls": entries} if entries else {})}
        elif message["role"] == "tool":
            call_id, name = calls.get(message["tool_call_id"], (message["tool_call_id"], "add"))
            message = {**message, "tool_call_id": call_id, "name": name}
        plain.append(message)
    return plain


def in_order_of_calls(messages: list[Message]) -> list[Message]:
    places: dict[str, int] = {}
    ordered: list[Message] = []
    for role, group in itertools.groupby(messages, key=lambda message: message["role"]):
        if role == "tool":
            ordered += sorted(group, key=lambda result: places.get(result["tool_call_id"], 0))
            continue
        for message in group:
            ordered.append(message)
            for place, call in enumerate(message.get("tool_calls") or ()):
                places[call["id"]] = place
    return ordered


def check_turn(client: Client, number: int, chat_format: ChatFormat) -> None:
    turns = client.session.turns
    turn, (messages, _) = turns[number], client.asked[number]
    extendable = [
        earlier
        for earlier in range(number)
        if said(messages)[: len(client.asked[earlier][0]) + 1]
        == said([*client.asked[earlier][0], client.asked[earlier][1]])
    ]
    if turn.parent is None:
        expected = chat_format.render(restored(messages), client.tools)
        assert turn.prompt_ids == tuple(expected)
        # Nothing that could be extended was rendered; foreign thinking is another history.
        assert not extendable or thinks(messages)
        return
    assert turn.parent in extendable
    asked, reply = client.asked[turn.parent]
    # Thinking that was never sampled is another history, too.
    assert all(map(may_think_alike, messages, [*asked, reply]))
    longest = max(len(client.asked[earlier][0]) for earlier in extendable)
    assert len(asked) == longest or thinks(messages)
    parent = turns[turn.parent]
    before = [*parent.prompt_ids, *parent.completion_ids]
    *plain, plain_reply = restored([*asked, reply])
    new = restored(messages)[len(asked) + 1 :]
    expected_ids = chat_format.extend(before, plain, plain_reply, new, client.tools)
    assert expected_ids is not None
    assert turn.prompt_ids == tuple(expected_ids)


def episode_of(session: GatewaySession, turns: tuple[Turn, ...]) -> Episode:
    return Episode(
        id="e",
        env_id="test",
        task=Task(id="t", messages=()),
        prompt=session.prompt,
        turns=turns,
        outcome=Outcome.SCORED,
        stop_reason="answer",
    )


def check_episode(client: Client) -> None:
    session = client.session
    turns = session.turns
    assert len(turns) == len(client.asked)
    if not turns:
        return
    episode = episode_of(session, turns)
    last, reply = client.asked[-1]
    assert said(episode.messages) == said([*last, reply])
    assert said(list(session.conversation)) == said([*last, reply])
    assert Episode.from_json(episode.to_json()) == episode
    trained: Counter[float] = Counter()
    for row in rows_of(episode, 1.0):
        assert sum(row.loss_mask) == len(row.sampled_logprobs)
        trained.update(row.sampled_logprobs)
    # Each sampled token has a log-probability of its own.
    assert trained == Counter(logprob for turn in turns for logprob in turn.logprobs)
    assert set(trained.values()) == {1}


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    steps=st.lists(moves(), min_size=1, max_size=14),
    says=st.lists(st.integers(0, len(REPLIES) - 1), min_size=1, max_size=5),
)
def test_whatever_a_client_does_to_its_history_no_turn_is_a_wrong_extension(
    steps: list[tuple[str, int, int, str, bool]],
    says: list[int],
    make_engine: Any,
    open_session: Any,
    ask: Any,
    add: Tool,
    chat_format: ChatFormat,
) -> None:
    async def check() -> None:
        engine = make_engine(lambda prompt, number: REPLIES[says[number % len(says)]])
        session = open_session(engine, max_turns=1000)
        client = Client(session=session, ask=ask, tools=[add.schema()])
        for kind, which, where, user, stream in steps:
            messages = changed(client, kind, which, where, user)
            before = len(client.asked)
            await client.send(messages, stream=stream)
            for number in range(before, len(client.asked)):
                check_turn(client, number, chat_format)
        assert [turn.prompt_ids for turn in session.turns] == engine.prompts[: len(session.turns)]
        check_episode(client)

    asyncio.run(check())
