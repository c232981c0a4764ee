"""What a chat template does with each kind of message, found by rendering small probes.

Templates differ: some ignore tools, print one call at most, insist that user and assistant take
turns, or drop thinking. Nothing here knows a model by name.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from palestra.rollout.call_formats import FORMATS, CallFormat
from palestra.rollout.chat_template import ChatTemplate
from palestra.types import Message, ToolSchema

ANSWER = "answer-probe"
CALL_NAME = "call-probe"
CALL_ARGUMENTS = {"probe": "value-probe"}

USER: Message = {"role": "user", "content": "question-probe"}
ASSISTANT: Message = {"role": "assistant", "content": ANSWER}
SYSTEM: Message = {"role": "system", "content": "system-probe"}
TOOL: ToolSchema = {
    "type": "function",
    "function": {
        "name": "tool-probe",
        "description": "Probes.",
        "parameters": {"type": "object", "properties": {"probe": {"type": "string"}}},
    },
}
_ID = "probe0000"  # nine letters and digits: Mistral's templates insist on that


def _call(name: str, *, call_id: str = _ID) -> dict[str, Any]:
    function = {"name": name, "arguments": CALL_ARGUMENTS}
    return {"id": call_id, "type": "function", "function": function}


def _calling(*calls: dict[str, Any]) -> Message:
    return {"role": "assistant", "content": "", "tool_calls": list(calls)}


CALLING = _calling(_call(CALL_NAME))


@dataclass(frozen=True, kw_only=True, slots=True)
class Traits:
    """What a template takes and prints."""

    tools: bool  # announces tool schemas
    calls: bool  # prints tool calls
    several_calls: bool  # ... more than one in a message
    text_with_calls: bool  # ... and the content beside them
    tool_role: bool  # prints tool results
    reasoning: bool  # prints `reasoning_content`
    system: bool  # takes a system message at the start
    late_system: bool  # takes one later on
    alternates: bool  # raises unless user and assistant take turns
    any_call_id: bool  # takes call ids of any length


def probe(template: ChatTemplate) -> Traits:
    """Find a template's traits by rendering about a dozen one-line conversations."""
    two = _calling(_call(CALL_NAME), _call("second-probe"))
    calls = template.shows(CALL_NAME, [USER, CALLING])
    result = {"role": "tool", "tool_call_id": _ID, "name": CALL_NAME, "content": "result-probe"}
    thinking = {**ASSISTANT, "reasoning_content": "thinking-probe"}
    return Traits(
        tools=template.shows("tool-probe", [USER], [TOOL]),
        calls=calls,
        several_calls=calls and template.shows("second-probe", [USER, two]),
        text_with_calls=calls and template.shows(ANSWER, [USER, {**CALLING, "content": ANSWER}]),
        tool_role=template.shows("result-probe", [USER, CALLING if calls else ASSISTANT, result]),
        reasoning=template.shows("thinking-probe", [USER, thinking]),
        system=template.shows("system-probe", [SYSTEM, USER]),
        late_system=template.shows("system-probe", [USER, ASSISTANT, SYSTEM]),
        alternates=not template.takes([USER, USER]),
        any_call_id=not calls or template.takes([USER, _calling(_call(CALL_NAME, call_id="x"))]),
    )


def find_end_of_turn(template: ChatTemplate, special_tokens: Iterable[str]) -> str:
    """The special token that the template prints behind an assistant's message.

    Raises ValueError if there is none: nobody could tell where a reply ends.
    """
    _, printed, rest = template.render([USER, ASSISTANT]).rpartition(ANSWER)
    if not printed:
        raise ValueError("the chat template does not print an assistant's plain text")
    found = [(rest.find(token), -len(token), token) for token in special_tokens if token in rest]
    if not found:
        raise ValueError("the chat template ends the assistant's turn with no special token")
    return min(found)[2]


def find_call_form(template: ChatTemplate, end_of_turn: str) -> CallFormat | None:
    """The form in which the template prints a tool call, None if it is none of ours."""
    prompt = template.render([USER], prompt=True)
    text = template.render([USER, CALLING])
    header = prompt if text.startswith(prompt) else template.render([USER])
    reply = text.removeprefix(header).partition(end_of_turn)[0]
    for form in FORMATS.values():
        calls = form.read(reply).get("tool_calls", [])
        names = [call["function"]["name"] for call in calls]
        if names == [CALL_NAME] and json.loads(calls[0]["function"]["arguments"]) == CALL_ARGUMENTS:
            return form
    return None
