"""`judge_pairwise`: a model says which of two replies is better, asked in both orders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Unpack

from palestra.types import Message, Score, Task, Unscorable
from palestra.verifiers.judge_model import (
    JudgeOptions,
    ModelVerifier,
    all_or_none,
    explanation,
    reason_of,
)
from palestra.verifiers.judge_prompt import check_template, reference_text, task_text
from palestra.verifiers.judge_verdict import Form

Preference = Literal["first", "second", "tie"]

BETTER = (
    "Decide which of two replies solves the task better. Correctness comes first, then whether "
    "everything that was asked for is there. Neither the order of the replies nor their length "
    'speaks for one. If neither is better, the verdict is "tie".'
)
_TEMPLATE = "The task:\n{task}\n\nThe first reply:\n{first}\n\nThe second reply:\n{second}"
_PLACEHOLDERS = ("task", "first", "second")


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Which of two replies is better.

    `asked` has a pair for each sample: which place the judge preferred when the first reply stood
    in the first place, and which when it stood in the second. `("first", "second")` is a win of the
    first reply, `("first", "first")` a judge that likes the first place. Empty if nobody was asked.
    """

    better: Preference
    asked: tuple[tuple[Preference, Preference], ...] = ()
    reason: str = ""


def judge_pairwise(
    model: str,
    *,
    against: str | None = None,
    criteria: str = BETTER,
    template: str = _TEMPLATE,
    name: str = "judge_pairwise",
    **options: Unpack[JudgeOptions],
) -> PairwiseJudge:
    """A verifier: 1 if a model prefers the reply to another one, 0 if not, 0.5 for a tie.

    The other reply is the task's answer, or `task.info[against]`. Each sample is asked for in both
    orders, and one that changes its mind with the order is a tie (Zheng et al., MT-Bench,
    arXiv 2306.05685, section 3.4); how often that happens is the metric "order_decided". What more
    than half of the samples say holds, otherwise it is a tie. Equal replies are a tie and an empty
    one loses, and nobody is asked. `compare` judges any two replies.

    The template has `{task}`, `{first}` and `{second}`; `options` are those of `judge`.

    Raises:
        ValueError: as `judge`.
    """
    return PairwiseJudge(
        model, against=against, criteria=criteria, template=template, name=name, **options
    )


class PairwiseJudge(ModelVerifier):
    """What `judge_pairwise` makes."""

    def __init__(
        self,
        model: str,
        *,
        against: str | None,
        criteria: str,
        template: str,
        name: str,
        **options: Unpack[JudgeOptions],
    ) -> None:
        for place in ("first", "second"):
            check_template(template, known=_PLACEHOLDERS, needs=(place,))
        super().__init__(model, name=name, reward_range=(0.0, 1.0), **options)
        self._against = against
        self._criteria = criteria
        self._template = template

    async def compare(self, task: Task, first: str, second: str) -> Comparison:
        """Which of two replies to a task is better. Raises Unscorable."""
        return await self._bounded(self._compare(task, first, second))

    async def _score(
        self, task: Task, reply: str, answer: Any, messages: Sequence[Message]
    ) -> Score:
        other = answer if self._against is None else task.info.get(self._against)
        text = "" if other is None else reference_text(other)
        if not text.strip():
            where = "answer" if self._against is None else f'info["{self._against}"]'
            raise Unscorable(f"task {task.id} has no reply to compare with: its {where} is empty")
        comparison = await self._compare(task, reply, text)
        return Score(
            value={"first": 1.0, "tie": 0.5, "second": 0.0}[comparison.better],
            explanation=explanation(comparison.reason),
        )

    async def _compare(self, task: Task, first: str, second: str) -> Comparison:
        if first.strip() == second.strip():
            return Comparison(better="tie", reason="the replies are equal")
        if not first.strip() or not second.strip():
            better: Preference = "second" if not first.strip() else "first"
            return Comparison(better=better, reason="the other reply is empty")
        described = task_text(task)

        async def in_both_orders(sample: int) -> tuple[_Verdict, _Verdict]:
            forward, backward = await all_or_none(
                [
                    self._prefer(described, first, second, sample),
                    self._prefer(described, second, first, sample),
                ]
            )
            return forward, backward

        samples = await self._sampled(in_both_orders)
        outcomes = [_outcome(forward[0], backward[0]) for forward, backward in samples]
        for (forward, _), (backward, _) in samples:
            if forward == backward != "tie":
                self._count("order_decided")
        better = "tie"
        for side in ("first", "second"):
            if outcomes.count(side) * 2 > len(outcomes):
                better = side
        reasons = [
            forward[1]
            for (forward, _), outcome in zip(samples, outcomes, strict=True)
            if outcome == better
        ]
        return Comparison(
            better=better,
            asked=tuple((forward[0], backward[0]) for forward, backward in samples),
            reason=reasons[0] if reasons else "the samples disagree",
        )

    async def _prefer(
        self, task: str, shown_first: str, shown_second: str, sample: int
    ) -> _Verdict:
        texts = {"task": task, "first": shown_first, "second": shown_second}
        return await self._ask(self._criteria, self._template, texts, _FORM, sample)


_Verdict = tuple[Preference, str]  # which place, the reason


def _outcome(forward: Preference, backward: Preference) -> Preference:
    """The reply that is preferred in both orders, else a tie. Both are places."""
    if (forward, backward) == ("first", "second"):
        return "first"
    if (forward, backward) == ("second", "first"):
        return "second"
    return "tie"


def _read_preference(fields: Mapping[str, Any]) -> _Verdict:
    verdict = fields["verdict"]
    if verdict == "first" or verdict == "second" or verdict == "tie":
        return verdict, reason_of(fields)
    raise ValueError(f'a verdict is "first", "second" or "tie", got {verdict!r:.80}')


_FORM = Form(
    shown={"reason": '"why, briefly"', "verdict": '"first", "second" or "tie"'},
    schema={
        "reason": {"type": "string"},
        "verdict": {"type": "string", "enum": ["first", "second", "tie"]},
    },
    read=_read_preference,
)
