"""Replies that must have a form: a call, JSON of a schema, or either; how they begin and end.

A forced call begins behind the prompt with what the model begins one with, which is context; a JSON
schema then leaves it one object to write, with the name of a tool and arguments as that tool takes
them. Where a reply has a schema and tools may be called, it is one or the other, a single call. No
reply of such a form has thinking: where the prompt opens it, it is closed there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from palestra.rollout.serving.api_error import ApiError
from palestra.rollout.serving.reply import ReplyRequest
from palestra.types import CallShape, Structure, ToolSchema

if TYPE_CHECKING:
    from palestra.rollout.chat_format import ChatFormat


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplyShape:
    """`prefix` goes behind the prompt, `suffix` behind what was sampled."""

    prefix: str
    prefix_ids: tuple[int, ...]
    structure: Structure
    suffix: str = ""


def shape_reply(chat_format: ChatFormat, request: ReplyRequest) -> ReplyShape | None:
    """The form that the request wants; None if it leaves it to the model.

    Raises:
        ApiError: 400 if there is no tool to call, or none of the name that must be called.
    """
    tools = _callable_tools(request)
    structure = request.sampling.structure
    form = chat_format.call_format
    prefix = "</think>\n\n" if chat_format.opening else ""
    suffix = ""
    if request.tool_choice in ("required", "function"):
        schema = call_schema(tools, arguments_key=form.arguments_key)
        prefix, structure, suffix = prefix + form.prefix, Structure(json_schema=schema), form.suffix
    elif structure is None:
        return None
    elif tools:
        schema = call_schema(tools, arguments_key=form.arguments_key)
        call = CallShape(prefix=form.prefix, json_schema=schema, suffix=form.suffix)
        structure = replace(structure, call=call)
    ids = tuple(chat_format.encode_written(prefix)) if prefix else ()
    return ReplyShape(prefix=prefix, prefix_ids=ids, structure=structure, suffix=suffix)


def _callable_tools(request: ReplyRequest) -> tuple[ToolSchema, ...]:
    if request.tool_choice == "none":
        return ()
    tools = request.tools
    if request.tool_choice == "function":
        tools = tuple(tool for tool in tools if tool["function"]["name"] == request.tool_name)
    if request.tool_choice != "auto" and not tools:
        missing = f" named {request.tool_name!r}" if request.tool_choice == "function" else ""
        raise ApiError(
            400,
            f"tool_choice asks for a call, but the request has no tool{missing}: add it to tools",
            code="invalid_value",
            param="tool_choice",
        )
    return tools


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
