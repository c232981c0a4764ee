"""Replies that must be a tool call: how they begin, what they hold and how they end.

Behind the prompt stands how the model begins a call, which is context; a JSON schema then leaves it
one object to write, with the name of a tool and arguments as that tool takes them. A forced reply
is one call, without thinking.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from palestra.rollout.serving.api_error import ApiError
from palestra.rollout.serving.reply import ReplyRequest
from palestra.types import Structure, ToolSchema

if TYPE_CHECKING:
    from palestra.rollout.chat_format import ChatFormat


@dataclass(frozen=True, kw_only=True, slots=True)
class ForcedCall:
    """How a call is forced: `prefix` goes behind the prompt, `suffix` behind what was sampled."""

    prefix: str
    prefix_ids: tuple[int, ...]
    structure: Structure
    suffix: str


def force_call(chat_format: ChatFormat, request: ReplyRequest) -> ForcedCall | None:
    """How the request forces a call; None if it does not.

    Raises:
        ApiError: 400 if there is no tool to call, or none of the name that must be called.
    """
    if request.tool_choice not in ("required", "function"):
        return None
    tools = request.tools
    if request.tool_choice == "function":
        tools = tuple(tool for tool in tools if tool["function"]["name"] == request.tool_name)
    if not tools:
        missing = f" named {request.tool_name!r}" if request.tool_choice == "function" else ""
        raise ApiError(
            400,
            f"tool_choice asks for a call, but the request has no tool{missing}: add it to tools",
            code="invalid_value",
            param="tool_choice",
        )
    form = chat_format.call_format
    thinking = "</think>\n\n" if chat_format.opening else ""
    prefix = thinking + form.prefix
    schema = call_schema(tools, arguments_key=form.arguments_key)
    return ForcedCall(
        prefix=prefix,
        prefix_ids=tuple(chat_format.encode_written(prefix)),
        structure=Structure(json_schema=schema),
        suffix=form.suffix,
    )


def call_schema(tools: Sequence[ToolSchema], *, arguments_key: str) -> dict[str, Any]:
    """The JSON schema of a call of any of the tools."""
    definitions: dict[str, Any] = {}
    calls = []
    for index, tool in enumerate(tools):
        function = tool["function"]
        parameters = function.get("parameters") or {"type": "object", "properties": {}}
        if _has_reference(parameters):
            # References count from the root, which is another one here.
            root = f"#/$defs/tool_{index}"
            definitions[f"tool_{index}"] = _rooted(parameters, root)
            parameters = {"$ref": root}
        calls.append(
            {
                "type": "object",
                "properties": {"name": {"const": function["name"]}, arguments_key: parameters},
                "required": ["name", arguments_key],
                "additionalProperties": False,
            }
        )
    schema: dict[str, Any] = calls[0] if len(calls) == 1 else {"anyOf": calls}
    return {**schema, "$defs": definitions} if definitions else schema


def _has_reference(schema: Any) -> bool:
    if isinstance(schema, dict):
        return isinstance(schema.get("$ref"), str) or any(map(_has_reference, schema.values()))
    return isinstance(schema, list) and any(map(_has_reference, schema))


def _rooted(schema: Any, root: str) -> Any:
    """The schema with its references counted from `root` inside of a larger one."""
    if isinstance(schema, list):
        return [_rooted(item, root) for item in schema]
    if not isinstance(schema, dict):
        return schema
    rooted = {key: _rooted(item, root) for key, item in schema.items()}
    reference = schema.get("$ref")
    if isinstance(reference, str) and (reference == "#" or reference.startswith("#/")):
        rooted["$ref"] = root + reference[1:]
    return rooted
