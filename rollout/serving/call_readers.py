"""Readers of a reply's text as it comes, one for each form of tool calls.

What they make of it is what `CallFormat.read` makes of the whole text, but for malformed calls,
which OpenAI's API does not have: they are content, as the model wrote them, at their place in the
text. Text comes out as soon as nothing that may follow can change it, a call when it is complete.
Of the `llama3` and `mistral` forms nobody knows before the end whether it is one.
"""

from __future__ import annotations

import re
from typing import Any, Protocol

from palestra.rollout.call_formats import LLAMA_PYTHON, MISTRAL_CALLS, CallFormat
from palestra.rollout.serving.reply import CallDelta
from palestra.rollout.serving.text_scan import MarkerSearch, Trimmed
from palestra.tools.call import split_calls

_CALL_OPEN, _CALL_CLOSE = "<tool_call>", "</tool_call>"
_QUOTE = re.compile(r'\\["\\]|"')
_LLAMA_OPENINGS = ('{"name":', '{"type":', LLAMA_PYTHON)


class ReplyParts:
    """What a reply amounts to so far. With `single_call` it ends behind its first call."""

    def __init__(self, *, single_call: bool = False) -> None:
        self.content = Trimmed()
        self.reasoning = Trimmed()
        self.calls: list[dict[str, Any]] = []
        self._single_call = single_call
        self._taken = 0

    @property
    def is_complete(self) -> bool:
        """Whether nothing that follows belongs to it."""
        return self._single_call and bool(self.calls)

    def add_call(self, call: dict[str, Any]) -> None:
        """One more entry of `tool_calls`."""
        if not self.is_complete:
            self.calls.append(call)

    def take_calls(self) -> tuple[CallDelta, ...]:
        """The calls that were added since the last time."""
        deltas: list[CallDelta] = []
        for index in range(self._taken, len(self.calls)):
            call = self.calls[index]
            function = call["function"]
            deltas.append(CallDelta(index=index, id=call["id"], name=function["name"]))
            deltas.append(CallDelta(index=index, arguments=function["arguments"]))
        self._taken = len(self.calls)
        return tuple(deltas)


class Reader(Protocol):
    """Reads what follows the reasoning into the parts that it was made with."""

    def push(self, text: str) -> None:
        """More text."""
        ...

    def finish(self) -> None:
        """The text ends here."""
        ...


def open_reader(form: CallFormat | None, parts: ReplyParts) -> Reader:
    """A reader for a form of calls; without one nothing is read as a call."""
    return PlainReader(parts) if form is None else _READERS[form.name](form, parts)


class PlainReader:
    """Text is text."""

    def __init__(self, parts: ReplyParts) -> None:
        self._parts = parts

    def push(self, text: str) -> None:
        self._parts.content.push(text)

    def finish(self) -> None:
        pass


class HermesReader:
    """Text with `<tool_call>` blocks in it; `split_calls` knows where they end.

    It is asked only at a closing tag that may end the block: the first, and those outside of JSON
    strings.
    """

    def __init__(self, form: CallFormat, parts: ReplyParts) -> None:
        self._parts = parts
        self._opening = MarkerSearch(_CALL_OPEN)
        self._closing = MarkerSearch(_CALL_CLOSE)
        self._blocks = 0
        self._is_inside = False
        self._block: list[str] = []  # what has come of it
        self._section: list[str] = []  # what has come since its last closing tag
        self._has_closing = False
        self._is_quoted = False  # whether its last closing tag is inside a JSON string

    def push(self, text: str) -> None:
        rest: str | None = text
        while rest is not None and not self._parts.is_complete:
            if self._is_inside:
                body, rest = self._closing.push(rest)
                self._section.append(body)
                if rest is not None:
                    self._close()
            else:
                content, rest = self._opening.push(rest)
                self._parts.content.push(content)
                if rest is not None:
                    self._enter(_CALL_OPEN)

    def finish(self) -> None:
        if self._is_inside:
            text = "".join((*self._block, *self._section)) + self._closing.flush()
            self._read(text, is_whole=True)
        if not self._parts.is_complete:
            self._parts.content.push(self._opening.flush())

    def _close(self) -> None:
        """A closing tag has come."""
        section = "".join(self._section)
        self._section.clear()
        self._block += (section, _CALL_CLOSE)
        quotes = sum(match[0] == '"' for match in _QUOTE.finditer(section))
        self._is_quoted ^= quotes % 2 == 1
        if not self._has_closing or not self._is_quoted:
            self._has_closing = True
            self._read("".join(self._block), is_whole=False)

    def _read(self, text: str, *, is_whole: bool) -> None:
        """Take the parts of the text that are certain."""
        self._is_inside = False
        position = 0
        for part in split_calls(text, is_whole=is_whole):
            position += len(part.text)
            if part.call is None:
                self._parts.content.push(self._opening.push(part.text)[0])
                continue
            self._parts.content.push(self._opening.flush())
            if "error" in part.call:
                self._parts.content.push(part.text)
            else:
                call_id = f"call_{self._blocks}"
                self._parts.add_call({"id": call_id, "type": "function", **part.call})
            self._blocks += 1
            if self._parts.is_complete:
                return
        if position < len(text):  # a block that has closing tags inside of strings only
            self._enter(text[position:])
            self._has_closing = self._is_quoted = True

    def _enter(self, text: str) -> None:
        self._is_inside, self._has_closing, self._is_quoted = True, False, False
        self._block = [text]


class Llama3Reader:
    """The whole text is calls or none of it, as its first characters tell."""

    def __init__(self, form: CallFormat, parts: ReplyParts) -> None:
        self._form = form
        self._parts = parts
        self._held: list[str] = []
        self._first = ""  # characters, without space: while they are few, nobody knows
        self._is_text: bool | None = None

    def push(self, text: str) -> None:
        if self._is_text:
            self._parts.content.push(text)
            return
        self._held.append(text)
        if self._is_text is not None:
            return
        self._first += "".join(text.split())
        if any(o.startswith(self._first) and o != self._first for o in _LLAMA_OPENINGS):
            return
        self._decide("".join(self._held))

    def finish(self) -> None:
        if self._is_text:
            return
        text = "".join(self._held)
        for call in self._form.read(text).get("tool_calls", ()):
            if "error" not in call:
                self._parts.add_call(call)
        if not self._parts.calls:
            self._parts.content.push(text)

    def _decide(self, text: str) -> None:
        self._is_text = "tool_calls" not in self._form.read(text)
        if self._is_text:
            self._parts.content.push(text)


class MistralReader:
    """What follows the first `[TOOL_CALLS]` is calls, or was meant to be."""

    def __init__(self, form: CallFormat, parts: ReplyParts) -> None:
        self._form = form
        self._parts = parts
        self._opening = MarkerSearch(MISTRAL_CALLS)
        self._held: list[str] | None = None

    def push(self, text: str) -> None:
        if self._held is not None:
            self._held.append(text)
            return
        content, rest = self._opening.push(text)
        self._parts.content.push(content)
        if rest is not None:
            self._held = [rest]

    def finish(self) -> None:
        if self._held is None:
            self._parts.content.push(self._opening.flush())
            return
        text = "".join(self._held)
        for call in self._form.read(MISTRAL_CALLS + text)["tool_calls"]:
            if "error" not in call:
                self._parts.add_call(call)
        for block in text.split(MISTRAL_CALLS):
            if "error" in self._form.read(MISTRAL_CALLS + block)["tool_calls"][0]:
                self._parts.content.push(MISTRAL_CALLS + block)


_READERS: dict[str, type[HermesReader] | type[Llama3Reader] | type[MistralReader]] = {
    "hermes": HermesReader,
    "llama3": Llama3Reader,
    "mistral": MistralReader,
}
