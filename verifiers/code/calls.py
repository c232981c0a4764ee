"""Function calls: the program gives results, the comparison with what was expected is made here."""

from __future__ import annotations

import json
from collections.abc import Sequence

from palestra.tools.threads import run_in_thread
from palestra.verifiers.code.candidate import Candidate, raised
from palestra.verifiers.code.compare import same_value
from palestra.verifiers.code.limits import Clock, CodeLimits
from palestra.verifiers.code.own_sandbox import own_sandbox
from palestra.verifiers.code.reference import Call
from palestra.verifiers.code.verdict import Fault, ProgramFault, Verdict

# A reply of more characters is compared off the event loop.
_SMALL_CHARS = 10_000


async def run_calls(
    sources: Sequence[str], function: str, calls: Sequence[Call], limits: CodeLimits
) -> Verdict:
    """Call a function of the program. Expected results never leave this process."""
    passed, first, position = 0, None, 0
    async with own_sandbox(limits) as sandbox:
        clock = Clock(limits)
        candidate = Candidate(sandbox, sources, "solution")
        try:
            await candidate.load(clock)
        except ProgramFault as fault:
            return Verdict(total=len(calls), fault=fault.fault, detail=fault.detail)
        for i, call in enumerate(calls, 1):
            target = ["object", "name", function]
            question = json.dumps(["call", target, call.arguments, call.named])
            try:
                await _check(await candidate.ask(question, clock), call, limits)
                passed += 1
            except ProgramFault as fault:
                if first is None:
                    first, position = fault, i
                if limits.stop_early:
                    break
    if first is None:
        return Verdict(passed=passed, total=len(calls))
    detail = f"call {position}: {first.detail}".removesuffix(": ")
    return Verdict(passed=passed, total=len(calls), fault=first.fault, detail=detail)


async def _check(reply: str, call: Call, limits: CodeLimits) -> None:
    """Raise ProgramFault unless the reply is the expected result."""
    if len(reply) <= _SMALL_CHARS:
        _check_now(reply, call, limits)
    else:
        await run_in_thread(lambda: _check_now(reply, call, limits))


def _check_now(reply: str, call: Call, limits: CodeLimits) -> None:
    try:
        data = json.loads(reply)
        if type(data) is not list or len(data) < 2:
            raise ValueError("no reply")
        if data[0] == "raised":
            raise raised(data)
        same = data[0] == "value" and same_value(
            data[1], call.expected, tolerance=limits.tolerance, strict_tuples=limits.strict_tuples
        )
    except (ValueError, TypeError, RecursionError):
        raise ProgramFault(Fault.WRONG_ANSWER, "no plain data") from None
    if not same:
        said = str(data[1]) if data[0] == "refused" else ""
        raise ProgramFault(Fault.WRONG_ANSWER, said)
