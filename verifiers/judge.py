"""`judge`: a model says whether a reply is right, or how good it is on a scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Unpack

from palestra.types import Message, Score, Task, Unscorable
from palestra.verifiers.judge_model import (
    JudgeOptions,
    ModelVerifier,
    explanation,
    reason_of,
)
from palestra.verifiers.judge_prompt import (
    check_template,
    conversation_text,
    reference_text,
    task_text,
)
from palestra.verifiers.judge_verdict import Form

CORRECT = (
    "Decide whether the reply solves the task. Where there is a reference, the reply must come to "
    "the same answer; how it is worded does not matter. A reply that gives several different "
    "answers, or none, is not correct."
)
TEMPLATE = "The task:\n{task}\n\nThe reply to judge:\n{reply}"
TEMPLATE_WITH_REFERENCE = (
    "The task:\n{task}\n\nA correct answer, as the reference:\n{reference}\n\n"
    "The reply to judge:\n{reply}"
)
PLACEHOLDERS = ("task", "reference", "reply", "transcript")

_MAX_SCALE_STEPS = 100


def judge(
    model: str,
    *,
    criteria: str = CORRECT,
    scale: tuple[int, int] | None = None,
    reference: bool = True,
    template: str | None = None,
    name: str = "judge",
    **options: Unpack[JudgeOptions],
) -> Judge:
    """A verifier: what a model behind an OpenAI-compatible endpoint says of the reply.

        verifier=verifiers.judge("qwen3-32b", base_url="http://localhost:8000/v1", api_key="none")

    Yes is 1 and no is 0; on a `scale`, such as (1, 10), whole numbers from the first (0) to the
    second (1). The majority of the samples decides, and a tie is a no; on a scale the median does,
    the lower of two. `Score.parts` then has the "agreement", the share of samples that say the
    same. An empty reply is worth 0, and nobody is asked.

    `criteria` is what the judge decides by. It sees the task, the `reference` (the task's answer)
    and the reply, or what the `template` shows: `{task}`, `{reference}`, `{reply}` and
    `{transcript}`, the whole conversation with tool calls and their results. All of that is marked
    as data. `options` are those of `JudgeOptions`.

    A judge is a model, and a policy that trains on it finds what it overrates: measure it with
    `judge_agreement` on replies of the policy, again during training, and prefer a verifier that
    computes where there is one.

    Raises:
        ValueError: no endpoint or key, a placeholder that is not known, a scale that goes nowhere.
    """
    if template is None:
        template = TEMPLATE_WITH_REFERENCE if reference else TEMPLATE
    return Judge(model, criteria=criteria, scale=scale, template=template, name=name, **options)


class Judge(ModelVerifier):
    """What `judge` makes."""

    def __init__(
        self,
        model: str,
        *,
        criteria: str,
        scale: tuple[int, int] | None,
        template: str,
        name: str,
        **options: Unpack[JudgeOptions],
    ) -> None:
        self._placeholders = check_template(
            template, known=PLACEHOLDERS, needs=("reply", "transcript")
        )
        if scale is not None and not 1 <= scale[1] - scale[0] <= _MAX_SCALE_STEPS:
            raise ValueError(
                f"a judge's scale goes up, by at most {_MAX_SCALE_STEPS} steps, got {scale}"
            )
        super().__init__(model, name=name, reward_range=(0.0, 1.0), **options)
        self._criteria = criteria
        self._template = template
        self._form = _yes_or_no() if scale is None else _on_scale(*scale)

    async def _score(
        self, task: Task, reply: str, answer: Any, messages: Sequence[Message]
    ) -> Score:
        if "transcript" not in self._placeholders and not reply.strip():
            return Score(value=0.0, explanation="the reply is empty")
        texts = texts_for(self._placeholders, task, reply, answer, messages)
        verdicts = await self._sampled(
            lambda sample: self._ask(self._criteria, self._template, texts, self._form, sample)
        )
        values = sorted(value for value, _ in verdicts)
        value = values[(len(values) - 1) // 2]
        reason = next(reason for sampled, reason in verdicts if sampled == value)
        parts = {"agreement": values.count(value) / len(values)} if self.samples > 1 else {}
        return Score(value=value, parts=parts, explanation=explanation(reason))


def texts_for(
    placeholders: frozenset[str],
    task: Task,
    reply: str,
    answer: Any,
    messages: Sequence[Message],
) -> dict[str, str]:
    """What the placeholders stand for. Raises Unscorable for a reference that is not there."""
    if "reference" in placeholders and (answer is None or answer == ""):
        raise Unscorable(f"task {task.id} has no answer for the judge to compare with")
    texts = {"task": task_text(task), "reply": reply}
    if "reference" in placeholders:
        texts["reference"] = reference_text(answer)
    if "transcript" in placeholders:
        texts["transcript"] = conversation_text(messages)
    return texts


_Verdict = tuple[float, str]  # the value, the reason


def _yes_or_no() -> Form[_Verdict]:
    return Form(
        shown={"reason": '"why, briefly"', "verdict": '"yes" or "no"'},
        schema={
            "reason": {"type": "string"},
            "verdict": {"type": "string", "enum": ["yes", "no"]},
        },
        read=_read_yes_or_no,
    )


def _read_yes_or_no(fields: Mapping[str, Any]) -> _Verdict:
    verdict = fields["verdict"]
    if verdict not in ("yes", "no"):
        raise ValueError(f'a verdict is "yes" or "no", got {verdict!r:.80}')
    return float(verdict == "yes"), reason_of(fields)


def _on_scale(low: int, high: int) -> Form[_Verdict]:
    return Form(
        shown={
            "reason": '"why, briefly"',
            "verdict": f"a whole number from {low} (worst) to {high} (best)",
        },
        schema={
            "reason": {"type": "string"},
            "verdict": {"type": "integer", "enum": list(range(low, high + 1))},
        },
        read=partial(_read_scale, low, high),
    )


def _read_scale(low: int, high: int, fields: Mapping[str, Any]) -> _Verdict:
    verdict = fields["verdict"]
    if isinstance(verdict, bool) or not isinstance(verdict, int) or not low <= verdict <= high:
        raise ValueError(f"a verdict is a whole number from {low} to {high}, got {verdict!r:.80}")
    return (verdict - low) / (high - low), reason_of(fields)
