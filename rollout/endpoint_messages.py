"""Messages to and from an OpenAI-compatible endpoint: what its servers accept, what they return."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from palestra.endpoint import Reply
from palestra.tools import parse_reply
from palestra.types import Message

_SENT = ("role", "content", "tool_call_id", "name")
_NO_NAME_CHARACTER = re.compile(r"[^a-zA-Z0-9_-]")
_MAX_NAME_CHARS = 64


def reply_message(reply: Reply) -> Message:
    """The assistant's message in a reply, in the form of `parse_reply`.

    Native calls of any shape become entries of `tool_calls`: one without a name has the error
    "bad_json", one that the token limit cut has "cut". Where there are none, Hermes calls in the
    text are read, as servers without a parser of their own leave them there.
    """
    text = _encodable(reply.refusal or reply.text)
    if reply.tool_calls:
        message: Message = {"role": "assistant", "content": text}
        is_cut = reply.finish_reason == "length"
        message["tool_calls"] = _read_calls(reply.tool_calls, is_cut=is_cut)
    else:
        message = parse_reply(text)
    if reply.reasoning:
        message["reasoning_content"] = _encodable(reply.reasoning)
    return message


def sent_message(message: Message, *, with_reasoning: bool = False) -> Message:
    """A message of a conversation without what servers refuse.

    A malformed call goes back as one that is well-formed, with its text as the argument
    "malformed": servers answer others with an error, and the tool's answer to it must follow a
    call.
    """
    sent = {key: message[key] for key in _SENT if key in message}
    if with_reasoning and message.get("reasoning_content"):
        sent["reasoning_content"] = message["reasoning_content"]
    calls = message.get("tool_calls")
    if calls:
        sent["content"] = message.get("content") or None
        sent["tool_calls"] = [_sent_call(call) for call in calls]
    return sent


def _read_calls(calls: Sequence[Any], *, is_cut: bool) -> list[dict[str, Any]]:
    read: list[dict[str, Any]] = []
    ids: set[str] = set()
    for index, call in enumerate(calls):
        call = call if isinstance(call, Mapping) else {}
        function = call.get("function")
        function = function if isinstance(function, Mapping) else {}
        name, arguments = function.get("name"), function.get("arguments")
        if not isinstance(arguments, str):  # some servers send the object itself
            arguments = "{}" if arguments is None else json.dumps(arguments, ensure_ascii=False)
        call_id = call.get("id")
        if not isinstance(call_id, str) or not call_id:
            call_id = f"call_{index}"
        while call_id in ids:
            call_id += "_"
        ids.add(call_id)
        entry: dict[str, Any] = {
            "id": _encodable(call_id),
            "type": "function",
            "function": {
                "name": _encodable(name) if isinstance(name, str) else "",
                # For a tool without parameters some send no arguments at all.
                "arguments": _encodable(arguments) or "{}",
            },
        }
        is_last = index == len(calls) - 1
        if is_cut and is_last and not _is_object(arguments):
            entry["error"] = "cut"
        elif not entry["function"]["name"]:
            entry["error"] = "bad_json"
        read.append(entry)
    return read


def _sent_call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call["function"]
    name = _NO_NAME_CHARACTER.sub("_", function["name"])[:_MAX_NAME_CHARS] or "malformed"
    arguments = function["arguments"]
    if call.get("error") or not _is_object(arguments):
        arguments = json.dumps({"malformed": arguments}, ensure_ascii=False)
    return {
        "id": call["id"],
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _encodable(text: str) -> str:
    """JSON can escape half a character ("\\ud800"), which no file can hold."""
    return text.encode("utf-8", "replace").decode("utf-8")
