"""Ids of calls: unique for clients, a chat format's own in prompts."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palestra.rollout.serving.api_error import ApiError
from palestra.rollout.serving.call_ids import IssuedIds, restore
from palestra.rollout.serving.reply import CallDelta, ReplyDelta, ReplyEnd
from palestra.types import Message, Turn

ASKED: Message = {"role": "user", "content": "17 + 25?"}


def calling(*ids: str, names: str = "fgh") -> Message:
    calls: list[dict[str, Any]] = [
        {"id": call_id, "type": "function", "function": {"name": name, "arguments": "{}"}}
        for call_id, name in zip(ids, names, strict=False)
    ]
    return {"role": "assistant", "content": "", "tool_calls": calls}


def result(call_id: str, content: str = "42", **fields: str) -> Message:
    return {"role": "tool", "tool_call_id": call_id, "content": content, **fields}


def issue(message: Message) -> Message:
    """The message as a client gets it at the end of a reply."""
    calls = tuple(
        CallDelta(index=index, id=call["id"])
        for index, call in enumerate(message.get("tool_calls", ()))
    )
    end = ReplyEnd(finish_reason="stop", message=message, turn=Turn(message=message))
    delta = IssuedIds().rename(ReplyDelta(choice=0, calls=calls, end=end))
    assert delta.end is not None
    return delta.end.message


def ids_of(message: Message) -> list[str]:
    return [call["id"] for call in message["tool_calls"]]


@given(ids=st.sampled_from([["call_0"], ["call_0", "call_1"], ["abcdefghi"], ["call_1"]]))
def test_what_was_issued_comes_back_as_it_was(ids: list[str]) -> None:
    message = calling(*ids)
    issued = issue(message)
    assert ids_of(issued) != ids and len(set(ids_of(issued))) == len(ids)
    results = [result(call_id) for call_id in ids_of(issued)]
    restored = restore([ASKED, issued, *results])
    assert restored[1] == message
    assert [message["tool_call_id"] for message in restored[2:]] == ids
    assert [message["name"] for message in restored[2:]] == list("fgh"[: len(ids)])


def test_no_two_replies_have_one_id() -> None:
    issued = {ids_of(issue(calling("call_0")))[0] for _ in range(1000)}
    assert len(issued) == 1000


def test_a_reply_without_calls_is_issued_as_it_is() -> None:
    message = {"role": "assistant", "content": "42"}
    assert issue(message) == message


def test_deltas_and_the_message_at_their_end_get_the_same_ids() -> None:
    issued = IssuedIds()
    message = calling("call_0", "call_1")
    end = ReplyEnd(finish_reason="tool_calls", message=message, turn=Turn(message=message))
    first = issued.rename(ReplyDelta(choice=0, calls=(CallDelta(index=0, id="call_0", name="f"),)))
    other = issued.rename(ReplyDelta(choice=1, calls=(CallDelta(index=0, id="call_0", name="f"),)))
    more = CallDelta(index=0, arguments="{}")
    last = issued.rename(
        ReplyDelta(choice=0, calls=(more, CallDelta(index=1, id="call_1", name="g")), end=end)
    )
    ids = [delta.calls[place].id for delta, place in [(first, 0), (last, 1)]]
    assert last.end is not None and ids_of(last.end.message) == ids
    assert last.calls[0] == more
    assert other.calls[0].id not in ids
    assert last.end.turn.message == message  # as the chat format has them


def test_ids_of_others_are_counted_in_each_message() -> None:
    history = [
        ASKED,
        calling("toolu_01A", "toolu_01B"),
        result("toolu_01B", name="g"),
        result("toolu_01A"),
        calling("call_9f1c"),
        result("call_9f1c", "43"),
    ]
    restored = restore(history)
    assert [ids_of(restored[i]) for i in (1, 4)] == [["call_0", "call_1"], ["call_0"]]
    # In the order of the calls, as a rollout has them.
    told = [(m["tool_call_id"], m["name"], m["content"]) for m in restored if m["role"] == "tool"]
    assert told == [("call_0", "f", "42"), ("call_1", "g", "42"), ("call_0", "f", "43")]
    assert restore(restored) == restored


def test_an_id_that_only_looks_issued_is_counted() -> None:
    uuid = "550e8400-e29b-41d4-a716-446655440000"
    assert ids_of(restore([ASKED, calling(uuid)])[1]) == ["call_0"]
    assert ids_of(restore([ASKED, calling(f"call_{uuid}")])[1]) == ["call_0"]


def test_calls_of_several_messages_put_into_one_are_counted() -> None:
    merged = calling("call_0-0123456789ab", "call_0-ba9876543210")
    restored = restore([ASKED, merged, result("call_0-ba9876543210", "second")])
    assert ids_of(restored[1]) == ["call_0", "call_1"]
    assert restored[2]["tool_call_id"] == "call_1"


def test_results_of_calls_with_one_id_come_in_order() -> None:
    restored = restore([ASKED, calling("x", "x"), result("x", "first"), result("x", "second")])
    assert [m["tool_call_id"] for m in restored[2:]] == ["call_0", "call_1"]
    assert [m["content"] for m in restored[2:]] == ["first", "second"]


def test_a_name_that_a_client_gives_is_kept() -> None:
    assert restore([ASKED, calling("x"), result("x", name="other")])[2]["name"] == "other"


@pytest.mark.parametrize(
    ("messages", "complaint"),
    [
        ([ASKED, result("call_0")], "messages[1] answers the tool call 'call_0'"),
        ([calling("a"), {"role": "assistant", "content": ""}, result("a")], "messages[2] answers"),
        ([calling("a"), result("b")], "messages[1] answers the tool call 'b'"),
        ([calling("a"), {"role": "tool", "content": ""}], "the tool call None"),
        ([{"role": "assistant", "tool_calls": "f()"}], "messages[0].tool_calls must be a list"),
        ([{"role": "assistant", "tool_calls": ["f()"]}], "messages[0].tool_calls[0] needs an id"),
        ([{"role": "assistant", "tool_calls": [{"id": "a"}]}], "needs an id and a function"),
    ],
)
def test_what_answers_no_call_is_named(messages: list[Message], complaint: str) -> None:
    with pytest.raises(ApiError) as raised:
        restore(messages)
    assert raised.value.status == 400 and complaint in raised.value.message


odd = st.none() | st.integers() | st.text(max_size=3) | st.lists(st.text(max_size=2), max_size=2)
calls = st.fixed_dictionaries(
    {},
    optional={
        "id": odd | st.sampled_from(["a", "call_0", "call_0-0123456789ab"]),
        "function": odd | st.just({"name": "f", "arguments": "{}"}),
    },
)
messages = st.fixed_dictionaries(
    {"role": odd | st.sampled_from(["user", "assistant", "tool"])},
    optional={
        "content": odd,
        "tool_calls": odd | st.lists(calls | odd, max_size=2),
        "tool_call_id": odd | st.sampled_from(["a", "call_0", "call_0-0123456789ab"]),
    },
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(history=st.lists(messages, max_size=6))
def test_any_history_is_restored_or_refused(history: list[Message]) -> None:
    try:
        restored = restore(history)
    except ApiError:
        return
    assert len(restored) == len(history)
    assert restore(restored) == restored
