"""How far a judge can be trusted: against labels or another judge, its biases, its steadiness."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from palestra.types import Task, Unscorable
from palestra.verifiers.judge_model import all_or_none
from palestra.verifiers.judge_pairwise import Comparison, PairwiseJudge
from palestra.verifiers.judge_statistics import (
    Agreement,
    agreement,
    correlation,
    self_consistency,
    share,
)
from palestra.verifiers.run import run_verifier
from palestra.verifiers.verifier import Verifier

C = TypeVar("C")
T = TypeVar("T")

_AT_ONCE = 64  # cases; more would only wait at the endpoint while their time runs


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgeReport:
    """What `measure_judge` finds. NaN where there was nothing to measure it by.

    `agreement` is with the labels, or the other judge; `unscorable` counts the verdicts of either
    that were not had, and that are in none of the other numbers.

    `self_consistency` is the share of pairs of verdicts on the same thing that are equal.

    `length_bias`: for single replies the correlation of the verdict's excess over the label with
    the logarithm of the reply's length; for pairs how much more often the judge prefers the longer
    of two than the labels do. Above 0: it overrates long replies.

    `position_bias`, of pairs only: among the samples that prefer one place in both orders, the
    share that prefers the first, minus one half; `order_decided` is how often that happens.
    """

    agreement: Agreement
    unscorable: int
    self_consistency: float = math.nan
    length_bias: float = math.nan
    position_bias: float = math.nan
    order_decided: float = math.nan

    def lines(self) -> list[str]:
        """The report to read, a line for each number."""
        found = self.agreement
        kappa = f"{found.kappa:.3f} (95%: {found.kappa_low:.3f} to {found.kappa_high:.3f})"
        numbers = {
            "cases": f"{found.count}, {self.unscorable} unscorable",
            "accuracy": f"{found.accuracy:.3f}",
            "Cohen's kappa": kappa,
            "self-consistency": f"{self.self_consistency:.3f}",
            "length bias": f"{self.length_bias:+.3f}",
            "position bias": f"{self.position_bias:+.3f}",
            "decided by order": f"{self.order_decided:.3f}",
        }
        return [f"{name}: {text}" for name, text in numbers.items() if "nan" not in text[:4]]


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgedReply:
    """A reply to a task and what a person says it is worth, from 0 to 1 (None: nobody said)."""

    task: Task
    reply: str
    label: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgedPair:
    """Two replies to a task and which a person says is better: "first", "second" or "tie"."""

    task: Task
    first: str
    second: str
    label: str | None = None


async def measure_judge(
    judge: Verifier,
    cases: Sequence[JudgedReply],
    *,
    against: Verifier | None = None,
    repeats: int = 1,
    passes_at: float = 0.5,
) -> JudgeReport:
    """A judge, or any verifier, against labels, or against another one in their place.

    For accuracy and kappa a verdict of `passes_at` or more is a yes, of labels and judge alike.
    With `repeats` above 1 each case is judged so often, for self-consistency (a cache must be off
    then: it repeats itself); the first verdict counts for all else.

    Raises:
        ValueError: no cases, or labels that are not from 0 to 1.
        Failure: a verifier is broken.
    """
    _check_cases(cases, repeats)

    async def verdict(verifier: Verifier, case: JudgedReply) -> float:
        messages = [*case.task.messages, {"role": "assistant", "content": case.reply}]
        score = await run_verifier(verifier, task=case.task, messages=messages, reply=case.reply)
        return score.value

    if against is None:
        labels: list[float | None] = [case.label for case in cases]
        for label in labels:
            if label is None or not 0 <= label <= 1:
                raise ValueError(f"a label must be from 0 to 1, got {label}")
    else:
        labels = await _verdicts(lambda case: verdict(against, case), cases)
    rounds = [await _verdicts(lambda case: verdict(judge, case), cases) for _ in range(repeats)]
    rated = [
        (len(case.reply), value, label)
        for case, value, label in zip(cases, rounds[0], labels, strict=True)
        if value is not None and label is not None
    ]
    return JudgeReport(
        agreement=agreement(
            [value >= passes_at for _, value, _ in rated],
            [label >= passes_at for _, _, label in rated],
        ),
        unscorable=_missing([*rounds, labels]),
        self_consistency=self_consistency(list(zip(*rounds, strict=True))),
        length_bias=correlation(
            [math.log1p(length) for length, _, _ in rated],
            [value - label for _, value, label in rated],
        ),
    )


async def measure_pairwise_judge(
    judge: PairwiseJudge,
    cases: Sequence[JudgedPair],
    *,
    against: PairwiseJudge | None = None,
    repeats: int = 1,
) -> JudgeReport:
    """A pairwise judge against labels, or against another one; as `measure_judge`."""
    _check_cases(cases, repeats)

    async def comparison(judge: PairwiseJudge, case: JudgedPair) -> Comparison:
        return await judge.compare(case.task, case.first, case.second)

    if against is None:
        labels = [case.label for case in cases]
        for label in labels:
            if label not in ("first", "second", "tie"):
                raise ValueError(f'a label must be "first", "second" or "tie", got {label!r}')
    else:
        found = await _verdicts(lambda case: comparison(against, case), cases)
        labels = [None if other is None else other.better for other in found]
    rounds = [await _verdicts(lambda case: comparison(judge, case), cases) for _ in range(repeats)]
    rated = [
        (case, made, label)
        for case, made, label in zip(cases, rounds[0], labels, strict=True)
        if made is not None and label is not None
    ]
    asked = [pair for made in rounds[0] if made for pair in made.asked]
    by_order = [forward for forward, backward in asked if forward == backward != "tie"]
    outcomes = [[made and made.better for made in of_round] for of_round in rounds]
    return JudgeReport(
        agreement=agreement(
            [made.better for _, made, _ in rated], [label for _, _, label in rated]
        ),
        unscorable=_missing([*rounds, labels]),
        self_consistency=self_consistency(list(zip(*outcomes, strict=True))),
        length_bias=_excess_of_longer(
            [(len(case.first), len(case.second), made.better, label) for case, made, label in rated]
        ),
        position_bias=share(by_order.count("first"), len(by_order)) - 0.5,
        order_decided=share(len(by_order), len(asked)),
    )


def _excess_of_longer(rated: Sequence[tuple[int, int, str, str]]) -> float:
    """How much more often the longer of two is preferred than by the labels; a tie is half."""
    excess = []
    for first_length, second_length, better, label in rated:
        if first_length != second_length:
            longer = "first" if first_length > second_length else "second"
            excess.append(_credit(better, longer) - _credit(label, longer))
    return math.fsum(excess) / len(excess) if excess else math.nan


def _credit(better: str, side: str) -> float:
    return 0.5 if better == "tie" else float(better == side)


async def _verdicts(
    ask: Callable[[C], Coroutine[Any, Any, T]], cases: Sequence[C]
) -> list[T | None]:
    """On all cases, in order; None for what is unscorable."""
    places = asyncio.Semaphore(_AT_ONCE)

    async def in_turn(case: C) -> T | None:
        async with places:
            try:
                return await ask(case)
            except Unscorable:
                return None

    return await all_or_none(map(in_turn, cases))


def _missing(rounds: Sequence[Sequence[object | None]]) -> int:
    return sum(verdict is None for of_round in rounds for verdict in of_round)


def _check_cases(cases: Sequence[object], repeats: int) -> None:
    if not cases:
        raise ValueError("no cases to measure a judge by")
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
