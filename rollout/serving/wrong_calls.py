"""Which tool calls of a reply are wrong, as far as that can be told without running them."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from typing import Any

from palestra.types import Message, ToolResult, ToolSchema


def find_wrong_calls(message: Message, tools: Sequence[ToolSchema]) -> tuple[ToolResult, ...]:
    """A result for each call that is malformed, names no tool, or does not fit its schema.

    The agent runs the tools and has its own way to say so to the policy; these are for counting,
    and to tell whose fault it is when the agent gives up.
    """
    parameters = {tool["function"]["name"]: tool["function"].get("parameters") for tool in tools}
    wrong = []
    for call in message.get("tool_calls") or ():
        name = call["function"]["name"]
        kind = call.get("error")
        if kind is None and name not in parameters:
            kind = "unknown_tool"
        elif kind is None and not _fits(call["function"]["arguments"], parameters[name]):
            kind = "bad_arguments"
        if kind is not None:
            wrong.append(ToolResult(call_id=call["id"], name=name, content="", error=kind))
    return tuple(wrong)


def _fits(arguments: str, schema: Any) -> bool:
    try:
        value = json.loads(arguments)
        return schema is None or bool(_validator(json.dumps(schema)).is_valid(value))
    except Exception:  # a schema that only its owner understands
        return True


@functools.lru_cache(maxsize=256)
def _validator(schema: str) -> Any:
    from jsonschema import Draft202012Validator
    from jsonschema.validators import validator_for

    loaded = json.loads(schema)
    return validator_for(loaded, default=Draft202012Validator)(loaded)
