"""Tool calls as models write them: Hermes blocks in text become OpenAI tool calls."""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from dataclasses import dataclass
from typing import Any

from palestra.types import Message

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_QUOTES_AND_CLOSE = re.compile(r'\\["\\]|"|</tool_call>')
_THINK_OPEN, _THINK_CLOSE = "<think>", "</think>"


def parse_reply(text: str) -> Message:
    """The assistant's message in a reply's raw text; never raises, takes linear time.

    A leading `<think>` block becomes `reasoning_content`. Each `<tool_call>` block becomes an entry
    of `tool_calls`, e.g. `{"id": "call_0", "type": "function", "function": {"name": "add",
    "arguments": '{"a": 1, "b": 2}'}}`, and `content` is the text around them. A block that is no
    call has an empty name, its raw text as arguments and `"error"`: "bad_json", or "cut" when
    nothing closes it.
    """
    message: Message = {"role": "assistant", "content": ""}
    reasoning, text = _split_thinking(text)
    if reasoning:
        message["reasoning_content"] = reasoning
    content: list[str] = []
    calls: list[dict[str, Any]] = []
    for part in split_calls(text):
        if part.call is None:
            content.append(part.text)
        else:
            calls.append({"id": f"call_{len(calls)}", "type": "function", **part.call})
    message["content"] = "".join(content).strip()
    if calls:
        message["tool_calls"] = calls
    return message


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplyPart:
    """Part of a reply's text: plain, or a block with its `call`: `function`, perhaps `error`."""

    text: str
    call: dict[str, Any] | None = None


def split_calls(text: str, *, is_whole: bool = True) -> list[ReplyPart]:
    """The parts of a reply's text, thinking aside, in linear time.

    A block ends at its first closing tag, even if that is inside a JSON string, unless only the
    first one outside gives a call. If more text may follow (`is_whole` false), a block of which
    that is not yet known and what is behind it are left out.
    """
    parts: list[ReplyPart] = []
    closings: _Closings | None = None
    position = 0
    while (opening := text.find(_OPEN, position)) >= 0:
        if opening > position:
            parts.append(ReplyPart(text=text[position:opening]))
        start = opening + len(_OPEN)
        end = text.find(_CLOSE, start)
        if end < 0:
            if is_whole:
                function = {"name": "", "arguments": text[start:].strip()}
                call = {"function": function, "error": "cut"}
                parts.append(ReplyPart(text=text[opening:], call=call))
            return parts
        found = _read_call(text[start:end])
        if found is None:
            closings = closings or _Closings(text)
            quoted_end = closings.find_outside_strings(start)
            if quoted_end < 0 and not is_whole:
                return parts
            if quoted_end > end:
                found = _read_call(text[start:quoted_end])
                end = end if found is None else quoted_end
        if found is None:
            function = {"name": "", "arguments": text[start:end].strip()}
            call = {"function": function, "error": "bad_json"}
        else:
            call = {"function": found}
        position = end + len(_CLOSE)
        parts.append(ReplyPart(text=text[opening:position], call=call))
    if position < len(text):
        parts.append(ReplyPart(text=text[position:]))
    return parts


def _split_thinking(text: str) -> tuple[str, str]:
    start = text.lstrip()
    if not start.startswith(_THINK_OPEN):
        return "", text
    reasoning, _, rest = start[len(_THINK_OPEN) :].partition(_THINK_CLOSE)
    return reasoning.strip(), rest


def _read_call(body: str) -> dict[str, str] | None:
    try:
        call = json.loads(body)
        if not isinstance(call, dict):
            return None
        name, arguments = call.get("name"), call.get("arguments", {})
        if not isinstance(name, str) or not name:
            return None
        # Some models write the arguments as JSON in a string: OpenAI's form already.
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
    except (ValueError, RecursionError):
        return None
    return {"name": _without_surrogates(name), "arguments": _without_surrogates(arguments)}


def _without_surrogates(text: str) -> str:
    """JSON can escape half a character ("\\ud800"), which no tokenizer or file can encode."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


class _Closings:
    """The closing tags of a text, by whether an even or an odd number of quotes stands before."""

    def __init__(self, text: str) -> None:
        self._quotes: list[int] = []
        self._by_parity: tuple[list[int], list[int]] = ([], [])
        for match in _QUOTES_AND_CLOSE.finditer(text):
            if match[0] == '"':
                self._quotes.append(match.start())
            elif match[0] == _CLOSE:
                self._by_parity[len(self._quotes) % 2].append(match.start())

    def find_outside_strings(self, start: int) -> int:
        """The first tag that no JSON string holds which begins behind `start`; -1: none."""
        closings = self._by_parity[bisect_left(self._quotes, start) % 2]
        index = bisect_left(closings, start)
        return closings[index] if index < len(closings) else -1
