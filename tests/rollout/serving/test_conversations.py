"""A conversation goes on from the turn that a client repeats, and from no other."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from palestra.rollout.chat_format import ChatFormat
from palestra.rollout.serving.conversations import Conversations, KnownPrompt, same_messages
from palestra.rollout.serving.reply_text import read_reply
from palestra.trainer.tiny import train_tokenizer
from palestra.types import Message, ToolSchema, Turn

ASKED: Message = {"role": "user", "content": "17 + 25?"}
MORE: Message = {"role": "user", "content": "And 1 more?"}
CALL = '<tool_call>{"name": "add", "arguments": {"a": 17, "b": 25}}</tool_call>'
RESULT: Message = {"role": "tool", "tool_call_id": "call_0", "name": "add", "content": "42"}
TOOL: ToolSchema = {
    "type": "function",
    "function": {"name": "add", "description": "Adds.", "parameters": {"properties": {}}},
}
END = "<|im_end|>"


@cache
def chat() -> ChatFormat:
    return ChatFormat.from_tokenizer(train_tokenizer([[ASKED, MORE, RESULT]], []))


def conversations(max_turns: int | None = None) -> Conversations:
    return Conversations(chat(), max_turns=max_turns)


def encode(text: str) -> tuple[int, ...]:
    """One token a character, as BPE would not write it."""
    head = text.removesuffix(END)
    ids = [i for letter in head for i in chat().encode_written(letter)]
    return tuple(ids + chat().encode_written(text[len(head) :]))


def answer(
    known: Conversations,
    messages: Sequence[Message],
    text: str = "42" + END,
    tools: Sequence[ToolSchema] = (),
    message: Message | None = None,
) -> tuple[KnownPrompt, Turn]:
    """The prompt of a request, and the turn that is remembered for it."""
    prompt = known.find(messages, tools)
    ids = encode(text)
    told = message or read_reply(chat().call_format, chat().text(ids))
    turn = Turn(message=told, prompt_ids=prompt.ids, completion_ids=ids)
    known.remember(prompt, tools, turn)
    return prompt, turn


def test_a_new_conversation_is_rendered() -> None:
    prompt = conversations().find([ASKED], [TOOL])
    assert prompt.ids == tuple(chat().render([ASKED], [TOOL]))
    assert prompt.parent is None and prompt.messages == (ASKED,)


def test_the_next_prompt_is_the_ids_of_the_last_and_those_of_what_is_new() -> None:
    known = conversations()
    prompt, turn = answer(known, [ASKED], "is more" + END)
    following = known.find([ASKED, {"role": "assistant", "content": "is more"}, MORE], ())
    assert following.parent is turn
    sampled = prompt.ids + turn.completion_ids
    assert following.ids[: len(sampled)] == sampled
    assert following.ids == tuple(chat().extend(sampled, [ASKED], turn.message, [MORE]) or ())
    assert following.ids != tuple(chat().render([ASKED, turn.message, MORE]))


def test_tool_results_extend_a_call() -> None:
    known = conversations()
    _, first = answer(known, [ASKED], CALL + END, [TOOL])
    _, second = answer(known, [ASKED, first.message, RESULT], "42" + END, [TOOL])
    assert second.prompt_ids[: len(first.prompt_ids)] == first.prompt_ids
    last = known.find([ASKED, first.message, RESULT, second.message, MORE], [TOOL])
    assert last.parent is second


def test_the_longest_conversation_that_is_known_is_extended() -> None:
    known = conversations()
    _, first = answer(known, [ASKED])
    _, second = answer(known, [ASKED, first.message, MORE], "43" + END)
    longer = [ASKED, first.message, MORE, second.message, MORE]
    assert known.find(longer, ()).parent is second
    edited = [ASKED, first.message, MORE, {**second.message, "content": "44"}, MORE]
    assert known.find(edited, ()).parent is first


def variants() -> list[tuple[str, Message]]:
    said = read_reply(chat().call_format, f"Adding. {CALL}")
    call = said["tool_calls"][0]

    def with_arguments(arguments: str) -> Message:
        return {
            **said,
            "tool_calls": [{**call, "function": {"name": "add", "arguments": arguments}}],
        }

    parts = [{"type": "text", "text": "Add"}, {"type": "text", "text": "ing."}]
    return [
        ("itself", said),
        ("parts", {**said, "content": parts}),
        ("other fields", {**said, "refusal": None, "audio": None, "annotations": []}),
        ("arguments", with_arguments('{"b":25,\n"a":17}')),
    ]


@pytest.mark.parametrize("variant", [message for _, message in variants()])
def test_what_says_the_same_is_the_same(variant: Message) -> None:
    known = conversations()
    _, turn = answer(known, [ASKED], f"Adding. {CALL}{END}", [TOOL])
    assert known.find([ASKED, variant, RESULT], [copy.deepcopy(TOOL)]).parent is turn
    assert same_messages([turn.message], [variant])


def test_no_content_is_empty_content() -> None:
    known = conversations()
    _, turn = answer(known, [ASKED], CALL + END, [TOOL])
    assert known.find([ASKED, {**turn.message, "content": None}, RESULT], [TOOL]).parent is turn
    without = {key: value for key, value in turn.message.items() if key != "content"}
    assert known.find([ASKED, without, RESULT], [TOOL]).parent is turn


@pytest.mark.parametrize(
    "edit",
    [
        lambda asked, reply: ([{**asked, "content": "17 + 26?"}, reply, RESULT], [TOOL]),
        lambda asked, reply: ([{**asked, "role": "system"}, reply, RESULT], [TOOL]),
        lambda asked, reply: ([asked, {**reply, "content": "Hm."}, RESULT], [TOOL]),
        lambda asked, reply: ([asked, {"role": "assistant", "content": ""}, MORE], [TOOL]),
        lambda asked, reply: ([asked, asked, reply, RESULT], [TOOL]),
        lambda asked, reply: ([reply, asked, RESULT], [TOOL]),
        lambda asked, reply: ([reply, RESULT], [TOOL]),
        lambda asked, reply: ([asked], [TOOL]),
        lambda asked, reply: ([asked, reply, RESULT], []),
        lambda asked, reply: ([asked, reply, RESULT], [TOOL, TOOL]),
    ],
)
def test_what_says_something_else_is_rendered(edit: Any) -> None:
    known = conversations()
    _, turn = answer(known, [ASKED], CALL + END, [TOOL])
    messages, tools = edit(ASKED, turn.message)
    prompt = known.find(messages, tools)
    assert prompt.parent is None
    assert prompt.ids == tuple(chat().render(messages, tools))


def test_our_reply_stands_in_with_its_thinking_for_what_a_client_sends_back() -> None:
    known = conversations()
    _, turn = answer(known, [ASKED], f"<think>Easy.</think>42{END}")
    assert turn.message["reasoning_content"] == "Easy."
    bare = {"role": "assistant", "content": "42"}
    prompt = known.find([ASKED, bare, MORE], ())
    assert prompt.parent is turn and prompt.messages == (ASKED, turn.message, MORE)


def test_a_client_that_sends_the_thinking_back_must_send_ours() -> None:
    known = conversations()
    _, turn = answer(known, [ASKED], f"<think>Easy.</think>42{END}")
    assert known.find([ASKED, {**turn.message, "reasoning_content": " Easy. "}], ()).parent is turn
    edited = {**turn.message, "reasoning_content": "Hard."}
    assert known.find([ASKED, edited, MORE], ()).parent is None


def test_of_two_turns_that_say_the_same_the_later_is_taken() -> None:
    known = conversations()
    answer(known, [ASKED], f"<think>One.</think>42{END}")
    _, second = answer(known, [ASKED], f"<think>Two.</think>42{END}")
    assert known.find([ASKED, {"role": "assistant", "content": "42"}, MORE], ()).parent is second


def test_unless_the_client_sends_the_thinking_of_the_earlier() -> None:
    known = conversations()
    _, first = answer(known, [ASKED], f"<think>One.</think>42{END}")
    answer(known, [ASKED], f"<think>Two.</think>42{END}")
    assert known.find([ASKED, first.message, MORE], ()).parent is first


def test_a_malformed_call_that_a_client_got_as_text_is_extended_by_its_ids() -> None:
    known = conversations()
    _, turn = answer(known, [ASKED], f"Hm. <tool_call>add(17, 25)</tool_call>{END}", [TOOL])
    assert turn.message["content"] == "Hm. <tool_call>add(17, 25)</tool_call>"
    prompt = known.find([ASKED, turn.message, MORE], [TOOL])
    assert prompt.parent is turn
    # As a rollout has it.
    assert prompt.messages[1] == chat().parse(turn.completion_ids)
    assert prompt.messages[1]["tool_calls"][0]["error"] == "bad_json"


def test_a_call_that_was_told_as_text_is_extended_by_its_ids() -> None:
    """For a request without tools, or with tool_choice "none"."""
    known = conversations()
    message = read_reply(None, CALL)
    _, turn = answer(known, [ASKED], CALL + END, message=message)
    assert known.find([ASKED, message, MORE], ()).parent is turn


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("42 STOP", "42"),  # a stop string
        (f"{CALL}{CALL}{END}", CALL),  # one call was wanted
        ('{"name": "add", "arguments": {}}', '<tool_call>{"name": "add"}</tool_call>'),  # forced
    ],
)
def test_a_turn_whose_ids_say_something_else_than_its_message_is_rendered(
    text: str, told: str
) -> None:
    known = conversations()
    message = read_reply(chat().call_format, told)
    answer(known, [ASKED], text, message=message)
    prompt = known.find([ASKED, message, MORE], ())
    assert prompt.parent is None
    assert prompt.ids == tuple(chat().render([ASKED, message, MORE]))


def test_a_cut_completion_is_extended_behind_its_end_of_turn() -> None:
    known = conversations()
    prompt, turn = answer(known, [ASKED], "4")
    following = known.find([ASKED, turn.message, MORE], ())
    assert following.parent is turn
    text = chat().text(following.ids[len(prompt.ids) :])
    assert text.startswith(f"4{END}\n<|im_start|>user\nAnd 1 more?")


def test_the_longest_unused_turn_is_forgotten() -> None:
    known = conversations(max_turns=2)
    first = [{"role": "user", "content": f"question {n}"} for n in range(3)]
    reply = {"role": "assistant", "content": "42"}
    answer(known, first[:1])
    answer(known, [first[1]])
    assert known.find([first[0], reply, MORE], ()).parent is not None  # so it was used
    answer(known, [first[2]])
    found = [known.find([message, reply, MORE], ()).parent is not None for message in first]
    assert found == [True, False, True]


def test_without_a_bound_nothing_is_forgotten() -> None:
    known = conversations()
    asked = [{"role": "user", "content": f"question {n}"} for n in range(300)]
    turns = [answer(known, [message])[1] for message in asked]
    reply = {"role": "assistant", "content": "42"}
    assert [known.find([message, reply, MORE], ()).parent for message in asked] == turns


def test_what_cannot_be_rendered_is_refused() -> None:
    with pytest.raises(ValueError, match="content part 'image_url'"):
        conversations().find([{"role": "user", "content": [{"type": "image_url"}]}], ())


SCRIPT = [CALL, "42", f"<think>Hm.</think>{CALL}", "a <tool_call>b</tool_call>", "é\n"]


@st.composite
def histories(draw: st.DrawFn, played: list[list[Message]]) -> list[Message]:
    """A conversation that was played, edited, cut, re-ordered and mixed with another."""
    messages = copy.deepcopy(draw(st.sampled_from(played)))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(messages) - 1))
        other = draw(st.sampled_from(draw(st.sampled_from(played))))
        kind = draw(st.sampled_from(["cut", "drop", "swap", "insert", "edit", "thinking", "arg"]))
        if kind == "cut":
            messages = messages[: at + 1]
        elif kind == "drop" and len(messages) > 1:
            del messages[at]
        elif kind == "swap":
            messages[at], messages[0] = messages[0], messages[at]
        elif kind == "insert":
            messages.insert(at, copy.deepcopy(other))
        elif kind == "edit":
            messages[at]["content"] = draw(st.sampled_from(["", "42", "x", None]))
        elif kind == "thinking":
            messages[at]["reasoning_content"] = draw(st.sampled_from(["", "Hm.", "x"]))
        elif messages[at].get("tool_calls"):
            function = messages[at]["tool_calls"][0]["function"]
            function["arguments"] = draw(st.sampled_from(["{}", '{"b": 25, "a": 17}', "{"]))
    return messages


def plainly(message: Message) -> Any:
    """What a message says, thinking aside."""
    calls = []
    for call in message.get("tool_calls") or []:
        function = call["function"]
        try:
            arguments = json.loads(function["arguments"])
        except ValueError:
            arguments = function["arguments"]
        calls.append((call["id"], function["name"], arguments))
    told = (message["role"], message.get("content") or "", calls)
    return (*told, message["tool_call_id"], message["name"]) if message["role"] == "tool" else told


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_whatever_a_client_sends_only_a_turn_that_it_repeats_is_extended(
    data: st.DataObject,
) -> None:
    known = conversations(data.draw(st.sampled_from([None, 3])))
    played: list[list[Message]] = [[ASKED], [MORE]]
    turns: list[tuple[list[Message], Turn]] = []
    for _ in range(data.draw(st.integers(1, 8))):
        messages = data.draw(histories(played))
        prompt = known.find(messages, [TOOL])
        if prompt.parent is None:
            assert len(prompt.messages) == len(messages)
        else:
            told = next(conversation for conversation, turn in turns if turn is prompt.parent)
            assert [*map(plainly, messages[: len(told)])] == [*map(plainly, told)]
            for message, ours in zip(messages, prompt.messages, strict=True):
                if message.get("reasoning_content") and message["role"] == "assistant":
                    assert message["reasoning_content"] == ours["reasoning_content"]
            sampled = prompt.parent.prompt_ids + prompt.parent.completion_ids
            assert prompt.ids[: len(sampled)] == sampled
        text = data.draw(st.sampled_from(SCRIPT)) + data.draw(st.sampled_from(["", END]))
        _, turn = answer(known, messages, text, [TOOL])
        conversation = [*messages, turn.message]
        turns.append((conversation, turn))
        played.append([*conversation, MORE])
        if turn.message.get("tool_calls"):
            played.append([*conversation, RESULT])
