"""`all_of`, `any_of`, `sequence`: verifiers made of verifiers."""

from __future__ import annotations

from palestra.types import Score
from palestra.verifiers.context import Context
from palestra.verifiers.parts import Parts, explained, named
from palestra.verifiers.verifier import Declaration, Verifier


def all_of(*verifiers: Verifier, **by_name: Verifier) -> AllOf:
    """As good as the worst: 1 only if every verifier gives 1.

        all_of(number, brief=lambda reply: len(reply) < 200)

    All run, whatever the others say, and what one cannot score the whole cannot (see `Parts`).

    Raises:
        ValueError: no verifiers, something that is none, or two of one name.
    """
    return AllOf("all_of", verifiers, by_name)


def any_of(*verifiers: Verifier, **by_name: Verifier) -> AnyOf:
    """As good as the best: 1 if any verifier gives 1.

    Every verifier is one more way to pass: the false positives of all of them add up. Raises as
    `all_of` does.
    """
    return AnyOf("any_of", verifiers, by_name)


def sequence(
    *verifiers: Verifier, partial: bool = False, pass_at: float = 1.0, **by_name: Verifier
) -> Sequential:
    """Stop at the first that fails: cheap checks before dear ones, a format before its content.

    All but the last are gates, passed at a value of `pass_at`; behind them the value is the last
    one's, before them 0. With `partial` it is the mean over all, 0 for those not reached: then the
    early, easy gates pay for themselves, and a policy may settle for them.

    They share the time limit evenly, unless they declare their own. What is behind a closed gate
    cannot make the answer unscorable.

    Raises:
        ValueError: as `all_of`, or `pass_at` not above 0 and up to 1.
    """
    return Sequential(verifiers, by_name, partial=partial, pass_at=pass_at)


class _Combined(Parts):
    def __init__(
        self, name: str, verifiers: tuple[Verifier, ...], by_name: dict[str, Verifier]
    ) -> None:
        if not verifiers and not by_name:
            raise ValueError(f"{name} needs at least one verifier")
        parts = [
            *(named(verifier) for verifier in verifiers),
            *(named(verifier, name) for name, verifier in by_name.items()),
        ]
        super().__init__(parts, Declaration(name=name, range=(0.0, 1.0)))


class AllOf(_Combined):
    """What `all_of` makes."""

    async def judge(self, context: Context) -> Score:
        return _extreme(await self.judge_all(context), best=False)


class AnyOf(_Combined):
    """What `any_of` makes."""

    async def judge(self, context: Context) -> Score:
        return _extreme(await self.judge_all(context), best=True)


class Sequential(_Combined):
    """What `sequence` makes."""

    def __init__(
        self,
        verifiers: tuple[Verifier, ...],
        by_name: dict[str, Verifier],
        *,
        partial: bool,
        pass_at: float,
    ) -> None:
        super().__init__("sequence", verifiers, by_name)
        if not 0 < pass_at <= 1:
            raise ValueError(f"pass_at must be above 0 and at most 1, got {pass_at}")
        self.partial = partial
        self.pass_at = pass_at

    async def judge(self, context: Context) -> Score:
        shared = context.with_time(context.timeout_s / len(self.parts))
        scores: dict[str, Score] = {}
        *gates, last = self.parts
        for part in gates:
            scores[part.name] = score = await self.judge_part(part, shared)
            if score.value < self.pass_at:
                break
        else:
            scores[last.name] = await self.judge_part(last, shared)
        if self.partial:
            value = sum(score.value for score in scores.values()) / len(self.parts)
        else:
            value = scores[last.name].value if last.name in scores else 0.0
        return _summary(value, scores)


def _extreme(scores: dict[str, Score], *, best: bool) -> Score:
    values = [score.value for score in scores.values()]
    return _summary(max(values) if best else min(values), scores)


def _summary(value: float, scores: dict[str, Score]) -> Score:
    return Score(
        value=value,
        parts={name: score.value for name, score in scores.items()},
        explanation=explained(scores),
    )
