"""What the bodies of all requests share: strict models, and errors in one line with their path."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, WithJsonSchema
from pydantic_core import PydanticCustomError

from palestra.rollout.serving.api_error import ApiError

# `sampling.max_tokens` of a request that sets no limit: repliers cut it to the room there is.
NO_TOKEN_LIMIT = 1 << 30

_CODES = {
    "extra_forbidden": "unknown_parameter",
    "missing": "missing_required_parameter",
    "unsupported": "unsupported_parameter",
    "union_tag_invalid": "unsupported_value",
}
_TAG = re.compile(r"<(.*)>")
_MAX_SHOWN_CHARS = 100


class Body(BaseModel):
    """A JSON object of a request: values of the right type, no unknown fields."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


def _refuse(value: Any) -> None:
    if value is not None:
        raise PydanticCustomError("unsupported", "not supported by this server: leave it out")


# A field of the API that this server has not: only null will do.
Unsupported = Annotated[None, BeforeValidator(_refuse), WithJsonSchema({"type": "null"})]
# A field that has no effect here, whatever it says.
Ignored = Annotated[Any, WithJsonSchema({"description": "accepted, without effect"})]


def kind(default: str | None = None, *, field: str = "type") -> Callable[[Any], str]:
    """A discriminator by a field, for unions whose members have tags like "<message>".

    Where there may be text instead, its tag is "<text>". `of_validation` leaves what stands in <>
    out of paths.
    """

    def tag(value: Any) -> str:
        if isinstance(value, str):
            return "<text>"
        if isinstance(value, Mapping):
            return f"<{value.get(field, default)}>"
        return f"<{getattr(value, field, None)}>"  # of a model that is written

    tag.__name__ = field  # pydantic's errors have it
    return tag


def text_or_list(value: Any) -> str:
    """A discriminator between "<text>" and "<list>"."""
    return "<text>" if isinstance(value, str) else "<list>"


def of_validation(errors: Sequence[Mapping[str, Any]]) -> ApiError:
    """The first of pydantic's errors about a request's body, as the client reads it."""
    error = errors[0]
    loc = [part for part in error["loc"] if not _TAG.fullmatch(str(part))]
    loc = loc[1:] if loc and loc[0] == "body" else loc
    if error["type"] == "json_invalid":
        problem = error.get("ctx", {}).get("error", "")
        return ApiError(400, f"the body is not JSON: {problem}", code="invalid_json")
    problem = error["msg"]
    if error["type"] == "extra_forbidden":
        problem = "unknown parameter"
    elif error["type"] == "missing" and not loc:
        return ApiError(400, "the request needs a JSON object as its body", code="invalid_json")
    elif error["type"] == "missing":
        problem = "a required parameter is missing"
    elif error["type"] == "union_tag_invalid":
        loc.append(re.sub(r"\W", "", error["ctx"]["discriminator"]))
        problem = _wrong_kind(error["ctx"])
    param = _path(loc)
    if len(errors) > 1:
        problem += f" (and {len(errors) - 1} more)"
    return ApiError(
        400,
        _printable(f"{param}: {problem}" if param else problem),
        code=_CODES.get(error["type"], "invalid_value"),
        param=_printable(param) or None,
    )


def _wrong_kind(context: Mapping[str, str]) -> str:
    found, expected = (re.sub("[<>']", "", context[key]) for key in ("tag", "expected_tags"))
    if found == "None":
        return f"a required parameter is missing: one of {expected}"
    return f'"{found:.{_MAX_SHOWN_CHARS}}" is not supported: use one of {expected}'


def _path(loc: Sequence[int | str]) -> str:
    path = ""
    for part in loc:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            path += f".{part:.{_MAX_SHOWN_CHARS}}" if path else f"{part:.{_MAX_SHOWN_CHARS}}"
    return path


def _printable(text: str) -> str:
    """Text without half characters, which no answer can hold."""
    return text.encode("utf-8", "backslashreplace").decode()
