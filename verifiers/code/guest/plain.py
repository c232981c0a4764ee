"""Plain values as JSON: all that crosses between a program and whoever tests it.

Scalars stand for themselves; everything else is a list that begins with a tag: ["list", 1, 2],
["tuple", ...], ["set", ...], ["frozenset", ...], ["dict", [key, value], ...], ["int", "0x..."] for
one of more than 64 bits, ["float", "nan"], ["complex", real, imaginary], ["bytes", hex digits], and
["object", ...] for what has to stay where it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

MAX_DEPTH = 100
_SMALL = 1 << 63


class Text(str):
    """A text that the Python session shows as it is."""

    __repr__ = str.__str__


class Refused(Exception):
    """A value that cannot cross. `by_type`: because of what it is, and not of how large it is."""

    def __init__(self, what: str, *, by_type: bool) -> None:
        super().__init__(what)
        self.by_type = by_type


def encode(value: Any, of_object: Callable[[Any], list[Any]] | None = None) -> Any:
    """A value as JSON data; `of_object` makes a tagged list of what is not plain.

    Values of derived classes become their base's: nothing of what a class overrides counts.
    Numpy's arrays and scalars become lists and numbers. Raises Refused.
    """
    return _encode(value, of_object, 0)


def _encode(value: Any, of_object: Callable[[Any], list[Any]] | None, depth: int) -> Any:
    kind = type(value)
    if value is None or kind is bool:
        return value
    if issubclass(kind, int):
        number = int.__index__(value)
        return number if -_SMALL < number < _SMALL else ["int", hex(number)]
    if issubclass(kind, float):
        real = float.__float__(value)
        return real if math.isfinite(real) else ["float", repr(real)]
    if issubclass(kind, str):
        return str.__str__(value)
    if issubclass(kind, complex):
        real, imaginary = (complex.__getattribute__(value, part) for part in ("real", "imag"))
        return ["complex", _encode(real, None, 0), _encode(imaginary, None, 0)]
    if issubclass(kind, (bytes, bytearray)):
        return ["bytes", bytes(value).hex()]
    if depth >= MAX_DEPTH:
        raise Refused(f"a value nested deeper than {MAX_DEPTH}", by_type=False)
    for base, tag in _TAGS:
        if issubclass(kind, base):
            items = base.__iter__(value)
            return [tag, *(_encode(item, of_object, depth + 1) for item in items)]
    if issubclass(kind, dict):
        pairs = dict.items(value)
        return ["dict", *([_encode(x, of_object, depth + 1) for x in pair] for pair in pairs)]
    if getattr(kind, "__module__", "") == "numpy" and hasattr(kind, "tolist"):
        return _encode(value.tolist(), of_object, depth + 1)
    if of_object is None:
        raise Refused(f"a value of type {kind.__name__}", by_type=True)
    return of_object(value)


_TAGS: Any = ((list, "list"), (tuple, "tuple"), (set, "set"), (frozenset, "frozenset"))


def decode(data: Any, to_object: Callable[[list[Any]], Any] | None = None) -> Any:
    """The value that JSON data stand for; `to_object` takes the tagged lists of objects.

    Raises ValueError or TypeError for what `encode` does not give, RecursionError for what is
    nested too deep.
    """
    if data is None or type(data) in (bool, int, float, str):
        return data
    if type(data) is not list or not data or type(data[0]) is not str:
        raise ValueError("not an encoded value")
    tag, rest = data[0], data[1:]
    if tag in _CONTAINERS:
        return _CONTAINERS[tag]([decode(item, to_object) for item in rest])
    if tag == "dict":
        return {decode(key, to_object): decode(value, to_object) for key, value in rest}
    if tag == "object" and to_object is not None:
        return to_object(rest)
    return _SCALARS[tag](*rest)


def _complex(real: Any, imaginary: Any) -> complex:
    return complex(float(decode(real)), float(decode(imaginary)))


def _int(text: str) -> int:
    return int(text, 16)


_CONTAINERS: dict[str, Callable[[list[Any]], Any]] = {
    "list": list,
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
}
_SCALARS: dict[str, Callable[..., Any]] = {
    "int": _int,
    "float": float,
    "complex": _complex,
    "bytes": bytes.fromhex,
}
