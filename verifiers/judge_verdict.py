"""Read a judge's verdict: the last JSON object of its reply, with the nonce, and nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from palestra.endpoint import Reply
from palestra.verifiers.judge_prompt import quoted_marks

T = TypeVar("T")

_MAX_CHARS = 100_000

_START = re.compile(r'\{\s*"')


class BadVerdict(ValueError):
    """A judge's reply that is no verdict. `kind` is "refused", "cut" or "nonsense"."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


@dataclass(frozen=True, kw_only=True, slots=True)
class Form(Generic[T]):
    """What a verdict consists of, beside the nonce.

    `shown` is what the judge reads about each field, in order; `schema` has the JSON Schema of each
    field. `read` makes a verdict of the fields, and raises ValueError where they are none.
    """

    shown: Mapping[str, str]
    schema: Mapping[str, Any]
    read: Callable[[Mapping[str, Any]], T]

    def text(self, nonce: str) -> str:
        """The form as the judge sees it."""
        fields = {"nonce": f'"{nonce}"', **self.shown}
        return "{" + ", ".join(f'"{name}": {value}' for name, value in fields.items()) + "}"

    def json_schema(self) -> dict[str, Any]:
        """The form for `response_format`; the same for every nonce, so that it is compiled once."""
        return closed_object({"nonce": {"type": "string"}, **self.schema})


def closed_object(properties: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON Schema of an object with exactly these properties."""
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }


def read_verdict(reply: Reply, form: Form[T], nonce: str) -> T:
    """The verdict in a reply.

    It must be the last JSON object, not in what the judge quotes between marks, have the fields of
    the form and no others, none twice, and repeat the nonce, which nobody else knows.

    Raises:
        BadVerdict: it is none of that, or the judge refused or was cut off.
    """
    if reply.refusal is not None or reply.finish_reason == "content_filter":
        raise BadVerdict("refused", f"the judge refused: {reply.refusal or reply.text:.200}")
    if not reply.is_whole:
        raise BadVerdict("cut", f'the judge\'s reply ended by "{reply.finish_reason}"')
    found = _last_object(quoted_marks(nonce).sub("", reply.text[-_MAX_CHARS:]))
    if found is None:
        raise BadVerdict("nonsense", f"the judge's reply ends with no JSON object: {_end(reply)}")
    if found.get("nonce") != nonce:
        raise BadVerdict("nonsense", f"a verdict without this request's nonce: {_end(reply)}")
    if found.keys() != {"nonce", *form.schema}:
        raise BadVerdict("nonsense", f"a verdict with other fields: {', '.join(found)}")
    try:
        return form.read(found)
    except ValueError as error:
        raise BadVerdict("nonsense", str(error)) from None


def _last_object(text: str) -> dict[str, Any] | None:
    """The last outermost JSON object; None if a brace comes after it, or if it is no good."""
    last: Any = None
    position = end = 0
    while (start := _START.search(text, position)) is not None:
        try:
            last, end = _DECODER.raw_decode(text, start.start())
            position = end
        except RecursionError:
            return None
        except ValueError:
            position = start.start() + 1
    rest = text[end:]
    return last if isinstance(last, dict) and "{" not in rest and "}" not in rest else None


def _unless_repeated(pairs: list[tuple[str, Any]]) -> dict[str, Any] | None:
    fields = dict(pairs)
    return fields if len(fields) == len(pairs) else None


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_unless_repeated, parse_constant=_no_number)


def _end(reply: Reply) -> str:
    return repr(reply.text[-100:])
