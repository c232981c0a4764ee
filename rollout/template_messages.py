"""Conversations rewritten just enough that a template prints all of them and never raises.

Content becomes one string, arguments become dicts, and what messages say is marked as text (see
`inert_text`). What a template cannot print as such is put where it can: a malformed call or a
second call into the content, as the model wrote it; tools into the system message; tool results
into the user's turn.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from palestra.rollout.call_formats import CallFormat, announce, split_thinking
from palestra.rollout.inert_text import Marker
from palestra.rollout.template_traits import Traits
from palestra.types import Message, ToolSchema

_CALL_ID_LENGTH = 9  # what templates ask for that are particular about ids
_MAX_SCHEMAS = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class Preparer:
    """Prepares conversations for one template."""

    traits: Traits
    form: CallFormat
    marker: Marker
    _schemas: dict[int, tuple[ToolSchema, ToolSchema]] = field(default_factory=dict)

    def prepare(
        self, messages: Sequence[Message], tools: Sequence[ToolSchema]
    ) -> tuple[list[Message], list[ToolSchema]]:
        """The messages and tools as the template takes them.

        Raises ValueError for an empty conversation, a message without a role, or content that is
        not text.
        """
        if not messages:
            raise ValueError("a conversation needs at least one message, got none")
        schemas = [self._schema(tool) for tool in tools]
        traits = self.traits
        prepared: list[Message] = []
        flattened = False  # the last assistant message holds its calls as text
        for message in messages:
            role = message.get("role")
            if role == "assistant":
                said, flattened = self._assistant(message)
            elif role == "tool":
                as_user = not traits.tool_role or (traits.alternates and flattened)
                said = self._tool_result(message, as_user=as_user)
            else:
                said = self._said(message, role, first=not prepared)
            prepared.append(said)
        if tools and not traits.tools:
            _add_to_system(prepared, announce(schemas))
            schemas = []
        if not traits.system:
            _merge_system_into_user(prepared)
        return (_alternating(prepared) if traits.alternates else prepared), schemas

    def _schema(self, tool: ToolSchema) -> ToolSchema:
        """The schema marked like a tool's output: it may come from a foreign server."""
        known = self._schemas.get(id(tool))
        if known is None:
            if len(self._schemas) > _MAX_SCHEMAS:
                self._schemas.clear()
            # The entry keeps the tool alive, so that its id stays its own.
            marked = self.marker.mark_all(tool, tags=True)
            # Clients may leave these out; templates print them.
            marked["function"].setdefault("description", "")
            marked["function"].setdefault("parameters", {"type": "object", "properties": {}})
            known = self._schemas[id(tool)] = (tool, marked)
        return known[1]

    def _said(self, message: Message, role: Any, *, first: bool) -> Message:
        if not isinstance(role, str) or not role:
            raise ValueError(f"a message needs a role such as 'user', got {role!r}")
        if role == "developer":
            role = "system"
        if role == "system" and not first and not self.traits.late_system:
            role = "user"
        role = self.marker.mark(role, tags=True)
        return {"role": role, "content": self.marker.mark(_text(message), tags=False)}

    def _tool_result(self, message: Message, *, as_user: bool) -> Message:
        content = self.marker.mark(_text(message), tags=True)
        if as_user:
            return {"role": "user", "content": f"<tool_response>\n{content}\n</tool_response>"}
        return {
            "role": "tool",
            "tool_call_id": self._call_id(message.get("tool_call_id")),
            "name": self.marker.mark(str(message.get("name") or ""), tags=True),
            "content": content,
        }

    def _assistant(self, message: Message) -> tuple[Message, bool]:
        """The message as the template takes it, and whether its calls became text."""
        traits = self.traits
        reasoning, content = (
            self.marker.mark(text, tags=False) for text in _reasoning_and_content(message)
        )
        said: Message = {"role": "assistant"}
        if traits.reasoning:
            # Always a string: without one, Qwen3 looks for thinking inside the content.
            said["reasoning_content"] = reasoning
        elif reasoning:
            content = f"<think>\n{reasoning}\n</think>\n\n{content}"
        calls = message.get("tool_calls") or ()
        structured = self._structured(calls)
        # A strict template would not take the tool results that follow calls written as text.
        loses_text = content and not traits.text_with_calls and not traits.alternates
        if calls and (structured is None or loses_text):
            written = self.form.write([self._marked(call) for call in calls])
            said["content"] = f"{content}\n{written}" if content else written
            return said, True
        said["content"] = content
        if structured:
            said["tool_calls"] = structured
        return said, False

    def _structured(self, calls: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]] | None:
        """The calls with arguments as dicts; None where the template cannot print them."""
        if (calls and not self.traits.calls) or (len(calls) > 1 and not self.traits.several_calls):
            return None
        structured = []
        for call in calls:
            function = _function(call)
            arguments = self._arguments(function)
            if call.get("error") or not function["name"] or arguments is None:
                return None
            marked = {
                "name": self.marker.mark(function["name"], tags=False),
                "arguments": arguments,
            }
            entry = {"id": self._call_id(call.get("id")), "type": "function", "function": marked}
            structured.append(entry)
        return structured

    def _arguments(self, function: Mapping[str, Any]) -> dict[str, Any] | None:
        """A call's arguments as a marked dict, None if they are no sane JSON object."""
        arguments = function["arguments"]
        try:
            if isinstance(arguments, str):
                arguments = json.loads(arguments)
            marked = self.marker.mark_all(arguments, tags=False)
        except (ValueError, RecursionError):
            return None
        return marked if isinstance(marked, dict) else None

    def _marked(self, call: Mapping[str, Any]) -> dict[str, Any]:
        function = _function(call)
        arguments = function["arguments"]
        if not isinstance(arguments, str):
            arguments = json.dumps(arguments, ensure_ascii=False)
        marked = {
            "name": self.marker.mark(function["name"], tags=False),
            "arguments": self.marker.mark(arguments, tags=False),
        }
        return {**call, "function": marked}

    def _call_id(self, call_id: Any) -> str:
        text = str(call_id or "")
        if self.traits.any_call_id:
            return self.marker.mark(text, tags=True)
        if len(text) == _CALL_ID_LENGTH and text.isascii() and text.isalnum():
            return text
        return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:_CALL_ID_LENGTH]


def meaning(reply: Message) -> tuple[str, str, list[tuple[str, str, str | None]]]:
    """What a reply says, without the spacing and number formatting that a template chooses."""
    reasoning, content = _reasoning_and_content(reply)
    calls = [
        (call["function"]["name"], _canonical(call["function"]["arguments"]), call.get("error"))
        for call in reply.get("tool_calls") or ()
    ]
    return reasoning.strip(), content.strip(), calls


def _canonical(arguments: Any) -> str:
    try:
        value = json.loads(arguments) if isinstance(arguments, str) else arguments
        return json.dumps(value, sort_keys=True)
    except (ValueError, TypeError, RecursionError):
        return str(arguments).strip()


def _reasoning_and_content(message: Message) -> tuple[str, str]:
    """An assistant's thinking and answer, also where the content holds both as raw text."""
    content, reasoning = _text(message), message.get("reasoning_content")
    if reasoning:
        return str(reasoning), content
    return split_thinking(content)


def _text(message: Message) -> str:
    """A message's content as one string. Raises ValueError for parts that are not text."""
    content = message.get("content")
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, (list, tuple)):
        raise ValueError(f"message content must be text, got {type(content).__name__}")
    texts = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        if kind != "text":
            raise ValueError(f"this chat format takes text only, got a content part {kind!r}")
        texts.append(str(part["text"]))
    return "".join(texts)


def _function(call: Mapping[str, Any]) -> Mapping[str, Any]:
    function = call.get("function")
    if not isinstance(function, dict) or "name" not in function or "arguments" not in function:
        raise ValueError(f"a tool call needs a function with name and arguments, got {call!r}")
    return function


def _add_to_system(messages: list[Message], text: str) -> None:
    if messages[0]["role"] == "system":
        messages[0] = {**messages[0], "content": messages[0]["content"] + "\n\n" + text}
    else:
        messages.insert(0, {"role": "system", "content": text})


def _merge_system_into_user(messages: list[Message]) -> None:
    if messages[0]["role"] != "system":
        return
    system = messages.pop(0)["content"]
    if messages and messages[0]["role"] == "user":
        messages[0] = {**messages[0], "content": system + "\n\n" + messages[0]["content"]}
    else:
        messages.insert(0, {"role": "user", "content": system})


def _alternating(messages: Sequence[Message]) -> list[Message]:
    """The conversation with user and assistant in turn, as strict templates demand.

    Neighbours of one role are joined; elsewhere (a user who speaks right after a tool) an empty
    message of the other role goes between. Calls and tool results do not count as turns.
    """
    out: list[Message] = []
    expected = "user"
    for message in messages:
        role = message["role"]
        if role not in ("user", "assistant") or "tool_calls" in message:
            out.append(message)
            continue
        if role != expected:
            last = out[-1] if out else None
            if last is not None and last["role"] == role and "tool_calls" not in last:
                out[-1] = {**last, "content": last["content"] + "\n\n" + message["content"]}
                continue
            out.append({"role": expected, "content": ""})
        out.append(message)
        expected = "assistant" if role == "user" else "user"
    return out
