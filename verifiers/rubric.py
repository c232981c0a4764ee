"""`Rubric`: a weighted sum of named parts is the reward."""

from __future__ import annotations

import math
from dataclasses import dataclass

from palestra.types import Score
from palestra.verifiers.context import Context
from palestra.verifiers.group import check_group_verifier, is_group_verifier
from palestra.verifiers.parts import NamedVerifier, Parts, explained, named
from palestra.verifiers.verifier import (
    Declaration,
    Range,
    Verifier,
    check_range,
    declaration_of,
)


@dataclass(frozen=True, slots=True)
class Part:
    """A verifier in a rubric, e.g. `Part(number)` or `Part(brief, 0.1, name="brevity")`.

    With weight 0 it is a metric: measured and shown, without effect. With a negative weight it is a
    pitfall. `range` is where its rewards must lie: what it declares, or else 0 to 1. `shaping`
    parts add to the reward and not to the value: what it declares, or else not.

    Raises:
        ValueError: something that is no verifier, a weight that is not finite, or a bad range.
    """

    verifier: Verifier
    weight: float = 1.0
    name: str = ""
    range: Range | None = None
    shaping: bool | None = None

    def __post_init__(self) -> None:
        part = named(self.verifier, self.name, self.range)
        check_range(part.name, part.range)
        if not math.isfinite(self.weight):
            raise ValueError(f"weight of part {part.name} must be finite, got {self.weight}")
        object.__setattr__(self, "name", part.name)
        object.__setattr__(self, "range", part.range)
        if self.shaping is None:
            object.__setattr__(self, "shaping", declaration_of(self.verifier).shaping)

    @property
    def is_group(self) -> bool:
        """Whether it judges all episodes of a task together."""
        return is_group_verifier(self.verifier)

    def named(self) -> NamedVerifier:
        """The same without its weight."""
        assert self.range is not None  # set above
        return NamedVerifier(name=self.name, verifier=self.verifier, range=self.range)


class Rubric(Parts):
    """Parts with weights: `Rubric(Part(number), Part(format, 0.1), Part(tool_calls, 0))`.

    The reward is the sum of weight times the part's reward, any finite float.

    The value, from 0 to 1, is that of the parts that are not shaping: the sum of weight times the
    part's value, over the sum of the positive weights, cut off at 0 and 1 (HealthBench,
    arXiv 2505.08775). With one such part it is that part's value, so an evaluation shows accuracy
    whatever a rubric adds for format or length. `Score.parts` has each part's unweighted reward.

    Parts that ask for `episodes` see all episodes of a task once the driver has them, and add to
    their rewards before advantages are computed (see `group`).

    A policy optimises the sum: it gives up a part whose weight is small for one whose weight is
    large, and what is easy first. Keep the greatest sum of shaping below the worth of an answer.

    Raises:
        ValueError: two parts of one name, or none with a positive weight that is not shaping.
    """

    def __init__(self, *parts: Part, name: str = "rubric") -> None:
        for part in parts:
            if not isinstance(part, Part):
                raise ValueError(f"a rubric is made of Part(verifier, weight), got {part!r:.80}")
        self.weighted = tuple(part for part in parts if not part.is_group)
        self.group_parts = tuple(part for part in parts if part.is_group)
        for part in self.group_parts:
            check_group_verifier(part.verifier)
            if any(part.name == other.name for other in parts if other is not part):
                raise ValueError(f'two parts of {name} are called "{part.name}": name one of them')
        for part in self.weighted:
            if isinstance(part.verifier, Rubric) and part.verifier.group_parts:
                raise ValueError(
                    f"{part.name} judges episodes together: only an environment's own rubric can"
                )
        self._positive = math.fsum(
            part.weight for part in self.weighted if part.weight > 0 and not part.shaping
        )
        if self._positive == 0:
            raise ValueError(
                f"{name} needs a part that judges the answer: one with a positive weight that is "
                "not shaping"
            )
        super().__init__(
            (part.named() for part in self.weighted),
            Declaration(name=name, range=_range(self.weighted)),
        )

    async def judge(self, context: Context) -> Score:
        scores = await self.judge_all(context)
        rewards = {part_name: score.reward or 0.0 for part_name, score in scores.items()}
        reward = math.fsum(part.weight * rewards[part.name] for part in self.weighted)
        earned = math.fsum(
            part.weight * scores[part.name].value for part in self.weighted if not part.shaping
        )
        low, high = self.declaration.range or (-math.inf, math.inf)
        return Score(
            value=min(1.0, max(0.0, earned / self._positive)),
            reward=min(high, max(low, reward)),  # rounding
            parts=rewards,
            explanation=explained(scores),
        )


def _range(parts: tuple[Part, ...]) -> Range:
    ends = [sorted(part.weight * end for end in part.range or ()) for part in parts]
    return math.fsum(low for low, _ in ends), math.fsum(high for _, high in ends)
