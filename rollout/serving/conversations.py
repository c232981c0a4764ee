"""Which sampled turn a client's conversation goes on from, so that its prompt has the same ids.

Clients send text back. `Conversations` remembers what it is the text of: the longest conversation
that ends in a reply of ours and that a request begins with is extended by its own ids, as a
training rollout extends it. Nothing else is: whatever a client edited, cut or re-ordered is
rendered.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from palestra.rollout.serving.reply_text import read_reply
from palestra.types import Message, ToolSchema, Turn

if TYPE_CHECKING:
    from palestra.rollout.chat_format import ChatFormat

# The most prompt and completion tokens of all remembered turns together, where they are bounded.
_MAX_TOKENS = 4_000_000


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownPrompt:
    """A conversation as the engine gets it.

    `ids` extend prompt and completion of the turn `parent`; without one they were rendered.
    `messages` is the conversation with our replies as they were sampled, their thinking included,
    in place of what the client sent back. `key` stands for the client's own, for `remember`.
    """

    ids: tuple[int, ...]
    parent: Turn | None
    messages: tuple[Message, ...]
    key: bytes = b""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Remembered:
    """A turn and its conversation; `extends` where its ids say exactly what its message does."""

    turn: Turn
    key: bytes
    before: tuple[Message, ...]
    reply: Message
    tools: tuple[ToolSchema, ...]
    extends: bool


class Conversations:
    """The conversations that were answered, found by what clients send back of them.

    At most `max_turns` turns are kept, and 4 million tokens, the longest unused forgotten first;
    with None all are. A conversation whose turn was forgotten is rendered from its text.

    Two turns that say the same after the same prompt cannot be told apart by what a client sends
    back: the later one is taken, unless the client sends the thinking of the earlier along.
    """

    def __init__(self, chat_format: ChatFormat, *, max_turns: int | None) -> None:
        self._chat_format = chat_format
        self._max_turns = max_turns
        self._by_key: dict[bytes, list[_Remembered]] = {}
        self._recent: OrderedDict[_Remembered, None] = OrderedDict()
        self._tokens = 0

    def find(self, messages: Sequence[Message], tools: Sequence[ToolSchema]) -> KnownPrompt:
        """The prompt for a conversation, with the ids that a training rollout would have sent.

        A reply whose ids say more than its message does (a stop string, or calls beyond the one
        that was allowed) or less (a forced call) is rendered; so is everything where the template
        prints earlier turns otherwise than they were.

        Raises ValueError for a conversation that cannot be rendered.
        """
        messages, tools = tuple(messages), tuple(tools)
        keys = _keys(messages, tools)
        for end in range(len(messages), 0, -1):
            known = self._find(keys[end], messages[:end])
            if known is not None:
                new = messages[end:]
                ids = self._extend(known, new)
                said = (*known.before, known.reply, *new)
                if ids is not None:
                    return KnownPrompt(ids=ids, parent=known.turn, messages=said, key=keys[-1])
                messages, tools = said, known.tools
                break
        ids = tuple(self._chat_format.render(messages, tools))
        return KnownPrompt(ids=ids, parent=None, messages=messages, key=keys[-1])

    def remember(self, known: KnownPrompt, tools: Sequence[ToolSchema], turn: Turn) -> None:
        """Remember the turn that was sampled for a prompt of `find`."""
        said = self._said(turn)
        entry = _Remembered(
            turn=turn,
            key=_next_key(known.key, turn.message),
            before=known.messages,
            reply=turn.message if said is None else said,
            tools=tuple(tools),
            extends=said is not None,
        )
        self._by_key.setdefault(entry.key, []).append(entry)
        self._recent[entry] = None
        self._tokens += _count_tokens(entry)
        if self._max_turns is not None:
            while len(self._recent) > self._max_turns or self._tokens > _MAX_TOKENS:
                self._forget(next(iter(self._recent)))

    def _find(self, key: bytes, messages: Sequence[Message]) -> _Remembered | None:
        for entry in reversed(self._by_key.get(key, ())):
            said = (*entry.before, entry.reply)
            if all(map(_may_think_alike, messages, said)):
                self._recent.move_to_end(entry)
                return entry
        return None

    def _extend(self, known: _Remembered, new: Sequence[Message]) -> tuple[int, ...] | None:
        turn = known.turn
        if not known.extends:
            return None
        last_id = turn.completion_ids[-1] if turn.completion_ids else None
        added = self._chat_format.continuation(last_id, known.before, known.reply, new, known.tools)
        if added is None:
            return None
        # Once over the ids: there may be a hundred thousand.
        return turn.prompt_ids + (turn.completion_ids + tuple(added))

    def _said(self, turn: Turn) -> Message | None:
        """The message in the turn's ids as rollouts have it; None if it is not what was told."""
        chat_format = self._chat_format
        text = chat_format.opening + chat_format.text(turn.completion_ids)
        told = _fingerprint(turn.message)
        if any(
            _fingerprint(read_reply(form, text)) == told for form in (chat_format.call_format, None)
        ):
            return chat_format.parse(turn.completion_ids)
        return None

    def _forget(self, entry: _Remembered) -> None:
        del self._recent[entry]
        self._tokens -= _count_tokens(entry)
        entries = self._by_key[entry.key]
        entries.remove(entry)
        if not entries:
            del self._by_key[entry.key]


def same_messages(ours: Sequence[Message], theirs: Sequence[Message]) -> bool:
    """Whether two conversations are the same, thinking aside, as `Conversations` sees it."""
    return list(map(_fingerprint, ours)) == list(map(_fingerprint, theirs))


def _keys(messages: Sequence[Message], tools: Sequence[ToolSchema]) -> list[bytes]:
    """A fingerprint of the first 0, 1, 2, … messages with the tools."""
    keys = [_digest(json.dumps(list(tools), sort_keys=True, default=str))]
    for message in messages:
        keys.append(_next_key(keys[-1], message))
    return keys


def _next_key(key: bytes, message: Message) -> bytes:
    return _digest(_fingerprint(message), key)


def _digest(text: str, key: bytes = b"") -> bytes:
    return blake2b(key + text.encode(), digest_size=16).digest()


def _fingerprint(message: Message) -> str:
    """What tells one message from another, in ASCII.

    No content is the same as empty content, parts of text are the text that they make up, and
    arguments are compared as JSON values. Thinking is left out: few clients send it back.
    """
    content = message.get("content")
    if isinstance(content, (list, tuple)) and all(map(_is_text, content)):
        content = "".join(part["text"] for part in content)
    role = message.get("role")
    told: list[Any] = [role, content or ""]
    if role == "tool":
        told += (message.get("tool_call_id"), message.get("name"))
    elif calls := message.get("tool_calls"):
        told.append([_told_call(call) for call in calls])
    return json.dumps(told, sort_keys=True, default=str)


def _is_text(part: Any) -> bool:
    return (
        isinstance(part, Mapping)
        and part.get("type") == "text"
        and isinstance(part.get("text"), str)
    )


def _told_call(call: Any) -> list[Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping):
        return [call]
    arguments: Any = function.get("arguments")
    with suppress(ValueError, TypeError, RecursionError):  # not JSON: as it stands
        arguments = json.dumps(json.loads(arguments), sort_keys=True)
    return [call.get("id"), function.get("name"), arguments]


def _may_think_alike(message: Message, said: Message) -> bool:
    """Whether a client's message has the thinking of ours, or none."""
    thinking = message.get("reasoning_content")
    return not thinking or str(thinking).strip() == str(said.get("reasoning_content") or "").strip()


def _count_tokens(entry: _Remembered) -> int:
    return len(entry.turn.prompt_ids) + len(entry.turn.completion_ids)
