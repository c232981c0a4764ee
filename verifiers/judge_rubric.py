"""`judge_rubric`: a model says of each item of a rubric whether the reply meets it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Unpack

from palestra.types import Message, Score, Task, Unscorable
from palestra.verifiers.judge import PLACEHOLDERS, TEMPLATE, texts_for
from palestra.verifiers.judge_model import (
    JudgeOptions,
    ModelVerifier,
    all_or_none,
    explanation,
    reason_of,
)
from palestra.verifiers.judge_prompt import check_template
from palestra.verifiers.judge_verdict import Form, closed_object

_CRITERIA = (
    "Decide for each of these items whether the reply meets it. Judge each on its own, by what the "
    "reply does and not by what it claims to do. Some items describe a fault: they are met if the "
    "reply has the fault.\n"
)


@dataclass(frozen=True, slots=True)
class Item:
    """A statement that is true of a reply or not, and what it is worth: a fault, less than 0.

    Raises:
        ValueError: no text, or a weight that is 0 or not finite.
    """

    text: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.text, str) or not self.text.strip():
            raise ValueError(f"an item of a rubric is a text, got {self.text!r:.80}")
        weight = self.weight
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            raise ValueError(f"the weight of an item is a number, got {weight!r:.80}")
        if not math.isfinite(weight) or weight == 0:
            raise ValueError(f"the weight of an item must be finite and not 0, got {weight}")


def judge_rubric(
    model: str,
    items: Sequence[Item] | Mapping[str, float] | None = None,
    *,
    separately: bool = False,
    template: str = TEMPLATE,
    name: str = "judge_rubric",
    **options: Unpack[JudgeOptions],
) -> RubricJudge:
    """A verifier: the weights of the items that a model finds met, over all positive weights.

        verifiers.judge_rubric("qwen3-32b", {"names a source": 2, "invents a quotation": -3}, …)

    As in HealthBench (arXiv 2505.08775): the value is cut off at 0 and 1, the reward only at -1, so
    that pitfalls still cost where the value is 0 already. One request for all items, or one for
    each, `separately`: dearer, and more exact. The majority of the samples decides on each item,
    and a tie goes against the reply. An empty reply is worth 0, and nobody is asked.

    Without `items` each task has its own, `task.info["rubric"]`: a list of `{"text", "weight"}`, or
    a mapping of texts to weights. Template and `options` are those of `judge`.

    Raises:
        ValueError: items without a positive weight or two alike, and as `judge`.
    """
    return RubricJudge(model, items, separately=separately, template=template, name=name, **options)


class RubricJudge(ModelVerifier):
    """What `judge_rubric` makes."""

    def __init__(
        self,
        model: str,
        items: Sequence[Item] | Mapping[str, float] | None,
        *,
        separately: bool,
        template: str,
        name: str,
        **options: Unpack[JudgeOptions],
    ) -> None:
        self._placeholders = check_template(
            template, known=PLACEHOLDERS, needs=("reply", "transcript")
        )
        self._items = None if items is None else _checked(items)
        super().__init__(model, name=name, reward_range=(-1.0, 1.0), **options)
        self._template = template
        self._separately = separately

    async def _score(
        self, task: Task, reply: str, answer: Any, messages: Sequence[Message]
    ) -> Score:
        items = self._items or _of_task(task)
        if "transcript" not in self._placeholders and not reply.strip():
            return Score(value=0.0, explanation="the reply is empty")
        texts = texts_for(self._placeholders, task, reply, answer, messages)
        samples = await self._sampled(lambda sample: self._verdicts(items, texts, sample))
        met = [_is_met(item, [s[i][0] for s in samples]) for i, item in enumerate(items)]
        positive = math.fsum(item.weight for item in items if item.weight > 0)
        earned = math.fsum(item.weight for item, is_met in zip(items, met, strict=True) if is_met)
        share = earned / positive
        return Score(
            value=min(1.0, max(0.0, share)),
            reward=min(1.0, max(-1.0, share)),
            parts={f"item_{i + 1}": float(is_met) for i, is_met in enumerate(met)},
            explanation=explanation(
                "; ".join(
                    f"{i + 1} {'met' if is_met else 'not met'}: {_reason(samples, i, is_met)}"
                    for i, is_met in enumerate(met)
                )
            ),
        )

    async def _verdicts(
        self, items: Sequence[Item], texts: Mapping[str, str], sample: int
    ) -> list[_Verdict]:
        groups = [[item] for item in items] if self._separately else [list(items)]

        async def ask(group: Sequence[Item]) -> list[_Verdict]:
            criteria = _CRITERIA + "\n".join(
                f"{i}. {' '.join(item.text.split())}" for i, item in enumerate(group, 1)
            )
            return await self._ask(criteria, self._template, texts, _form(len(group)), sample)

        return [v for verdicts in await all_or_none(map(ask, groups)) for v in verdicts]


_Verdict = tuple[bool, str]  # whether the item is met, the reason


def _checked(items: Any) -> tuple[Item, ...]:
    if isinstance(items, Mapping):
        items = [Item(text, weight) for text, weight in items.items()]
    checked: tuple[Item, ...] = tuple(items)
    for item in checked:
        if not isinstance(item, Item):
            raise ValueError(f"a rubric is made of Item(text, weight), got {item!r:.80}")
    if len({item.text for item in checked}) < len(checked):
        raise ValueError("two items of a rubric are the same: leave one out")
    if not any(item.weight > 0 for item in checked):
        raise ValueError("a rubric needs an item with a positive weight")
    return checked


def _of_task(task: Task) -> tuple[Item, ...]:
    rubric = task.info.get("rubric")
    try:
        if not isinstance(rubric, Mapping):
            if not isinstance(rubric, Sequence) or isinstance(rubric, str):
                raise ValueError(f'task.info["rubric"] is {rubric!r:.80}')
            rubric = [Item(**item) if isinstance(item, Mapping) else item for item in rubric]
        return _checked(rubric)
    except (ValueError, TypeError) as error:
        raise Unscorable(f"task {task.id} has no rubric that can be read: {error}") from None


def _is_met(item: Item, votes: Sequence[bool]) -> bool:
    """What most say; a tie goes against the reply."""
    return sum(votes) * 2 > len(votes) or (item.weight < 0 and sum(votes) * 2 == len(votes))


def _reason(samples: Sequence[Sequence[_Verdict]], i: int, is_met: bool) -> str:
    return next(sample[i][1] for sample in samples if sample[i][0] == is_met)


def _form(count: int) -> Form[list[_Verdict]]:
    fields = {
        "item": {"type": "integer", "enum": list(range(1, count + 1))},
        "reason": {"type": "string"},
        "met": {"type": "boolean"},
    }
    return Form(
        shown={
            "verdicts": '[{"item": 1, "reason": "why, briefly", "met": true or false}, … for each '
            f"item, {count} in all]"
        },
        schema={"verdicts": {"type": "array", "items": closed_object(fields)}},
        read=partial(_read_verdicts, count),
    )


def _read_verdicts(count: int, fields: Mapping[str, Any]) -> list[_Verdict]:
    given = fields["verdicts"]
    if not isinstance(given, list):
        raise ValueError(f"verdicts are a list, got {given!r:.80}")
    found: dict[int, _Verdict] = {}
    for entry in given:
        if not isinstance(entry, dict) or entry.keys() != {"item", "reason", "met"}:
            raise ValueError(f"a verdict on an item has item, reason and met, got {entry!r:.80}")
        number, met = entry["item"], entry["met"]
        if isinstance(number, bool) or not isinstance(number, int) or not 1 <= number <= count:
            raise ValueError(f"there is no item {number!r:.80}")
        if not isinstance(met, bool):
            raise ValueError(f"an item is met or not, true or false, got {met!r:.80}")
        if number in found:
            raise ValueError(f"two verdicts on item {number}")
        found[number] = (met, reason_of(entry))
    if len(found) < count:
        raise ValueError(f"verdicts on {len(found)} of {count} items")
    return [found[number] for number in range(1, count + 1)]
