"""Reads a task's answer: cases of input and output, calls, or the source of tests."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from palestra.types import Unscorable
from palestra.verifiers.code.guest.plain import Refused, encode
from palestra.verifiers.code.names import helpers_of, names_of

RUNNERS = ("asserts", "unittest", "pytest")
STYLES = ("auto", "stdin", "calls", *RUNNERS)


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """What a program reads and what it has to write."""

    input: str
    output: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """A call, its arguments and the expected result encoded as in guest/plain.py."""

    arguments: Any
    named: Any
    expected: Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Suite:
    """Tests as source. `names` are those that only the program can have."""

    source: str
    runner: str
    names: tuple[str, ...]
    setup: str
    module: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """What a program is tested with: exactly one of cases, calls and a suite.

    `prompt` is code that the program may go on from, `solution` one that has to pass.
    """

    entry_point: str | None
    prompt: str
    solution: str
    cases: tuple[Case, ...] = ()
    calls: tuple[Call, ...] = ()
    suite: Suite | None = None


def read_reference(answer: Any, style: str) -> Reference:
    """A task's answer, a mapping or its JSON, in the forms that `code` documents.

    Raises Unscorable for anything else.
    """
    if isinstance(answer, str):
        try:
            answer = json.loads(answer)
        except (ValueError, RecursionError) as error:
            raise Unscorable(f"the answer is no JSON: {error}"[:200]) from None
    if not isinstance(answer, Mapping):
        raise Unscorable(f"the answer of a programming task is a mapping, got {answer!r:.80}")
    kind = _kind_of(answer, style)
    prompt = _text(answer, "prompt")
    named = _text(answer, "entry_point") or _text(answer, "function")
    entry_point = named.replace("()", "") or None  # "Solution().add"
    solution = _text(answer, "solution")
    if kind == "stdin":
        return Reference(
            entry_point=None, prompt=prompt, solution=solution, cases=_cases(answer["cases"])
        )
    if kind == "calls":
        if entry_point is None:
            raise Unscorable('calls need a "function"')
        return Reference(
            entry_point=entry_point, prompt=prompt, solution=solution, calls=_calls(answer["calls"])
        )
    suite = _suite(answer, kind, entry_point, prompt)
    return Reference(entry_point=entry_point, prompt=prompt, solution=solution, suite=suite)


def _kind_of(answer: Mapping[str, Any], style: str) -> str:
    fields = {"stdin": "cases", "calls": "calls"}
    found = [kind for kind, field in fields.items() if answer.get(field)]
    found += ["tests"] if answer.get("tests") else []
    wanted = style if style in fields else "tests"
    if style != "auto" and wanted in found:
        return style
    if style == "auto" and len(found) == 1:
        return "auto" if found[0] == "tests" else found[0]
    needed = fields.get(style, "tests") if style != "auto" else "cases, calls or tests"
    raise Unscorable(
        f"the answer needs {needed}, it has {', '.join(sorted(map(str, answer)))}"[:300]
    )


def _text(answer: Mapping[str, Any], field: str) -> str:
    value = answer.get(field) or ""
    if not isinstance(value, str):
        raise Unscorable(f'"{field}" of the answer is a text, got {value!r:.80}')
    return value


def _sequence(value: Any, field: str) -> Sequence[Any]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise Unscorable(f'"{field}" of the answer is a list, got {value!r:.80}')
    return value


def _cases(value: Any) -> tuple[Case, ...]:
    cases = []
    for entry in _sequence(value, "cases"):
        given, wanted = None, None
        if isinstance(entry, Mapping):
            given, wanted = entry.get("input"), entry.get("output")
        if not isinstance(given, str) or not isinstance(wanted, str):
            raise Unscorable(f'a case is {{"input": text, "output": text}}, got {entry!r:.80}')
        cases.append(Case(input=given, output=wanted))
    return tuple(cases)


def _calls(value: Any) -> tuple[Call, ...]:
    calls = []
    for entry in _sequence(value, "calls"):
        if not isinstance(entry, Mapping) or "expected" not in entry:
            raise Unscorable(
                f'a call is {{"args": [], "kwargs": {{}}, "expected": ...}}, got {entry!r:.80}'
            )
        try:
            calls.append(
                Call(
                    arguments=encode(list(entry.get("args") or ())),
                    named=encode(dict(entry.get("kwargs") or {})),
                    expected=encode(entry["expected"]),
                )
            )
        except (Refused, TypeError, ValueError) as error:
            raise Unscorable(f"a call's arguments and result are plain data: {error}") from None
    return tuple(calls)


def _suite(answer: Mapping[str, Any], style: str, entry_point: str | None, prompt: str) -> Suite:
    tests = answer["tests"]
    source = tests if isinstance(tests, str) else "\n".join(map(str, _sequence(tests, "tests")))
    setup = helpers_of(prompt) + "\n" + _text(answer, "setup")
    module = _text(answer, "module") or "solution"
    if not module.isidentifier():
        raise Unscorable(f'"module" of the answer is the name of a module, got {module!r:.80}')
    test_names = names_of(source)
    setup_names = names_of(setup)
    runner = test_names.runner if style == "auto" else style
    unbound = [name for name in test_names.free if name not in setup_names.bound]
    uses_import = module in test_names.imported
    if entry_point is None:
        names = [] if uses_import else unbound
    else:
        names = [entry_point.partition(".")[0]]
    unknown = sorted(set(unbound) - set(names))
    # Were it taken from the program, the program would choose what it is tested with.
    if unknown and not (test_names.star or setup_names.star):
        raise Unscorable(
            f'the tests use {", ".join(unknown[:3])}, which nothing defines: add it to "setup"'
        )
    return Suite(source=source, runner=runner, names=tuple(names), setup=setup, module=module)
