"""`audit`: can a verifier be trusted as a reward? Wrong passes, wrong refusals, time, threads."""

from __future__ import annotations

import asyncio
import statistics
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from palestra.types import Failure, Task, Unscorable
from palestra.verifiers.probes import Probe, probes_of
from palestra.verifiers.run import check_verifier, run_verifier

FULL_VALUE = 1.0 - 1e-9
EXAMPLES = 3
THREADS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """How one kind of reply fared. `wrong` were passed though wrong, or refused though right."""

    kind: str
    is_right: bool
    count: int
    wrong: int
    unscorable: int
    failed: int
    examples: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Audit:
    """What was found. `undetermined` and `thread_dependent` count pairs whose verdict changed."""

    findings: tuple[Finding, ...]
    pairs: int
    ms_p50: float
    ms_p99: float
    ms_max: float
    undetermined: int
    thread_dependent: int
    causes: dict[str, int] = field(default_factory=dict)

    @property
    def false_positives(self) -> int:
        """Wrong replies that were paid in full."""
        return sum(f.wrong for f in self.findings if not f.is_right)

    @property
    def false_negatives(self) -> int:
        """Right replies that were not, in whatever form."""
        return sum(f.wrong for f in self.findings if f.is_right)

    def problems(self, *, forms: Sequence[str] = ("reference",)) -> list[str]:
        """What makes it unfit as a reward, a line each.

        `forms` are the kinds of right replies that it has to accept.
        """
        lines = []
        for finding in self.findings:
            if finding.is_right and finding.kind not in forms:
                continue
            if finding.wrong:
                verb = "refuses" if finding.is_right else "pays for"
                lines.append(
                    f"{verb} {finding.wrong} of {finding.count} ({finding.kind}), "
                    f"e.g. {finding.examples[0]}"
                )
            if finding.failed:
                lines.append(f"breaks on {finding.failed} of {finding.count} ({finding.kind})")
            if finding.unscorable:
                lines.append(
                    f"gives no verdict on {finding.unscorable} of {finding.count} ({finding.kind})"
                )
        if self.undetermined:
            lines.append(
                f"changes its verdict on {self.undetermined} of {self.pairs} when asked again"
            )
        if self.thread_dependent:
            lines.append(f"judges {self.thread_dependent} of {self.pairs} otherwise from threads")
        return lines


Verdict = tuple[str, float]  # ("scored", value), ("unscorable" | "failed", 0.0)


async def audit(
    verifier: Callable[..., Any],
    tasks: Sequence[Task],
    *,
    seed: int = 0,
    timeout_s: float = 30.0,
) -> Audit:
    """Try a verifier on replies made from each task's reference (see `probes_of`).

    Every pair is judged twice in order and once more among others on threads.

    Raises:
        ValueError: no tasks, or a verifier that cannot be called.
    """
    check_verifier(verifier)
    if not tasks:
        raise ValueError("an audit needs at least one task with a reference")
    pairs = [(task, probe) for task in tasks for probe in probes_of(task, seed)]
    causes: Counter[str] = Counter()
    first, times = [], []
    for task, probe in pairs:
        began = time.perf_counter()
        first.append(await _judge(verifier, task, probe, timeout_s, causes))
        times.append(1000 * (time.perf_counter() - began))
    again = [await _judge(verifier, task, probe, timeout_s, Counter()) for task, probe in pairs]
    threaded = await asyncio.to_thread(_judge_on_threads, verifier, pairs, timeout_s)
    times.sort()
    return Audit(
        findings=tuple(_findings(pairs, first)),
        pairs=len(pairs),
        ms_p50=statistics.median(times),
        ms_p99=times[min(len(times) - 1, int(0.99 * len(times)))],
        ms_max=times[-1],
        undetermined=sum(a != b for a, b in zip(first, again, strict=True)),
        thread_dependent=sum(a != b for a, b in zip(first, threaded, strict=True)),
        causes=dict(causes),
    )


def assert_trustworthy(
    verifier: Callable[..., Any],
    tasks: Sequence[Task],
    *,
    forms: Sequence[str] = ("reference",),
    except_for: Sequence[str] = (),
) -> Audit:
    """For tests: raise AssertionError with every problem of a verifier.

    `forms` are the kinds of right replies that it has to accept, `except_for` kinds of wrong ones
    that it may pay for (say why beside it).
    """
    found = asyncio.run(audit(verifier, tasks))
    problems = [
        line
        for line in found.problems(forms=forms)
        if not any(f"({k})" in line for k in except_for)
    ]
    assert not problems, "\n".join(problems)
    return found


async def _judge(
    verifier: Callable[..., Any], task: Task, probe: Probe, timeout_s: float, causes: Counter[str]
) -> Verdict:
    reply = {"role": "assistant", "content": probe.reply}
    try:
        score = await run_verifier(
            verifier, task=task, messages=[*task.messages, reply], timeout_s=timeout_s
        )
    except Unscorable as error:
        causes[f"unscorable: {error}"[:200]] += 1
        return "unscorable", 0.0
    except Failure as error:
        causes[f"failed: {error}"[:200]] += 1
        return "failed", 0.0
    return "scored", score.value


def _judge_on_threads(
    verifier: Callable[..., Any], pairs: list[tuple[Task, Probe]], timeout_s: float
) -> list[Verdict]:
    verdicts: list[Verdict] = [("failed", 0.0)] * len(pairs)

    def work(start: int) -> None:
        async def judge_share() -> None:
            for index in range(start, len(pairs), THREADS):
                task, probe = pairs[index]
                verdicts[index] = await _judge(verifier, task, probe, timeout_s, Counter())

        asyncio.run(judge_share())

    workers = [threading.Thread(target=work, args=(start,)) for start in range(THREADS)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return verdicts


def _findings(pairs: list[tuple[Task, Probe]], verdicts: list[Verdict]) -> list[Finding]:
    groups: defaultdict[tuple[bool, str], list[tuple[Task, Probe, Verdict]]] = defaultdict(list)
    for (task, probe), verdict in zip(pairs, verdicts, strict=True):
        groups[probe.is_right, probe.kind].append((task, probe, verdict))
    found = []
    for (is_right, kind), members in groups.items():
        wrong = [
            (task, probe)
            for task, probe, (outcome, value) in members
            if outcome == "scored" and (value >= FULL_VALUE) is not is_right
        ]
        outcomes = Counter(outcome for _, _, (outcome, _) in members)
        found.append(
            Finding(
                kind=kind,
                is_right=is_right,
                count=len(members),
                wrong=len(wrong),
                unscorable=outcomes["unscorable"],
                failed=outcomes["failed"],
                examples=tuple(
                    f"{probe.reply[:60]!a} for {str(task.answer)[:40]!a}"
                    for task, probe in wrong[:EXAMPLES]
                ),
            )
        )
    return found
