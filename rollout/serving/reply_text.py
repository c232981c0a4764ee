"""A reply's text as it comes: reasoning, content and tool calls, as clients are told.

See `call_readers` for what is told when. Where text and calls alternate in a reply, the texts make
up one content: a message has no order between content and calls.
"""

from __future__ import annotations

from palestra.rollout.call_formats import CallFormat
from palestra.rollout.serving.call_readers import ReplyParts, open_reader
from palestra.rollout.serving.reply import ReplyDelta
from palestra.rollout.serving.text_scan import MarkerSearch
from palestra.types import Message

_THINK_OPEN, _THINK_CLOSE = "<think>", "</think>"


class ReplyText:
    """Takes a reply's text in pieces of any size and tells what they add to the message.

    Without `form` nothing is read as a call. With `single_call` the message ends behind the first.
    """

    def __init__(self, form: CallFormat | None, *, single_call: bool = False) -> None:
        self._parts = ReplyParts(single_call=single_call)
        self._reader = open_reader(form, self._parts)
        self._start: str | None = ""  # while thinking may begin: what may be its tag
        self._thinking: MarkerSearch | None = None

    @property
    def is_complete(self) -> bool:
        """Whether nothing that follows belongs to the message."""
        return self._parts.is_complete

    def push(self, text: str) -> None:
        """More text."""
        if self._start is not None:
            text = self._start + text
            begun = text.lstrip()
            if not begun:  # neither thinking nor content begins with space
                return
            if begun.startswith(_THINK_OPEN):
                self._thinking = MarkerSearch(_THINK_CLOSE)
                text = begun.removeprefix(_THINK_OPEN)
            elif _THINK_OPEN.startswith(begun):
                self._start = begun
                return
            self._start = None
        if self._thinking is not None:
            reasoning, rest = self._thinking.push(text)
            self._parts.reasoning.push(reasoning)
            if rest is None:
                return
            self._thinking, text = None, rest
        self._reader.push(text)

    def finish(self) -> None:
        """The text ends here."""
        if self._thinking is not None:
            self._parts.reasoning.push(self._thinking.flush())
        elif self._start:
            self._reader.push(self._start)
        self._reader.finish()

    def take(self, choice: int) -> ReplyDelta:
        """What was added to the message since the last time."""
        return ReplyDelta(
            choice=choice,
            content=self._parts.content.take(),
            reasoning=self._parts.reasoning.take(),
            calls=self._parts.take_calls(),
        )

    @property
    def message(self) -> Message:
        """The message so far."""
        message: Message = {"role": "assistant", "content": self._parts.content.text}
        if reasoning := self._parts.reasoning.text:
            message["reasoning_content"] = reasoning
        if self._parts.calls:
            message["tool_calls"] = list(self._parts.calls)
        return message


def read_reply(form: CallFormat | None, text: str) -> Message:
    """The message that a whole text amounts to."""
    reader = ReplyText(form)
    reader.push(text)
    reader.finish()
    return reader.message
