"""The forms in which models write tool calls: how to read each and how to write it.

- `hermes`: `<tool_call>` JSON `</tool_call>` blocks (Qwen, Hermes, ChatML; our default);
- `llama3`: the whole reply is one JSON object with `name` and `parameters` (several: `;` between);
- `mistral`: `[TOOL_CALLS]` and a JSON list, or `[TOOL_CALLS]name[ARGS]JSON` (newer models).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from palestra.tools.call import parse_reply
from palestra.types import Message, ToolSchema

MISTRAL_CALLS = "[TOOL_CALLS]"
MISTRAL_ARGUMENTS = "[ARGS]"
LLAMA_PYTHON = "<|python_tag|>"
_LLAMA_ATTEMPT = re.compile(r'\{\s*"(?:name|type)"\s*:')
_MISTRAL_ID = re.compile(r"[A-Za-z0-9]{9}")
_JSON = json.JSONDecoder()


@dataclass(frozen=True, kw_only=True, slots=True)
class CallFormat:
    """One form of tool calls.

    `read` turns the text of a reply into a message and never raises; a malformed call becomes an
    entry of `tool_calls` with an empty name, the raw text as arguments and `error`. `write` gives
    back the text of `tool_calls`: what `read` reads as the same calls.

    A call is `prefix`, a JSON object with `name` and `arguments_key`, and `suffix`.
    """

    name: str
    read: Callable[[str], Message]
    write: Callable[[Sequence[Mapping[str, Any]]], str]
    prefix: str = ""
    suffix: str = ""
    arguments_key: str = "arguments"


def announce(tools: Sequence[ToolSchema]) -> str:
    """The tools and how to call them, in Hermes form, for templates that ignore tools."""
    schemas = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    return (
        "You may call these tools, one JSON schema per line:\n"
        f"<tools>\n{schemas}\n</tools>\n"
        "Write each call as a JSON object inside tags:\n"
        '<tool_call>\n{"name": <tool name>, "arguments": <arguments object>}\n</tool_call>'
    )


def split_thinking(text: str) -> tuple[str, str]:
    """The reasoning in a leading <think> block, closed or not, and the text behind it."""
    start = text.lstrip()
    if not start.startswith("<think>"):
        return "", text
    reasoning, _, rest = start.removeprefix("<think>").partition("</think>")
    return reasoning.strip(), rest


def call_entry(index: int, name: str, arguments: str, **extra: str) -> dict[str, Any]:
    """One entry of `tool_calls` in OpenAI form."""
    function = {"name": _encodable(name), "arguments": _encodable(arguments)}
    return {"id": f"call_{index}", "type": "function", "function": function, **extra}


def _write_hermes(calls: Sequence[Mapping[str, Any]]) -> str:
    blocks = []
    for call in calls:
        error, function = call.get("error"), call["function"]
        body = function["arguments"] if error else _call_json(function, "arguments")
        blocks.append(f"<tool_call>\n{body}" + ("" if error == "cut" else "\n</tool_call>"))
    return "\n".join(blocks)


def _read_llama3(text: str) -> Message:
    reasoning, rest = split_thinking(text)
    body = rest.strip()
    attempted = body.startswith(LLAMA_PYTHON)
    body = body.removeprefix(LLAMA_PYTHON).strip()
    if not (attempted or _LLAMA_ATTEMPT.match(body)):
        return _message(reasoning, body, [])
    found, end = _json_sequence(body)
    if found and end == len(body) and all(_is_call(item, "parameters") for item in found):
        calls = [
            call_entry(i, item["name"], _arguments(item, "parameters"))
            for i, item in enumerate(found)
        ]
        return _message(reasoning, "", calls)
    return _message(reasoning, "", [call_entry(0, "", body, error=_kind(body))])


def _write_llama3(calls: Sequence[Mapping[str, Any]]) -> str:
    return "; ".join(
        _written_attempt(call["function"]["arguments"])
        if call.get("error")
        else _call_json(call["function"], "parameters")
        for call in calls
    )


def _written_attempt(raw: str) -> str:
    """A malformed call as the model wrote it: what does not look like one was tagged as one."""
    return raw if _LLAMA_ATTEMPT.match(raw) else LLAMA_PYTHON + raw


def _read_mistral(text: str) -> Message:
    reasoning, rest = split_thinking(text)
    content, *blocks = rest.split(MISTRAL_CALLS)
    calls: list[dict[str, Any]] = []
    for block in blocks:
        calls += _mistral_calls(block.strip(), start=len(calls))
    ids = {call["id"] for call in calls}
    if len(ids) < len(calls):  # the model used one twice: results could not be told apart
        calls = [{**call, "id": f"call_{i}"} for i, call in enumerate(calls)]
    return _message(reasoning, content.strip(), calls)


def _mistral_calls(block: str, *, start: int) -> list[dict[str, Any]]:
    name, named, body = block.partition(MISTRAL_ARGUMENTS)
    if not named:
        body = block
    found, end = _json_sequence(body)
    value = found[0] if len(found) == 1 and end == len(body) else None
    if named:
        name, _, call_id = name.partition("[CALL_ID]")
        items = [{"name": name.strip(), "arguments": value, "id": call_id.strip()}]
    else:
        items = value if isinstance(value, list) else []
    if items and all(_is_call(item, "arguments") for item in items):
        return [_mistral_entry(start + i, item) for i, item in enumerate(items)]
    return [call_entry(start, "", block, error=_kind(body))]


def _mistral_entry(index: int, item: dict[str, Any]) -> dict[str, Any]:
    entry = call_entry(index, item["name"], _arguments(item, "arguments"))
    call_id = item.get("id")
    return {**entry, "id": call_id} if _MISTRAL_ID.fullmatch(str(call_id)) else entry


def _write_mistral(calls: Sequence[Mapping[str, Any]]) -> str:
    return "".join(
        MISTRAL_CALLS
        + " "
        + (
            call["function"]["arguments"]
            if call.get("error")
            else f"[{_call_json(call['function'], 'arguments')}]"
        )
        for call in calls
    )


FORMATS: dict[str, CallFormat] = {
    form.name: form
    for form in (
        CallFormat(
            name="hermes",
            read=parse_reply,
            write=_write_hermes,
            prefix="<tool_call>\n",
            suffix="\n</tool_call>",
        ),
        CallFormat(
            name="llama3", read=_read_llama3, write=_write_llama3, arguments_key="parameters"
        ),
        CallFormat(
            name="mistral",
            read=_read_mistral,
            write=_write_mistral,
            prefix=f"{MISTRAL_CALLS} [",
            suffix="]",
        ),
    )
}


def _message(reasoning: str, content: str, calls: list[dict[str, Any]]) -> Message:
    message: Message = {"role": "assistant", "content": content}
    if reasoning:
        message["reasoning_content"] = reasoning
    if calls:
        message["tool_calls"] = calls
    return message


def _json_sequence(text: str) -> tuple[list[Any], int]:
    """JSON values separated by space or semicolons, and where reading them stopped."""
    values: list[Any] = []
    position = _skip(text, 0)
    while position < len(text):
        try:
            value, position = _JSON.raw_decode(text, position)
        except (ValueError, RecursionError):
            break
        values.append(value)
        position = _skip(text, position)
    return values, position


def _skip(text: str, position: int) -> int:
    while position < len(text) and text[position] in " \t\r\n;":
        position += 1
    return position


def _is_call(item: Any, arguments_key: str) -> bool:
    return (
        isinstance(item, dict)
        and isinstance(item.get("name"), str)
        and item["name"] != ""
        and isinstance(item.get(arguments_key, item.get("arguments", {})), dict)
    )


def _arguments(item: dict[str, Any], key: str) -> str:
    return _dump(item.get(key, item.get("arguments", {})))


def _call_json(function: Mapping[str, Any], arguments_key: str) -> str:
    name, arguments = _dump(function["name"]), function["arguments"]
    try:
        is_text = isinstance(json.loads(arguments), str)
    except (ValueError, RecursionError):
        is_text = True
    body = _dump(arguments) if is_text else arguments
    return f'{{"name": {name}, "{arguments_key}": {body}}}'


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _encodable(text: str) -> str:
    """JSON can escape half a character ("\\ud800"), which no tokenizer or file can encode."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def _kind(body: str) -> str:
    """Whether a call that is no JSON was cut off (its brackets are still open) or is wrong."""
    try:
        json.loads(body)
    except json.JSONDecodeError as problem:
        is_open = problem.pos >= len(body.rstrip()) or "Unterminated" in problem.msg
        return "cut" if is_open else "bad_json"
    except (ValueError, RecursionError):
        pass
    return "bad_json"
