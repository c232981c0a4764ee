"""What is wrong with a call's arguments, in words that a model can act on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pydantic
from pydantic_core import ErrorDetails, from_json, to_json

from palestra.tools.json_schema import type_name

_MAX_PROBLEMS = 8
_MAX_VALUE_CHARS = 60
_VALID = re.compile(r"^a valid (?=([a-z]))")


class BadArguments(Exception):
    """Arguments that do not fit; the text is for the model, one line per problem.

    `kind` is what `ToolResult.error` counts: "bad_json" (no JSON object) or "bad_arguments".
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def describe_problems(
    error: pydantic.ValidationError, text: str, schema: Mapping[str, Any], tool_name: str
) -> BadArguments:
    """Pydantic's verdict on `text` in our words, e.g. `missing argument "b" (integer)`."""
    details = error.errors(include_url=False, include_context=False)
    first = details[0]
    if first["type"] in ("json_invalid", "string_unicode"):
        reason = first["msg"].removeprefix("Invalid JSON: ")
        return BadArguments("bad_json", f"the arguments are not valid JSON: {reason}")
    if not first["loc"]:
        got = shown(first["input"])
        return BadArguments("bad_json", f"the arguments must be a JSON object, got {got}")
    arguments = from_json(text)
    # A value of a union type brings one problem per alternative: together they make one line.
    alternatives: dict[tuple[str, str], dict[str, None]] = {}
    for detail in details:
        before, should, after = _problem(detail, arguments, schema["properties"], tool_name)
        alternatives.setdefault((before, after), {})[should] = None
    lines = [
        before + " or ".join(should) + after for (before, after), should in alternatives.items()
    ]
    if len(lines) > _MAX_PROBLEMS:
        lines[_MAX_PROBLEMS:] = [f"and {len(lines) - _MAX_PROBLEMS} more problems"]
    return BadArguments("bad_arguments", "\n".join(lines))


def shown(value: Any) -> str:
    """A value as JSON, short enough to repeat to the model."""
    try:
        text = to_json(value, fallback=str).decode()
    except ValueError:
        text = str(value)
    return text if len(text) <= _MAX_VALUE_CHARS else text[: _MAX_VALUE_CHARS - 1] + "…"


def _problem(
    detail: ErrorDetails, arguments: Any, properties: Mapping[str, Any], tool_name: str
) -> tuple[str, str, str]:
    """The line about one problem, as (before, what it should be, after)."""
    location, kind = detail["loc"], detail["type"]
    if kind in ("missing", "extra_forbidden"):
        owner, name = _path(location[:-1], arguments), location[-1]
        if owner:
            return f'{_ADJECTIVE[kind]} "{name}" in argument "{owner}"', "", ""
        if kind == "missing":
            return f'missing argument "{name}" ({type_name(properties[str(name)])})', "", ""
        takes = ", ".join(properties) or "no arguments"
        return f"unexpected argument {shown(name)}; {tool_name} takes {takes}", "", ""
    subject = f'argument "{_path(location, arguments)}"'
    got = f", got {shown(detail['input'])}"
    message = detail["msg"]
    should = message.removeprefix("Input should be ")
    if should == message:
        return f"{subject}: ", message.removeprefix("Value error, "), got
    return f"{subject} should be ", _VALID.sub(_article, should), got


_ADJECTIVE = {"missing": "missing", "extra_forbidden": "unexpected"}


def _article(match: re.Match[str]) -> str:
    return "an " if match[1] in "aeiou" else "a "


def _path(location: tuple[int | str, ...], value: Any) -> str:
    """Where a problem is, e.g. `points[2].x`: `location` without pydantic's names of types."""
    path = ""
    for step in location:
        if isinstance(value, dict) and step in value:
            path += f".{step}" if path else str(step)
        elif isinstance(value, list) and isinstance(step, int):
            path += f"[{step}]"
        else:
            continue
        value = value[step]
    return path
