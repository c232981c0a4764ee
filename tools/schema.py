"""What a tool's arguments are: read from its signature and docstring, checked with pydantic."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Annotated, Any, NotRequired, Protocol, get_type_hints

import docstring_parser
import pydantic
from pydantic.errors import PydanticSchemaGenerationError, PydanticUserError
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

# pydantic insists on this TypedDict below Python 3.12.
from typing_extensions import TypedDict

from palestra.tools.hidden import HIDDEN_TYPES
from palestra.tools.json_schema import JsonSchema, tidy
from palestra.tools.problems import describe_problems

_NOT_BY_NAME: dict[Any, str] = {
    inspect.Parameter.VAR_POSITIONAL: "take a list instead",
    inspect.Parameter.VAR_KEYWORD: "take a dict, or name each argument",
    inspect.Parameter.POSITIONAL_ONLY: "remove the `/`, tools are called by argument name",
}


class ToolArguments(Protocol):
    """What a model passes to a tool: described by a JSON schema, checked by `parse`.

    `hidden` maps the names of the parameters that the environment passes to their types.
    """

    description: str
    json_schema: JsonSchema
    hidden: dict[str, type]

    def parse(self, text: str) -> dict[str, Any]:
        """Arguments that fit, from JSON. Raises BadArguments, whose text is for the model."""


class Arguments:
    """The arguments a function takes from the model, and the hidden ones it takes from us.

    `json_schema` describes the former, e.g. `{"type": "object", "properties": {"a": {"type":
    "integer", "description": "the first term"}}, "required": ["a"]}`; `description` is the
    docstring without its parameters. `hidden` maps the names of the latter to their types.

    Raises:
        ValueError: a parameter without annotation, of a type that JSON cannot express, or of a
            kind that cannot be passed by name.
    """

    def __init__(self, function: Callable[..., Any], *, tool_name: str) -> None:
        self.tool_name = tool_name
        self.description, documented = _read_docstring(function)
        self.hidden: dict[str, type] = {}
        annotations: dict[str, Any] = {}
        defaults: dict[str, Any] = {}
        hints = _type_hints(function, tool_name)
        for name, parameter in inspect.signature(function).parameters.items():
            _check(parameter, hints, tool_name)
            if isinstance(hints[name], type) and issubclass(hints[name], HIDDEN_TYPES):
                self.hidden[name] = hints[name]
                continue
            annotations[name] = _describe(hints[name], documented.get(name))
            if parameter.default is not inspect.Parameter.empty:
                defaults[name] = parameter.default
        self._adapter = _adapter(annotations, defaults, tool_name)
        self.json_schema = _add_defaults(tidy(self._adapter.json_schema()), defaults)

    def parse(self, text: str) -> dict[str, Any]:
        """Arguments that fit, from the JSON that the model wrote; absent ones are left out.

        Types are strict ("3" is no integer). Raises BadArguments, whose text is for the model.
        """
        # Models that call a tool without parameters write nothing as often as {}.
        text = text if text and not text.isspace() else "{}"
        try:
            arguments: dict[str, Any] = self._adapter.validate_json(text, strict=True)
        except pydantic.ValidationError as error:
            raise describe_problems(error, text, self.json_schema, self.tool_name) from None
        return arguments


def _read_docstring(function: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """The description and the parameters' descriptions, in Google, NumPy or reST style."""
    text = inspect.getdoc(function) or ""
    try:
        parsed = docstring_parser.parse(text)
    except docstring_parser.ParseError:
        return text.strip(), {}
    described = {
        parameter.arg_name: " ".join(parameter.description.split())
        for parameter in parsed.params
        if parameter.description
    }
    return (parsed.description or "").strip(), described


def _type_hints(function: Callable[..., Any], tool_name: str) -> dict[str, Any]:
    try:
        # A callable object keeps its annotations on its class.
        annotated = function if hasattr(function, "__annotations__") else type(function).__call__
        return get_type_hints(annotated, include_extras=True)
    except NameError as error:
        raise ValueError(
            f"{error} in the annotations of tool {tool_name}: with `from __future__ import "
            "annotations`, define or import it at module level"
        ) from None


def _check(parameter: inspect.Parameter, hints: Mapping[str, Any], tool_name: str) -> None:
    name = parameter.name
    if remedy := _NOT_BY_NAME.get(parameter.kind):
        raise ValueError(f'tool {tool_name} cannot take "{parameter}": {remedy}')
    if name not in hints:
        problem = f'parameter "{name}" of tool {tool_name} has no type annotation'
        if name in ("self", "cls"):
            raise ValueError(f"{problem}: decorate a function that takes `state: State` instead")
        raise ValueError(f"{problem}: write e.g. `{name}: int`, the model has to know")
    if isinstance(parameter.default, FieldInfo):
        raise ValueError(
            f'parameter "{name}" of tool {tool_name} has a Field as its default: write '
            f"`{name}: Annotated[<type>, Field(…)] = <default>`"
        )


def _describe(annotation: Any, description: str | None) -> Any:
    """Add the docstring's description unless the annotation brings its own."""
    extras = getattr(annotation, "__metadata__", ())
    if description is None or any(getattr(extra, "description", None) for extra in extras):
        return annotation
    return Annotated[annotation, pydantic.Field(description=description)]


def _adapter(
    annotations: Mapping[str, Any], defaults: Mapping[str, Any], tool_name: str
) -> pydantic.TypeAdapter[Any]:
    # Python itself fills in defaults; pydantic only has to let the argument be absent.
    fields = {
        name: NotRequired[annotation] if name in defaults else annotation
        for name, annotation in annotations.items()
    }
    try:
        return _typed_dict(fields)
    except (PydanticSchemaGenerationError, PydanticUserError):
        for name, field in fields.items():
            try:
                _typed_dict({name: field})
            except (PydanticSchemaGenerationError, PydanticUserError) as error:
                raise ValueError(
                    f'parameter "{name}" of tool {tool_name} is of a type that JSON cannot '
                    "express: use plain types, a dataclass or a pydantic model "
                    f"({str(error).splitlines()[0]})"
                ) from None
        raise


def _typed_dict(fields: Mapping[str, Any]) -> pydantic.TypeAdapter[Any]:
    # Not a pydantic model: in a TypedDict any parameter name is allowed ("schema", "_x", "copy").
    arguments: Any = TypedDict("arguments", dict(fields))  # type: ignore[misc]
    config = pydantic.ConfigDict(extra="forbid", allow_inf_nan=False)
    setattr(arguments, "__pydantic_config__", config)  # noqa: B010 (mypy knows no such attribute)
    adapter = pydantic.TypeAdapter[Any](arguments)
    adapter.json_schema()  # raises for types that can be checked but not described
    return adapter


def _add_defaults(schema: JsonSchema, defaults: Mapping[str, Any]) -> JsonSchema:
    for name, default in defaults.items():
        if default is None:
            continue
        try:
            schema["properties"][name]["default"] = to_jsonable_python(default)
        except ValueError:
            continue  # JSON cannot express it: the argument is still optional
    return schema
