"""JSON schemas as a model should read them: no titles, nothing to look up elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

JsonSchema = dict[str, Any]

_REFERENCE = "#/$defs/"
# Their values are data, not schemas.
_DATA = frozenset({"const", "default", "enum", "examples"})


def tidy(schema: JsonSchema) -> JsonSchema:
    """The schema of an object in few tokens, with definitions put where they are used.

    Only a type that contains itself stays in `$defs`.
    """
    definitions: Mapping[str, JsonSchema] = schema.get("$defs", {})
    recursive = {name for name in definitions if name in _reachable(name, definitions)}
    # Extra arguments are refused anyway, with a message; saying so costs tokens in every prompt.
    dropped = {"$defs", "additionalProperties", "description"}
    top = {key: value for key, value in schema.items() if key not in dropped}
    tidied: JsonSchema = {"type": "object", "properties": {}}
    tidied |= _inline(top, definitions, recursive)
    if recursive:
        tidied["$defs"] = {
            name: _inline(definitions[name], definitions, recursive) for name in sorted(recursive)
        }
    return tidied


def type_name(schema: Mapping[str, Any]) -> str:
    """What a value must be, in a word or two: "integer", "string or null", "'a' or 'b'"."""
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(type_name(option) for option in schema["anyOf"]))
    if "const" in schema:
        return repr(schema["const"])
    if "enum" in schema:
        return " or ".join(repr(value) for value in schema["enum"])
    return str(schema.get("type", "object" if "$ref" in schema else "any"))


def _inline(schema: Any, definitions: Mapping[str, JsonSchema], kept: set[str]) -> Any:
    if isinstance(schema, list):
        return [_inline(item, definitions, kept) for item in schema]
    if not isinstance(schema, dict):
        return schema
    tidied: JsonSchema = {}
    for key, value in schema.items():
        if key == "properties":  # its keys are names, and one may well be "title"
            tidied[key] = {name: _inline(item, definitions, kept) for name, item in value.items()}
        elif key == "$ref" and (name := value.removeprefix(_REFERENCE)) not in kept:
            tidied = {**_inline(definitions[name], definitions, kept), **tidied}
        elif key in _DATA:
            tidied[key] = value
        elif key != "title":
            tidied[key] = _inline(value, definitions, kept)
    return tidied


def _reachable(name: str, definitions: Mapping[str, JsonSchema]) -> set[str]:
    """The definitions that this one uses, directly or not."""
    found: set[str] = set()
    unseen = [name]
    while unseen:
        new = set(_references(definitions[unseen.pop()])) - found
        found |= new
        unseen += new
    return found


def _references(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        for key, value in schema.items():
            if key == "$ref":
                yield value.removeprefix(_REFERENCE)
            elif key not in _DATA:
                yield from _references(value)
    elif isinstance(schema, list):
        for item in schema:
            yield from _references(item)
