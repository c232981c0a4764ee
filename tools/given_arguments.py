"""Arguments described by a JSON schema that somebody else wrote, such as an MCP server."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

from pydantic_core import from_json

from palestra.tools.json_schema import JsonSchema
from palestra.tools.output import shortened
from palestra.tools.problems import BadArguments, shown

_MAX_PROBLEMS = 8
_MAX_PROBLEM_CHARS = 200


class GivenArguments:
    """The schema goes to the model as it is; what the model passes is checked against it.

    Regular expressions are left to whoever wrote the schema, as they may take for ever, and so is
    everything if the schema itself is wrong.
    """

    def __init__(self, json_schema: JsonSchema, *, tool_name: str, description: str = "") -> None:
        self.tool_name = tool_name
        self.description = description
        self.json_schema: JsonSchema = {"type": "object", "properties": {}, **json_schema}
        self.hidden: dict[str, type] = {}

    def parse(self, text: str) -> dict[str, Any]:
        """Arguments that fit, from JSON. Raises BadArguments, whose text is for the model."""
        try:
            arguments = from_json(text if text.strip() else "{}", allow_inf_nan=False)
        except ValueError as error:
            raise BadArguments("bad_json", f"the arguments are not valid JSON: {error}") from None
        if not isinstance(arguments, dict):
            raise BadArguments(
                "bad_json", f"the arguments must be a JSON object, got {shown(arguments)}"
            )
        problems = list(self._problems(arguments))
        if problems:
            raise BadArguments("bad_arguments", "\n".join(problems[:_MAX_PROBLEMS]))
        return arguments

    def _problems(self, arguments: dict[str, Any]) -> Iterator[str]:
        from referencing.exceptions import Unresolvable

        if self._validator is None:
            return
        try:
            for error in self._validator.iter_errors(arguments):
                message = shortened(error.message, _MAX_PROBLEM_CHARS)
                path = error.json_path.removeprefix("$").removeprefix(".")
                yield f'argument "{path}": {message}' if path else message
        except Unresolvable:  # a reference to elsewhere, where nobody looks
            return

    @cached_property
    def _validator(self) -> Any:
        """None if the schema is none."""
        from jsonschema import Draft202012Validator, SchemaError
        from jsonschema.validators import extend, validator_for
        from referencing import Registry

        dialect = validator_for(self.json_schema, default=Draft202012Validator)
        try:
            dialect.check_schema(self.json_schema)
        except SchemaError:
            return None
        unchecked = dict.fromkeys(("pattern", "patternProperties", "propertyNames"), _allow)
        # With an empty registry, no reference is ever fetched.
        checking: Any = extend(dialect, unchecked)  # type: ignore[no-untyped-call]
        return checking(self.json_schema, registry=Registry())


def _allow(validator: Any, value: Any, instance: Any, schema: Any) -> Iterator[Any]:
    return iter(())
