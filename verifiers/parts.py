"""`Parts`: what rubrics and combinators share: named verifiers, run at once, blamed by name."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from palestra.tools.output import shortened
from palestra.types import Failure, Message, Score, Task, Unscorable
from palestra.verifiers.context import KNOWN_PARAMETERS, Compound, Context
from palestra.verifiers.run import check_verifier, judge, run_verifier
from palestra.verifiers.verifier import (
    Declaration,
    Range,
    Verifier,
    declaration_of,
    parameters_of,
)

_MAX_EXPLANATION_CHARS = 300  # of each part


@dataclass(frozen=True, kw_only=True, slots=True)
class NamedVerifier:
    """A verifier under the name that it has among others, and the range it must keep to."""

    name: str
    verifier: Verifier
    range: Range


class Parts(Compound):
    """Named verifiers.

    Those that ask for the sandbox run one after another, in order, and share the time limit evenly
    unless they declare their own; all others run at once. Results come in the order of the parts.

    One that is unscorable makes the whole unscorable, one that fails makes it failed, with its name
    at the end of the cause ("verifier:format"). That holds even where the verdict of the others
    would settle the matter: which answers are masked must not depend on how good they are.

    Raises:
        ValueError: something that is no verifier, or two of one name.
    """

    def __init__(self, parts: Iterable[NamedVerifier], declaration: Declaration) -> None:
        self.parts = tuple(parts)
        self.declaration = declaration
        self.__name__ = declaration.name
        seen: set[str] = set()
        for part in self.parts:
            check_verifier(part.verifier)
            if part.name in seen:
                raise ValueError(
                    f'two parts of {declaration.name} are called "{part.name}": name one of them'
                )
            seen.add(part.name)
        # What `inspect.signature` says of it: environments start a sandbox where one is asked for.
        self.__signature__ = _signature(part.verifier for part in self.parts)

    async def __call__(
        self,
        *,
        task: Task,
        messages: Sequence[Message] = (),
        **given: Any,
    ) -> Score:
        """`run_verifier` on this, for code that calls verifiers itself."""
        return await run_verifier(self, task=task, messages=messages, **given)

    async def judge_all(self, context: Context) -> dict[str, Score]:
        """Every part's score, in order. Raises Failure or Unscorable for the first that does."""
        results: dict[str, Score | Failure | Unscorable] = {}
        in_sandbox = [part for part in self.parts if "sandbox" in parameters_of(part.verifier)]

        async def one_by_one() -> None:
            shared = context.with_time(context.timeout_s / max(1, len(in_sandbox)))
            for part in in_sandbox:
                results[part.name] = await self._attempt(part, shared)

        async def alone(part: NamedVerifier) -> None:
            results[part.name] = await self._attempt(part, context)

        at_once = [part for part in self.parts if part not in in_sandbox]
        async with asyncio.TaskGroup() as group:
            group.create_task(one_by_one())
            for part in at_once:
                group.create_task(alone(part))
        in_order = {part.name: results[part.name] for part in self.parts}
        for trouble in (Failure, Unscorable):
            for result in in_order.values():
                if isinstance(result, trouble):
                    raise result
        return {name: score for name, score in in_order.items() if isinstance(score, Score)}

    async def judge_part(self, part: NamedVerifier, context: Context) -> Score:
        """One part's score. Raises Failure or Unscorable with its name in the cause."""
        result = await self._attempt(part, context)
        if not isinstance(result, Score):
            raise result
        return result

    async def _attempt(self, part: NamedVerifier, context: Context) -> Score | Failure | Unscorable:
        try:
            return await judge(part.verifier, context, range=part.range)
        except Failure as failure:
            return named_trouble(failure, part.name)
        except Unscorable as trouble:
            return named_trouble(trouble, part.name)


def named(verifier: Verifier, name: str | None = None, range: Range | None = None) -> NamedVerifier:
    """A verifier under its own name and range where no other is given."""
    if not callable(verifier):
        raise ValueError(f"a verifier must be a function, got {verifier!r:.80}")
    declared = declaration_of(verifier)
    return NamedVerifier(
        name=name or declared.name,
        verifier=verifier,
        range=range or declared.range or (0.0, 1.0),
    )


def named_trouble(error: Failure | Unscorable, name: str) -> Failure | Unscorable:
    """The same trouble with a part's name at the end of its cause."""
    cause = f"{error.cause}:{name}"
    new = (
        Failure(cause, error.detail)
        if isinstance(error, Failure)
        else Unscorable(str(error), cause=cause)
    )
    new.__cause__ = error
    return new


def explained(scores: Mapping[str, Score]) -> str:
    """The parts' explanations, each after its name."""
    return "; ".join(
        f"{name}: {shortened(score.explanation, _MAX_EXPLANATION_CHARS)}"
        for name, score in scores.items()
        if score.explanation
    )


def _signature(verifiers: Iterable[Verifier]) -> inspect.Signature:
    asked: set[str] = set()
    for verifier in verifiers:
        parameters = parameters_of(verifier)
        if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
            asked.update(KNOWN_PARAMETERS)
            asked.discard("sandbox")  # given if there is one, but not asked for
        asked.update(parameters)
    return inspect.Signature(
        [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY)
            for name in KNOWN_PARAMETERS
            if name in asked
        ]
    )
