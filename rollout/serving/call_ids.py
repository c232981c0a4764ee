"""Ids of tool calls: those that the chat format gives, and those that clients see.

A chat format counts the calls of each message ("call_0"), and that is what a training rollout has
in its prompts. Clients need ids that are unique in a conversation: behind each goes "-" and twelve
hexadecimal digits, which come off again when the client sends them back. Nothing is remembered.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from palestra.rollout.serving.api_error import ApiError
from palestra.rollout.serving.reply import CallDelta, ReplyDelta
from palestra.types import Message

# The ids of chat formats are counted or, in Mistral's form, nine letters and digits.
_ISSUED = re.compile(r"(call_[0-9]+|[A-Za-z0-9]{9})-[0-9a-f]{12}")


@dataclass(slots=True)
class IssuedIds:
    """Gives the calls in the deltas of one or more replies unique ids, and their messages the same.

    The turns at their ends keep the chat format's.
    """

    _ids: dict[tuple[int, int], str] = field(default_factory=dict)

    def rename(self, delta: ReplyDelta) -> ReplyDelta:
        """The delta as a client gets it."""
        calls = tuple(self._renamed(delta.choice, call) for call in delta.calls)
        end = delta.end
        if end is not None and "tool_calls" in end.message:
            renamed = [
                {**call, "id": self._ids[delta.choice, index]}
                for index, call in enumerate(end.message["tool_calls"])
            ]
            end = replace(end, message={**end.message, "tool_calls": renamed})
        return replace(delta, calls=calls, end=end)

    def _renamed(self, choice: int, call: CallDelta) -> CallDelta:
        if call.id is None:
            return call
        issued = self._ids[choice, call.index] = _issue(call.id)
        return replace(call, id=issued)


def restore(messages: Sequence[Message]) -> tuple[Message, ...]:
    """A client's messages with the ids that a training rollout has.

    The ids of a message that we issued are stripped; those of any other are counted, as
    `ChatFormat.parse` does. Tool messages get the ids, and where they have no name the names, of
    the calls that they answer, and where several follow each other, the order of those: a rollout
    has results in the order of the calls.

    Raises:
        ApiError: 400, naming the message, for a tool message that answers no call of the last
            assistant message before it, or calls that have no id, name and arguments.
    """
    restored: list[Message] = []
    results: list[tuple[int, Message]] = []  # tool messages, each with the place of its call
    calls: list[dict[str, Any]] = []  # of the last assistant message, as restored
    open_calls: dict[str, list[int]] = {}  # their places, by the client's ids

    for number, message in enumerate(messages):
        if message.get("role") == "tool":
            place = _answered(message, open_calls, number)
            call = calls[place]
            name = message.get("name") or call["function"]["name"]
            result = {**message, "tool_call_id": call["id"], "name": name}
            results.append((place, result))
            continue
        restored += _in_order(results)
        results.clear()
        if message.get("role") == "assistant":
            given = message.get("tool_calls") or []
            calls = _restored_calls(given, number)
            open_calls = {}
            for place, call in enumerate(given):
                open_calls.setdefault(call["id"], []).append(place)
            if given:
                message = {**message, "tool_calls": calls}
        restored.append(message)
    return (*restored, *_in_order(results))


def _in_order(results: list[tuple[int, Message]]) -> list[Message]:
    return [result for _, result in sorted(results, key=lambda entry: entry[0])]


def _restored_calls(calls: Any, number: int) -> list[dict[str, Any]]:
    where = f"messages[{number}].tool_calls"
    if not isinstance(calls, (list, tuple)):
        raise ApiError(400, f"{where} must be a list", code="invalid_value", param=where)
    for index, call in enumerate(calls):
        if not _is_call(call):
            raise ApiError(
                400,
                f"{where}[{index}] needs an id and a function with a name and arguments as text",
                code="invalid_value",
                param=f"{where}[{index}]",
            )
    issued = [_ISSUED.fullmatch(call["id"]) for call in calls]
    ids = [match[1] for match in issued if match is not None]
    if len(set(ids)) < len(calls):
        ids = [f"call_{index}" for index in range(len(calls))]
    return [{**call, "id": call_id} for call, call_id in zip(calls, ids, strict=True)]


def _is_call(call: Any) -> bool:
    if not isinstance(call, dict) or not isinstance(call.get("id"), str):
        return False
    function = call.get("function")
    return isinstance(function, dict) and all(
        isinstance(function.get(key), str) for key in ("name", "arguments")
    )


def _answered(message: Message, open_calls: dict[str, list[int]], number: int) -> int:
    """The place of the call that a tool message answers."""
    call_id = message.get("tool_call_id")
    places = open_calls.get(call_id) if isinstance(call_id, str) else None
    if not places:
        raise ApiError(
            400,
            f"messages[{number}] answers the tool call {call_id!r}, which the last assistant "
            "message before it does not make: send that message along, with its tool_calls",
            code="invalid_value",
            param=f"messages[{number}].tool_call_id",
        )
    # Some clients give several calls one id: their results come in order.
    return places.pop(0) if len(places) > 1 else places[0]


def _issue(call_id: str) -> str:
    return f"{call_id}-{secrets.token_hex(6)}"
