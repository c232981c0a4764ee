"""`tool_calls`: the episode made the calls that the reference lists, by name and arguments."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from palestra.types import Message, Score, Unscorable
from palestra.verifiers.context import is_blank
from palestra.verifiers.json_answer import NotJson, canonical, read_json, same_json
from palestra.verifiers.verifier import verifier

# An episode of more calls is wrong: comparing takes time in proportion to calls times references.
MAX_CALLS = 256

# What BFCL leaves out of strings before it compares them.
_IGNORED = re.compile(r"[ ,./\-_*^]")


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpectedCall:
    """A call of the reference: for each argument the values that are allowed.

    `optional` arguments may be left out. `nested`: an allowed object maps each of its keys to the
    allowed values, too, as in BFCL.
    """

    name: str
    allowed: Mapping[str, Sequence[Any]]
    optional: frozenset[str] = frozenset()
    nested: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class _Call:
    name: str
    arguments: dict[str, Any] | None  # None: no JSON object


def tool_calls(
    *,
    ordered: bool = False,
    allow_extra: bool = False,
    partial: bool = False,
    lenient_strings: bool = False,
) -> Callable[..., Score]:
    """A verifier: 1 if the calls of the episode are those that the reference lists.

    The reference is a list of `{"name": …, "arguments": {…}}` (or OpenAI's form), compared as they
    are, or of `{name: {argument: [allowed values]}}`, where "" among the values makes an argument
    optional: the ground truth of the Berkeley Function Calling Leaderboard (Patil et al., ICML
    2025). Arguments are compared by type and value (1 is 1.0, and not "1"); none may be missing and
    none unexpected. With `lenient_strings`, case, spaces and `,./-_*^` do not count, as in BFCL.

    Calls may come in any order unless `ordered`; others beside them make the answer wrong unless
    `allow_extra` (then a policy may try every call there is); malformed ones count as others. An
    empty reference asks for no call: then the reply has to say something instead. With `partial`
    the value is the F1 of the calls, or the share that was made where more are allowed.
    """

    @verifier(name="tool_calls")
    def compare(messages: Sequence[Message], reply: str, answer: Any) -> Score:
        """How well the calls match. Raises Unscorable for a reference that lists no calls."""
        expected = read_expected(answer)
        calls = list(_calls(messages))
        if not expected:
            silent = "neither a call nor a reply" if is_blank(reply) else ""
            problem = "a call where none was due" if calls else silent
            return Score(value=float(not problem), explanation=problem)
        if len(calls) > MAX_CALLS:
            return Score(value=0.0, explanation=f"more than {MAX_CALLS} calls")
        fits = [[_fits(call, wanted, lenient_strings) for call in calls] for wanted in expected]
        matched = _in_order(fits) if ordered else _pairs(fits)
        if partial:
            whole = len(expected) if allow_extra else (len(expected) + len(calls)) / 2
            value = matched / whole
        else:
            complete = matched == len(expected)
            value = float(complete and (allow_extra or len(calls) == matched))
        made = f"{matched} of {len(expected)} calls match, {len(calls)} were made"
        return Score(value=value, explanation="" if value == 1.0 else made)

    return compare


def read_expected(answer: Any) -> list[ExpectedCall]:
    """The calls that a reference lists. Raises Unscorable if it is no such list."""
    try:
        value = read_json(answer if isinstance(answer, str) else canonical(answer))
        listed = value if isinstance(value, list) else [value]
        return [_expected(item) for item in listed]
    except (NotJson, TypeError, ValueError, RecursionError) as error:
        raise Unscorable(f"the task's answer is no list of tool calls: {error}"[:300]) from None


def count_calls(messages: Sequence[Message]) -> int:
    """How many calls the episode made, malformed ones included."""
    return sum(1 for _ in _calls(messages))


def _expected(item: Any) -> ExpectedCall:
    if not isinstance(item, dict):
        raise ValueError(f"a call is an object, got {item!r:.80}")
    function = item.get("function", item)
    if isinstance(function, dict) and isinstance(function.get("name"), str):
        arguments = function.get("arguments", {})
        if isinstance(arguments, str):
            arguments = read_json(arguments)
        if not isinstance(arguments, dict):
            raise ValueError(f"arguments are an object, got {arguments!r:.80}")
        return ExpectedCall(
            name=function["name"], allowed={name: [value] for name, value in arguments.items()}
        )
    if len(item) != 1:
        raise ValueError(f"a call has a name and arguments, got {item!r:.80}")
    ((name, allowed),) = item.items()
    if not isinstance(allowed, dict) or not all(isinstance(v, list) for v in allowed.values()):
        raise ValueError(f"{name} needs a list of allowed values for each argument")
    optional = frozenset(argument for argument, values in allowed.items() if "" in values)
    return ExpectedCall(name=name, allowed=allowed, optional=optional, nested=True)


def _calls(messages: Sequence[Message]) -> Iterator[_Call]:
    for message in messages:
        if message.get("role") != "assistant":
            continue
        for call in message.get("tool_calls") or ():
            function = call.get("function")
            function = function if isinstance(function, dict) else {}
            yield _Call(
                name=str(function.get("name", "")),
                arguments=None if call.get("error") else _arguments(function.get("arguments")),
            )


def _arguments(text: Any) -> dict[str, Any] | None:
    try:
        value = read_json(text) if isinstance(text, str) and text.strip() else {}
    except NotJson:
        return None
    return value if isinstance(value, dict) else None


def _fits(call: _Call, expected: ExpectedCall, lenient: bool) -> bool:
    if call.name != expected.name or call.arguments is None:
        return False
    if call.arguments.keys() - expected.allowed.keys():
        return False
    if expected.allowed.keys() - call.arguments.keys() - expected.optional:
        return False
    return all(
        any(
            _is_allowed(value, choice, nested=expected.nested, lenient=lenient)
            for choice in expected.allowed[name]
        )
        for name, value in call.arguments.items()
    )


def _is_allowed(value: Any, allowed: Any, *, nested: bool, lenient: bool) -> bool:
    if isinstance(value, str) and isinstance(allowed, str) and lenient:
        return _bare(value) == _bare(allowed)
    if isinstance(value, list) and isinstance(allowed, list):
        return len(value) == len(allowed) and all(
            _is_allowed(a, b, nested=nested, lenient=lenient)
            for a, b in zip(value, allowed, strict=True)
        )
    if isinstance(value, dict) and isinstance(allowed, dict):
        if value.keys() - allowed.keys():
            return False
        return all(
            _key_is_allowed(name in value, value.get(name), choices, nested=nested, lenient=lenient)
            for name, choices in allowed.items()
        )
    return same_json(value, allowed)


def _key_is_allowed(
    is_there: bool, value: Any, choices: Any, *, nested: bool, lenient: bool
) -> bool:
    listed = choices if nested and isinstance(choices, list) else [choices]
    if not is_there:
        return nested and "" in listed
    return any(_is_allowed(value, choice, nested=nested, lenient=lenient) for choice in listed)


def _bare(text: str) -> str:
    return _IGNORED.sub("", text).lower().replace("'", '"')


def _pairs(fits: list[list[bool]]) -> int:
    """The size of a maximum matching of references with calls (augmenting paths)."""
    taken_by: dict[int, int] = {}

    def assign(reference: int, seen: set[int]) -> bool:
        for call, fit in enumerate(fits[reference]):
            if fit and call not in seen:
                seen.add(call)
                if call not in taken_by or assign(taken_by[call], seen):
                    taken_by[call] = reference
                    return True
        return False

    return sum(assign(reference, set()) for reference in range(len(fits)))


def _in_order(fits: list[list[bool]]) -> int:
    """The size of a longest common subsequence of references and calls."""
    best = [0] * (len(fits[0]) + 1)
    for row in fits:
        before = best[:]
        for call, fit in enumerate(row):
            best[call + 1] = max(before[call] + 1 if fit else 0, before[call + 1], best[call])
    return best[-1]
