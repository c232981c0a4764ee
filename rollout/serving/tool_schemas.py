"""Tools as clients send them, checked: every API refuses the same ones for the same reasons."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from palestra.rollout.serving.api_error import ApiError
from palestra.types import ToolSchema

_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_MAX_TOOLS = 128
_MAX_SCHEMA_CHARS = 65_536
_MAX_DESCRIPTION_CHARS = 65_536
_MAX_DEPTH = 64
_BAD_PARAMETERS = "invalid_function_parameters"
_FIELDS = ("name", "description", "parameters", "strict")


def check_tools(tools: Sequence[Any]) -> tuple[ToolSchema, ...]:
    """Tools in the form of chat completions: {"type": "function", "function": {"name": …}}.

    `strict` is accepted and dropped, for it is not the model's to read. Raises ApiError (400).
    """
    functions = []
    for index, tool in enumerate(tools):
        at = f"tools[{index}]"
        if not isinstance(tool, Mapping):
            raise _refusal(at, f"a tool is an object, got {_shown(tool)}")
        if tool.get("type") != "function":
            raise _refusal(f"{at}.type", f'only "function" tools, got {_shown(tool.get("type"))}')
        if unknown := sorted(tool.keys() - {"type", "function"}):
            raise _refusal(f"{at}.{_printable(unknown[0])}", "a tool has no such field")
        functions.append(tool.get("function"))
    return check_functions(functions, at="tools[{}].function")


def check_functions(
    functions: Sequence[Any], *, at: str = "tools[{}]", parameters: str = "parameters"
) -> tuple[ToolSchema, ...]:
    """Functions as {"name", "description", "parameters", "strict"}, made into tools.

    `at` is where the client wrote each and `parameters` what it called that field, for messages.
    Raises ApiError (400).
    """
    if len(functions) > _MAX_TOOLS:
        raise _refusal("tools", f"at most {_MAX_TOOLS} tools, got {len(functions)}")
    tools: dict[str, ToolSchema] = {}
    for index, function in enumerate(functions):
        place = at.format(index)
        tool = _checked(function, place, f"{place}.{parameters}")
        name = tool["function"]["name"]
        if name in tools:
            raise _refusal(f"{place}.name", f'two tools are called "{name}"')
        tools[name] = tool
    return tuple(tools.values())


def check_json_schema(schema: Any, *, at: str, code: str = "invalid_json_schema") -> None:
    """Raises ApiError (400, param `at`) unless `schema` is a JSON Schema of moderate size.

    Its references are not followed.
    """
    if not isinstance(schema, Mapping):
        raise _refusal(at, f"a JSON Schema is an object, got {_shown(schema)}")
    try:
        if _depth(schema) > _MAX_DEPTH:
            raise ValueError(f"it is nested more than {_MAX_DEPTH} levels deep")
        text = json.dumps(schema, allow_nan=False, ensure_ascii=False)
        if len(text) > _MAX_SCHEMA_CHARS:
            raise ValueError(f"it has {len(text)} characters, at most {_MAX_SCHEMA_CHARS} may be")
        text.encode()
        problem = _problem(text)
    except UnicodeEncodeError:
        problem = "it contains half a character (an unpaired surrogate)"
    except ValueError as error:
        problem = str(error)
    if problem:
        raise _refusal(at, f"not a JSON Schema: {problem}", code=code)


def _checked(function: Any, at: str, parameters_at: str) -> ToolSchema:
    if not isinstance(function, Mapping):
        raise _refusal(at, f"a function is an object, got {_shown(function)}")
    if unknown := sorted(function.keys() - set(_FIELDS)):
        raise _refusal(f"{at}.{_printable(unknown[0])}", "a function has no such field")
    name, description = function.get("name"), function.get("description")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise _refusal(
            f"{at}.name", f"a name is 1 to 64 letters, digits, _ and -, got {_shown(name)}"
        )
    if not isinstance(function.get("strict"), bool | None):
        raise _refusal(f"{at}.strict", f"true or false, got {_shown(function['strict'])}")
    checked: dict[str, Any] = {"name": name}
    if description is not None:
        checked["description"] = _checked_description(description, f"{at}.description")
    schema = function.get("parameters")
    if schema is not None:
        check_json_schema(schema, at=parameters_at, code=_BAD_PARAMETERS)
        if schema.get("type") != "object":
            raise _refusal(
                parameters_at,
                f'the arguments are an object: its "type" must be "object", got '
                f"{_shown(schema.get('type'))}",
                code=_BAD_PARAMETERS,
            )
        checked["parameters"] = schema
    return {"type": "function", "function": checked}


def _checked_description(description: Any, at: str) -> str:
    if not isinstance(description, str):
        raise _refusal(at, f"a description is text, got {_shown(description)}")
    if len(description) > _MAX_DESCRIPTION_CHARS:
        raise _refusal(
            at, f"{len(description)} characters, at most {_MAX_DESCRIPTION_CHARS} may be"
        )
    try:
        description.encode()
    except UnicodeEncodeError:
        raise _refusal(at, "it contains half a character (an unpaired surrogate)") from None
    return description


# An agent sends the same tools with every request.
@functools.lru_cache(maxsize=256)
def _problem(schema: str) -> str:
    """What is wrong with a JSON Schema, given as its text; "" if nothing."""
    from jsonschema import Draft202012Validator, SchemaError
    from jsonschema.validators import validator_for

    loaded = json.loads(schema)
    if not isinstance(loaded.get("$schema", ""), str):
        return '"$schema" must be the address of a dialect'
    dialect: Any = validator_for(loaded, default=Draft202012Validator)
    try:
        dialect.check_schema(loaded)
    except SchemaError as error:
        where = error.json_path.removeprefix("$").removeprefix(".")
        return f"{where}: {error.message:.200}" if where else f"{error.message:.200}"
    # Regular expressions and numbers that Python cannot hold.
    except (ArithmeticError, RecursionError, TypeError, ValueError, re.error) as error:
        return f"it cannot be read ({type(error).__name__})"
    return ""


def _depth(value: Any) -> int:
    """How many objects and arrays stand in one another; counts to one above the limit."""
    level, layer = 0, [value]
    while layer and level <= _MAX_DEPTH:
        layer = [
            inner
            for outer in layer
            if isinstance(outer, Mapping | list)
            for inner in (outer.values() if isinstance(outer, Mapping) else outer)
        ]
        level += bool(layer)
    return level


def _refusal(at: str, problem: str, *, code: str = "invalid_value") -> ApiError:
    return ApiError(400, f"{at}: {problem}", code=code, param=at)


def _printable(name: str) -> str:
    """A field's name as it may stand in an answer: cut short, without half characters."""
    return name[:64].encode("utf-8", "backslashreplace").decode()


def _shown(value: Any) -> str:
    """A value as JSON, cut short."""
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list):
        return "a list"
    return json.dumps(value)[:80]
