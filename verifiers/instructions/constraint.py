"""`Constraint`: an instruction with its arguments, and whether a reply follows it."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_type_hints

from palestra.verifiers.instructions.echo import is_echo
from palestra.verifiers.instructions.parameters import Reader
from palestra.verifiers.instructions.registry import Kind, kind_of
from palestra.verifiers.instructions.reply import MAX_CHARS, Reply

_MAX_EXPLANATION_CHARS = 200


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """Whether a reply follows an instruction; true if it does. If not, the explanation says why."""

    passed: bool
    explanation: str = ""

    def __bool__(self) -> bool:
        return self.passed


@dataclass(frozen=True, slots=True)
class Constraint:
    """An instruction, e.g. `Constraint("keywords:existence", {"keywords": ["rome"]})`.

    The ids and argument names are those of IFEval (arXiv 2311.07911), IFBench and IF-RLVR
    (arXiv 2507.02833); `registry.KINDS` has them all. Arguments that are None are left out, as in
    the published tables.

    No constraint is met by a reply without any letter, digit or symbol, by one of more than
    200,000 characters, or by an echo of the prompt (see `is_echo`) unless it asks for one.

    Raises:
        ValueError: an unknown id; a missing, unknown or bad argument.
    """

    id: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    _kind: Kind = field(init=False, repr=False, compare=False)
    _read: Mapping[str, Any] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        kind = kind_of(self.id)
        given = {name: value for name, value in self.arguments.items() if value is not None}
        object.__setattr__(self, "arguments", given)
        object.__setattr__(self, "_kind", kind)
        object.__setattr__(self, "_read", _read_arguments(self.id, kind, given))

    @property
    def may_echo(self) -> bool:
        """Whether a reply that follows it may be the prompt, or a line of it."""
        return self._kind.may_echo

    def check(self, reply: str | Reply, *, prompts: Sequence[str] = ()) -> Verdict:
        """Whether the reply follows the instruction; `prompts` are what it must not echo."""
        reply = Reply(reply) if isinstance(reply, str) else reply
        problem = unfit(reply, () if self.may_echo else prompts)
        problem = problem or self._kind.function(reply, **self._read)
        return Verdict(passed=not problem, explanation=problem[:_MAX_EXPLANATION_CHARS])


def unfit(reply: Reply, prompts: Sequence[str] = ()) -> str:
    """Why a reply follows no instruction at all; "" if it may."""
    if reply.says_nothing:
        return "the reply says nothing"
    if reply.is_too_long:
        return f"the reply has more than {MAX_CHARS:,} characters"
    if any(is_echo(reply, Reply(prompt)) for prompt in prompts):
        return "the reply is an echo of the prompt"
    return ""


def _read_arguments(id: str, kind: Kind, given: Mapping[str, Any]) -> dict[str, Any]:
    published = {parameter: name for name, parameter in kind.names.items()}
    readers = {
        published.get(parameter, parameter): (parameter, read, required)
        for parameter, (read, required) in _readers_of(kind.function).items()
        if parameter not in kind.fixed
    }
    if unknown := [name for name in given if name not in readers]:
        nearest = difflib.get_close_matches(str(unknown[0])[:100], readers, n=1)
        guess = f': did you mean "{nearest[0]}"?' if nearest else ""
        takes = ", ".join(readers) or "no arguments"
        raise ValueError(f'instruction "{id}" takes {takes}, not "{unknown[0]!s:.60}"{guess}')
    missing = [name for name, (_, _, required) in readers.items() if required and name not in given]
    if missing:
        raise ValueError(f'instruction "{id}" needs {", ".join(missing)}')
    arguments = dict(kind.fixed)
    for name, value in given.items():
        parameter, read, _ = readers[name]
        try:
            arguments[parameter] = read(value)
        except ValueError as error:
            raise ValueError(f'{name} of "{id}" must be {error}, got {value!r:.60}') from None
    if problem := kind.contradiction and kind.contradiction(**arguments):
        raise ValueError(f'instruction "{id}" cannot be followed: {problem}')
    if arguments.get("relation") == "less than" and 0 in arguments.values():
        raise ValueError(f'instruction "{id}" cannot be followed: no count is less than 0')
    return arguments


@functools.cache
def _readers_of(function: Callable[..., str]) -> dict[str, tuple[Reader, bool]]:
    """Of each parameter: what reads it, and whether it is required."""
    hints = get_type_hints(function, include_extras=True)
    parameters = list(inspect.signature(function).parameters.values())[1:]
    return {
        parameter.name: (
            hints[parameter.name].__metadata__[0],
            parameter.default is inspect.Parameter.empty,
        )
        for parameter in parameters
    }
