"""Test files: they run in one sandbox, the program in another, and plain values pass between."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from palestra.types import Unscorable
from palestra.verifiers.code.candidate import Candidate
from palestra.verifiers.code.limits import Clock, CodeLimits
from palestra.verifiers.code.own_sandbox import own_sandbox
from palestra.verifiers.code.reference import Suite
from palestra.verifiers.code.runners import Runner, runner_for
from palestra.verifiers.code.verdict import Fault, ProgramFault, Verdict

_LAST_S = 5.0


async def run_suite(
    sources: Sequence[str], suite: Suite, entry_point: str | None, limits: CodeLimits
) -> Verdict:
    """Run tests against a program that cannot reach them.

    Raises Unscorable for tests that do not start, test nothing, or pass the program what cannot
    cross between the sandboxes.
    """
    job = {
        **dataclasses.asdict(suite),
        "entry_point": entry_point,
        "stop_early": limits.stop_early,
        "max_chars": limits.max_chars,
    }
    async with own_sandbox(limits) as sandbox:
        clock = Clock(limits)
        candidate = Candidate(sandbox, sources, suite.module)
        try:
            await candidate.load(clock)
        except ProgramFault as fault:
            return Verdict(fault=fault.fault, detail=fault.detail)
        async with runner_for(limits.spec) as runner:
            try:
                result = await _run(candidate, runner, job, limits)
            except ProgramFault as fault:
                return Verdict(fault=fault.fault, detail=fault.detail)
    return _verdict(result)


async def _run(
    candidate: Candidate,
    runner: Runner,
    job: dict[str, Any],
    limits: CodeLimits,
) -> dict[str, Any]:
    """The tests' report. Raises ProgramFault if there is none, or the first fault decides."""
    clock = Clock(limits)
    # Once the program's time is over the tests may still come to their end.
    tests_clock = Clock(limits, more_s=0 if limits.stop_early else _LAST_S)
    event = await runner.start(job, tests_clock)
    while event[0] == "ask":
        reply: dict[str, Any] = {}
        try:
            reply["reply"] = await candidate.ask(event[1], clock)
            reply["output"] = candidate.output
        except ProgramFault as fault:
            if limits.stop_early:
                raise
            reply["trouble"] = [fault.fault.value, fault.detail]
        event = await runner.resume(reply, tests_clock)
    if event[0] == "ended":
        raise ProgramFault(Fault.RUNTIME_ERROR, "the tests' process ended")
    report: dict[str, Any] = event[1]
    return report


def _verdict(report: dict[str, Any]) -> Verdict:
    if report["broken"]:
        raise Unscorable(f"the tests do not start: {report['broken']}")
    if report["refused"]:
        raise Unscorable(f"{report['refused']}, which cannot leave the tests' sandbox")
    passed, total = int(report["passed"]), int(report["total"])
    if report["failure"]:
        fault, detail = report["failure"]
        return Verdict(passed=passed, total=total, fault=Fault(fault), detail=detail)
    if not report["asked"] or not total:
        raise Unscorable("the tests ask nothing of the program")
    if passed < total:
        return Verdict(
            passed=passed, total=total, fault=Fault.WRONG_ANSWER, detail="tests did not run"
        )
    return Verdict(passed=passed, total=total)
