"""In the tests' sandbox: stands in for the program, which is elsewhere.

Functions, classes and objects of the program appear as `Remote`s. Calls on them go to the program's
sandbox and bring back plain values; a Remote itself equals nothing, so that no `__eq__` counts.
"""

from __future__ import annotations

import builtins
import importlib.machinery
import json
import sys
import types
from collections.abc import Callable
from typing import Any

from palestra.verifiers.code.guest.plain import Refused, decode, encode

# Raised here, these would end the loops of tests without failing them.
_NOT_PASSED_ON = ("StopIteration", "StopAsyncIteration")


class Trouble(Exception):
    """The program gave nothing that a test can use; no test that meets this passes.

    `kind` is "timeout", "memory", "runtime error" or "wrong answer".
    """

    def __init__(self, kind: str, detail: str = "") -> None:
        super().__init__(detail or kind)
        self.kind = kind


class Client:
    """Asks the program, through `exchange`, which takes a question and gives a reply as JSON.

    `asked` counts questions, `troubles` those without a usable answer. What the tests want to pass
    and cannot is in `refused`; `missing` says whether a name was missing.
    """

    def __init__(self, exchange: Callable[[str], dict[str, Any]], max_chars: int) -> None:
        self.asked = 0
        self.troubles = 0
        self.refused = ""
        self.missing = False
        self._exchange = exchange
        self._max_chars = max_chars
        self._exceptions: dict[str, type[Exception]] = {}

    def ask(self, operation: str, *arguments: Any) -> Any:
        """What the program gives for an operation; raises what it raises, or Trouble."""
        try:
            question = [operation, *(encode(argument, _target_of) for argument in arguments)]
        except Refused as refusal:
            if refusal.by_type:
                self.refused = self.refused or f"the tests pass {refusal} to the program"
            raise self.trouble("wrong answer", str(refusal)) from None
        text = json.dumps(question)
        if len(text) > self._max_chars // 2:  # it is quoted once more on its way
            raise self.trouble("wrong answer", "an argument that is too large")
        self.asked += 1
        reply = self._exchange(text)
        if reply.get("trouble"):
            raise self.trouble(*reply["trouble"])
        if reply.get("output"):
            sys.stdout.write(reply["output"])
        return self._read(operation, reply["reply"])

    def trouble(self, kind: str, detail: str) -> Trouble:
        """To be raised: even a test that catches it fails."""
        self.troubles += 1
        return Trouble(kind, detail)

    def _read(self, operation: str, text: str) -> Any:
        try:
            kind, *rest = json.loads(text, parse_constant=_no_number)
            if kind == "value":
                return decode(rest[0], self._object)
            if kind == "raised":
                bases = [(str(module), str(name)) for module, name in rest[0]]
                message, arguments = str(rest[1]), rest[2]
            else:
                raise self.trouble("wrong answer", f"the program gave {str(rest[0])[:200]}")
            given = (message,) if arguments is None else tuple(decode(arguments))
        except (ArithmeticError, LookupError, TypeError, ValueError, RecursionError) as error:
            name = type(error).__name__
            raise self.trouble("wrong answer", f"the program's reply is none: {name}") from None
        if operation == "next" and bases and bases[0][1] == "StopIteration":
            raise StopIteration
        raise self._exception(bases, given)

    def _object(self, data: list[Any]) -> Any:
        where, key, name, bases = data
        if where != "kept" or type(key) is not int:
            raise ValueError("no object")
        if bases is not None:
            return self.exception_class([(str(module), str(base)) for module, base in bases])
        return Remote(self, [where, key], str(name))

    def exception_class(self, bases: list[tuple[str, str]]) -> type[Exception]:
        """The class here that stands for one of the program's, given its bases."""
        module, name = bases[0]
        builtin = _builtin_exception(bases)
        if module == "builtins" and builtin is not None and builtin.__name__ == name:
            return builtin
        known = self._exceptions.get(name)
        if known is None:
            known = self._exceptions[name] = type(name, (builtin or Exception,), {})
        return known

    def _exception(self, bases: list[tuple[str, str]], given: tuple[Any, ...]) -> Exception:
        known = next((self._exceptions[n] for _, n in bases if n in self._exceptions), None)
        kind = known or _builtin_exception(bases)
        if kind is None:  # SystemExit, for example
            return self.trouble("runtime error", f"the program raised {bases[0][1]}")
        try:
            raised = kind(*given)
        except Exception:  # one that takes other arguments
            raised = Exception(*given)
        raised.raised_by_answer = True  # type: ignore[attr-defined]
        return raised


class Remote:
    """A function, class or object of the program."""

    __slots__ = ("__client", "__name", "__target")

    def __init__(self, client: Client, target: list[Any], name: str) -> None:
        for slot, value in (("client", client), ("target", target), ("name", name)):
            object.__setattr__(self, "_Remote__" + slot, value)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self.__client.ask("call", self, list(arguments), named)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self.__client.ask("get", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self.__client.ask("set", self, name, value)

    def __getitem__(self, key: Any) -> Any:
        return self.__client.ask("item", self, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.__client.ask("set_item", self, key, value)

    def __delitem__(self, key: Any) -> None:
        self.__client.ask("delete_item", self, key)

    def __contains__(self, item: Any) -> bool:
        return any(own == item for own in self)  # not by its own `__contains__`, nor `__eq__`

    def __len__(self) -> int:
        length = self.__client.ask("len", self)
        return length if type(length) is int else -1

    def __iter__(self) -> Any:
        return self.__client.ask("iter", self)

    def __next__(self) -> Any:
        return self.__client.ask("next", self)

    def __str__(self) -> str:
        text = self.__client.ask("str", self)
        return text if type(text) is str else ""

    def __repr__(self) -> str:
        return f"<{self.__name} of the program>"

    def __instancecheck__(self, instance: Any) -> bool:
        if not isinstance(instance, Remote):
            return False
        return bool(self.__client.ask("isinstance", instance, self))

    def __eq__(self, other: object) -> bool:
        detail = f"the program gave a {self.__name}, which is no plain value to compare"
        raise self.__client.trouble("wrong answer", detail)

    __ne__ = __eq__
    __lt__ = __le__ = __gt__ = __ge__ = __eq__
    __hash__ = object.__hash__

    def __bool__(self) -> bool:
        detail = f"the program gave a {self.__name}, which is neither true nor false"
        raise self.__client.trouble("wrong answer", detail)


class ProgramModule(types.ModuleType):
    """The module under test, as the tests import it."""

    def __init__(self, client: Client, name: str) -> None:
        super().__init__(name)
        self.__dict__["_client"] = client
        self.__spec__ = importlib.machinery.ModuleSpec(name, None)

    def __getattr__(self, name: str) -> Any:
        client = self.__dict__["_client"]
        whole = Remote(client, ["name", ""], "module")
        if name == "__all__":
            names = client.ask("names")
            return [n for n in names if type(n) is str] if type(names) is list else []
        if name.startswith("__"):
            raise AttributeError(name)
        try:
            value = client.ask("get", whole, name)
        except AttributeError:
            client.missing = True
            raise AttributeError(f"the program has no {name}") from None
        if isinstance(value, Remote):  # by its name, it outlives a restart of the program
            return Remote(client, ["name", name], name)
        return value


def function_of(client: Client, name: str) -> Remote:
    """The program's function (or class, or "Class.method") of that name, whether there is one."""
    return Remote(client, ["name", name], name)


def _target_of(value: Any) -> list[Any]:
    if isinstance(value, Remote):
        return ["object", *object.__getattribute__(value, "_Remote__target")]
    raise Refused(f"a value of type {type(value).__name__}", by_type=True)


def _builtin_exception(bases: list[tuple[str, str]]) -> type[Exception] | None:
    for module, name in bases:
        found = getattr(builtins, name, None) if module == "builtins" else None
        if isinstance(found, type) and issubclass(found, Exception) and name not in _NOT_PASSED_ON:
            return found
    return None


def _no_number(name: str) -> None:
    raise ValueError(name)
