"""Tool calls as models write them: Hermes blocks in text become OpenAI tool calls."""

from __future__ import annotations

import json
import re
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
    position = 0
    while (opening := text.find(_OPEN, position)) >= 0:
        content.append(text[position:opening])
        function, error, position = _read_block(text, opening + len(_OPEN))
        call: dict[str, Any] = {
            "id": f"call_{len(calls)}",
            "type": "function",
            "function": function,
        }
        calls.append(call if error is None else {**call, "error": error})
    content.append(text[position:])
    message["content"] = "".join(content).strip()
    if calls:
        message["tool_calls"] = calls
    return message


def _split_thinking(text: str) -> tuple[str, str]:
    start = text.lstrip()
    if not start.startswith(_THINK_OPEN):
        return "", text
    reasoning, _, rest = start[len(_THINK_OPEN) :].partition(_THINK_CLOSE)
    return reasoning.strip(), rest


def _read_block(text: str, start: int) -> tuple[dict[str, str], str | None, int]:
    """The call in the block whose body begins at `start`, its error, and where the text goes on."""
    end = text.find(_CLOSE, start)
    if end < 0:
        return {"name": "", "arguments": text[start:].strip()}, "cut", len(text)
    function = _read_call(text[start:end])
    if function is None and (quoted_end := _end_outside_strings(text, start)) > end:
        function = _read_call(text[start:quoted_end])
        if function is not None:
            end = quoted_end
    if function is None:
        function = {"name": "", "arguments": text[start:end].strip()}
        return function, "bad_json", end + len(_CLOSE)
    return function, None, end + len(_CLOSE)


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


def _end_outside_strings(text: str, start: int) -> int:
    """The first closing tag that is not inside a JSON string, -1 if there is none.

    Linear over all blocks of a text: a tag looks quoted only where the block has an odd number of
    quotes, and the next such block ends the search.
    """
    quoted = False
    for match in _QUOTES_AND_CLOSE.finditer(text, start):
        if match[0] == '"':
            quoted = not quoted
        elif match[0] == _CLOSE and not quoted:
            return match.start()
    return -1
