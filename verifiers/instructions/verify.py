"""`instructions`: a verifier of the checkable instructions of IFEval, IFBench and IF-RLVR."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from palestra.types import Score, Task, Unscorable
from palestra.verifiers.context import text_of
from palestra.verifiers.extract import without_thinking
from palestra.verifiers.instructions.constraint import Constraint, Verdict, unfit
from palestra.verifiers.instructions.reply import MAX_CHARS, Reply
from palestra.verifiers.verifier import verifier

_MAX_CONSTRAINTS = 100
_MAX_REFERENCE_CHARS = 200_000
_FORM = (
    'instructions needs [{"id": …, …}], or "instruction_id_list" and "kwargs", in the task\'s '
    "info or answer"
)


def instructions(*, partial: bool = False, loose: bool = False) -> Callable[..., Score]:
    """A verifier of instructions that can be checked without a model, like "at least 300 words".

    It finds them in the task's `info["instructions"]`, a list of `{"id": …, argument: …}`, or in
    `info` or the answer as IFEval and IFBench publish them (`instruction_id_list` and `kwargs`), or
    as IF-RLVR does (`instruction_id` and `kwargs`, in a list, in a string). See `Constraint`.

    1 if all are followed; with `partial` the share that is. `loose` is IFEval's lenient reading: an
    instruction also counts as followed if it is without the reply's first line, its last, both,
    and in each case without asterisks. `Score.parts` has one entry per instruction, those of one id
    told apart by "#2". Thinking in the reply does not count.

    Risk: it says nothing of what the reply says. Without a judge of content beside it, a policy
    learns to follow instructions with filler.

    What differs from the published checkers, on purpose:

    - Nothing passes for want of content. Theirs pass a reply without sentences, quotations, bullets
      or second paragraph where the instruction is about each of them, and one whose language cannot
      be told.
    - Missing arguments are never drawn at random, and unknown ids never pass (tinker-cookbook#897,
      deepeval#3063, olmo-eval#296): the task is unscorable. Ids that come twice count twice
      (tinker-cookbook#893).
    - Keywords are text, not patterns, and whole words everywhere: "art" is not in "start".
    - "don't" and "well-known" are one word (theirs: two); punctuation is never a word, so that the
      second to last word is one; sentences end as `Reply` says.
    - A postscript, a final phrase or a repeated request needs other text beside it, sections need
      numbers of their own, an enclosing JSON something in it, a set of options just one of them.

    Raises:
        Unscorable: no instructions, an unknown id, a missing, unknown or bad argument.
    """

    @verifier(name="instructions", timeout_s=20)
    def verify(reply: str, task: Task, answer: Any) -> Score:
        """How many of the task's instructions the reply follows."""
        constraints = constraints_of(task.info, answer)
        verdicts = _judge(constraints, without_thinking(reply), _prompts(task), loose)
        return _score(constraints, verdicts, partial)

    return verify


def constraints_of(info: Mapping[str, Any], answer: Any = None) -> list[Constraint]:
    """The constraints of a task. Raises Unscorable if there are none, or a bad one."""
    found = info.get("instructions")
    if found is None and _is_published(info):
        found = info
    pairs = _pairs(answer if found is None else found)
    if not 1 <= len(pairs) <= _MAX_CONSTRAINTS:
        raise Unscorable(f"{_FORM}, 1 to {_MAX_CONSTRAINTS} of them, got {len(pairs)}")
    try:
        return [Constraint(id, arguments) for id, arguments in pairs]
    except ValueError as error:
        raise Unscorable(str(error)) from None


def loosened(reply: str) -> list[str]:
    """IFEval's eight readings of a reply, without those that come twice."""
    lines = reply.split("\n")
    cut = [reply, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return list(dict.fromkeys([*cut, *(text.replace("*", "") for text in cut)]))


def _judge(
    constraints: Sequence[Constraint], text: str, prompts: Sequence[str], loose: bool
) -> list[Verdict]:
    if any(constraint.may_echo for constraint in constraints):
        prompts = ()
    verdicts: list[Verdict] = []
    for reading in loosened(text) if loose and len(text) <= MAX_CHARS else [text]:
        reply = Reply(reading)
        problem = unfit(reply, prompts)
        for position, constraint in enumerate(constraints):
            if position < len(verdicts) and verdicts[position]:
                continue
            verdict = (
                Verdict(passed=False, explanation=problem) if problem else constraint.check(reply)
            )
            if position == len(verdicts):
                verdicts.append(verdict)
            elif verdict:
                verdicts[position] = verdict
        if all(verdicts):
            break
    return verdicts


def _score(constraints: Sequence[Constraint], verdicts: Sequence[Verdict], partial: bool) -> Score:
    parts: dict[str, float] = {}
    problems = []
    for constraint, verdict in zip(constraints, verdicts, strict=True):
        name, times = constraint.id, 1
        while name in parts:
            times += 1
            name = f"{constraint.id}#{times}"
        parts[name] = float(verdict.passed)
        if not verdict:
            problems.append(f"{name}: {verdict.explanation}")
    share = sum(parts.values()) / len(parts)
    return Score(
        value=share if partial else float(share == 1.0),
        parts=parts,
        explanation="; ".join(problems)[:900],
    )


def _prompts(task: Task) -> list[str]:
    texts = [text_of(message) for message in task.messages if message.get("role") != "assistant"]
    return [text for text in texts if text.strip()]


def _is_published(found: Mapping[str, Any]) -> bool:
    return "instruction_id_list" in found or "instruction_id" in found


def _pairs(found: Any) -> list[tuple[str, Mapping[str, Any]]]:
    """Ids and arguments, from any of the forms."""
    if isinstance(found, str):
        found = _parsed(found)
    only = found[0] if isinstance(found, list | tuple) and len(found) == 1 else found
    if isinstance(only, str):  # a JSON text in a list, as some rows of IF-RLVR have it
        only = _parsed(only)
    if isinstance(only, Mapping) and _is_published(only):
        return _published(only)
    if not isinstance(found, list | tuple) or not all(
        isinstance(item, Mapping) and isinstance(item.get("id"), str) for item in found
    ):
        raise Unscorable(f"{_FORM}, got {found!r:.100}")
    return [(item["id"], {k: v for k, v in item.items() if k != "id"}) for item in found]


def _published(found: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    ids = found.get("instruction_id_list", found.get("instruction_id"))
    arguments = found.get("kwargs")
    if isinstance(ids, str):
        ids, arguments = _parsed(ids) if ids.startswith("[") else [ids], arguments
    if isinstance(arguments, str):
        arguments = _parsed(arguments)
    if isinstance(arguments, Mapping):
        arguments = [arguments]
    if not isinstance(ids, list | tuple) or not all(isinstance(id, str) for id in ids):
        raise Unscorable(f"instruction_id_list must be a list of ids, got {ids!r:.100}")
    if arguments is None:
        arguments = [{}] * len(ids)
    is_list = isinstance(arguments, list | tuple) and len(arguments) == len(ids)
    if not is_list or not all(item is None or isinstance(item, Mapping) for item in arguments):
        raise Unscorable(f"kwargs must be one dictionary per instruction, got {arguments!r:.100}")
    return [(id, item or {}) for id, item in zip(ids, arguments, strict=True)]


def _parsed(text: str) -> Any:
    """JSON, or what Python prints, as published tables hold it."""
    if len(text) > _MAX_REFERENCE_CHARS:
        raise Unscorable(
            f"the task's instructions have more than {_MAX_REFERENCE_CHARS:,} characters"
        )
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
    raise Unscorable(f"{_FORM}, got the text {text!r:.100}")
