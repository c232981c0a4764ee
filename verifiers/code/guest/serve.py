"""In the program's sandbox: loads the program and answers questions about it.

The program shares this process and may do anything to it: what comes out is data, no more.
"""

from __future__ import annotations

import json
import operator
import sys
import types
from typing import Any

from palestra.verifiers.code.guest.plain import Refused, Text, decode, encode

MAX_NAMES = 1000
MAX_MESSAGE_CHARS = 500
MAX_ARGUMENTS_CHARS = 10_000


class Server:
    """Holds the loaded program and the objects that could not cross."""

    def __init__(self, max_chars: int) -> None:
        self._max_chars = max_chars
        self._module = types.ModuleType("solution")
        self._objects: list[Any] = []

    def load(self, readings: list[str], name: str) -> Text:
        """Run the first of these sources that compiles, as a module of that name."""
        self._objects.clear()
        self._module = types.ModuleType(name)
        sys.modules[name] = self._module
        problem: Any = None
        for source in readings:
            try:
                program = compile(source, name + ".py", "exec", dont_inherit=True)
            except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
                problem = problem or ["compile", type(error).__name__, _message(error)]
                continue
            try:
                exec(program, self._module.__dict__)
            except BaseException as error:
                return Text(json.dumps(_raised(error)))
            return Text('["value", null]')
        return Text(json.dumps(problem))

    def answer(self, text: str) -> Text:
        """The answer to one question, [operation, argument...]: a value or an exception."""
        try:
            name, *arguments = json.loads(text)
            given = [decode(argument, self._find) for argument in arguments]
            value = self._names() if name == "names" else _OPERATIONS[name](*given)
            reply = Text(json.dumps(["value", encode(value, self._keep)]))
        except Refused as refusal:
            reply = Text(json.dumps(["refused", str(refusal)]))
        except BaseException as error:
            reply = Text(json.dumps(_raised(error)))
        if len(reply) > self._max_chars:
            return Text(json.dumps(["refused", f"a value of {len(reply):,} characters"]))
        return reply

    def _names(self) -> list[str]:
        public = [name for name in vars(self._module) if not name.startswith("_")]
        return public[:MAX_NAMES]

    def _find(self, target: list[Any]) -> Any:
        """The object that a question is about: ["name", "Solution.f"] or ["kept", 3]."""
        kind, key = target[0], target[1]
        if kind == "kept":
            return self._objects[key]
        found: Any = self._module
        for part in key.split(".") if key else ():
            if isinstance(found, type):
                found = found()
            try:
                found = getattr(found, part)
            except AttributeError:
                if found is not self._module:
                    raise
                raise NameError(f"name {part!r} is not defined") from None
        return found

    def _keep(self, value: Any) -> list[Any]:
        self._objects.append(value)
        bases = None
        if isinstance(value, type) and issubclass(value, BaseException):
            bases = _bases(value)
        return ["object", "kept", len(self._objects) - 1, type(value).__name__, bases]


def _call(function: Any, arguments: list[Any], named: dict[str, Any]) -> Any:
    return function(*arguments, **named)


_OPERATIONS: dict[str, Any] = {
    "call": _call,
    "get": getattr,
    "set": setattr,
    "item": operator.getitem,
    "set_item": operator.setitem,
    "delete_item": operator.delitem,
    "isinstance": isinstance,
    "len": len,
    "iter": iter,
    "next": next,
    "str": str,
    "repr": repr,
}


def _raised(error: BaseException) -> list[Any]:
    arguments: Any = None
    try:
        arguments = encode(error.args)
        if len(json.dumps(arguments)) > MAX_ARGUMENTS_CHARS:
            arguments = None
    except BaseException:
        arguments = None
    return ["raised", _bases(type(error)), _message(error), arguments]


def _bases(kind: type) -> list[list[str]]:
    return [[str(base.__module__), base.__name__] for base in type.mro(kind)[:20]]


def _message(error: BaseException) -> str:
    try:
        return str(error)[:MAX_MESSAGE_CHARS]
    except BaseException:
        return ""
