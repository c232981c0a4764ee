"""Long conversations: a part stands for the whole, only where the template sees no difference."""

from __future__ import annotations

import itertools
import logging

import pytest

from palestra.rollout.chat_format import ChatFormat
from palestra.rollout.conversation_window import probe_conversation, shorten
from palestra.trainer.tiny import CHAT_TEMPLATE, train_tokenizer
from palestra.types import Message

USER: Message = {"role": "user", "content": "Look it up."}


def turn(n: int, **fields: object) -> list[Message]:
    function = {"name": "find", "arguments": f'{{"n": {n}}}'}
    call = {"id": f"call_{n}", "type": "function", "function": function}
    reply: Message = {"role": "assistant", "content": "", "tool_calls": [call], **fields}
    return [reply, {"role": "tool", "tool_call_id": f"call_{n}", "name": "find", "content": f"{n}"}]


def chat_of(template: str) -> ChatFormat:
    tokenizer = train_tokenizer([[USER, *turn(1)]], [])
    tokenizer.chat_template = template
    return ChatFormat.from_tokenizer(tokenizer)


def extend_all(chat: ChatFormat, turns: int) -> list[bool]:
    """Whether each turn extended the one before."""
    messages = [USER]
    prompt = chat.render(messages)
    extended = []
    for n in range(turns):
        completion = chat.encode_reply([USER], turn(n)[0])
        reply, new = chat.parse(completion), turn(n)[1:]
        ids = chat.extend(prompt + completion, messages, reply, new)
        messages = [*messages, reply, *new]
        extended.append(ids is not None)
        prompt = chat.render(messages) if ids is None else ids
        assert prompt == chat.render(messages)
    return extended


def test_each_kind_of_reply_is_kept_once_besides_the_first_and_the_last() -> None:
    turns = [turn(n, reasoning_content="hm" if n == 4 else "") for n in range(12)]
    window = shorten([USER, *(message for pair in turns for message in pair)])
    assert window is not None
    assert window.replies == 12
    assert window.messages == [USER, *turns[0], *turns[4], *turns[11]]


def test_three_of_four_windows_begin_with_the_one_before() -> None:
    messages = [USER, *(message for n in range(40) for message in turn(n))]
    windows = [shorten(messages[: 1 + 2 * replies]) for replies in range(8, 40)]
    begins = [
        after.messages[: len(before.messages)] == before.messages
        for before, after in itertools.pairwise(filter(None, windows))
    ]
    assert begins == [True, True, True, False] * 7 + [True] * 3


def test_short_and_varied_conversations_stay_whole() -> None:
    assert shorten([USER, *turn(1), *turn(2)]) is None
    varied = [
        message
        for n in range(8)
        for message in turn(n, content="x" if n & 1 else "", reasoning_content="y" if n & 2 else "")
    ]
    assert shorten([USER, *varied[:12]]) is None
    window = shorten([USER, *varied * 2])
    assert window is not None
    assert len(window.messages) < len(varied)


def test_the_probe_is_long_enough_to_be_shortened() -> None:
    window = shorten(probe_conversation()[0])
    assert window is not None
    assert window.replies == 12


def test_a_long_conversation_extends_to_its_full_rendering() -> None:
    assert all(extend_all(chat_of(CHAT_TEMPLATE), 40))


def forgets_after(messages: int) -> str:
    """A template that leaves out what is older than so many messages."""
    loop = "{%- for message in messages[first:] -%}"
    newer = f"loop.index0 == 0 or loop.index0 >= messages | length - {messages}"
    start, end, tail = CHAT_TEMPLATE.rpartition("{%- endfor -%}")
    return start.replace(loop, f"{loop}{{%- if {newer} -%}}") + "{%- endif -%}" + end + tail


def test_a_template_that_forgets_is_found_out_before_the_first_window_is_used() -> None:
    extended = extend_all(chat_of(forgets_after(15)), 12)
    assert extended == [True] * 7 + [False] * 5


def test_one_that_forgets_late_is_found_out_by_the_next_check(
    caplog: pytest.LogCaptureFixture,
) -> None:
    chat = chat_of(forgets_after(33))  # the 17th reply is too much; at the 32nd it is noticed
    messages = [USER]
    with caplog.at_level(logging.WARNING):
        extended = []
        for n in range(36):
            reply, *new = turn(n)
            extended.append(chat.extend([1], messages, reply, new) is not None)
            messages += [reply, *new]
    assert extended[32:] == [False] * 4
    assert sum("rendered whole" in text for text in caplog.messages) == 1


def test_a_turn_late_in_a_conversation_takes_no_more_work_than_an_early_one() -> None:
    """Counted in rendered characters, not in time."""
    chat = chat_of(CHAT_TEMPLATE)
    messages = [USER]
    sizes = []
    for n in range(60):
        reply, *new = turn(n)
        window = shorten(messages)
        sizes.append(len(messages if window is None else window.messages))
        assert chat.extend([1], messages, reply, new) is not None
        messages += [reply, *new]
    assert max(sizes[10:]) <= 11
