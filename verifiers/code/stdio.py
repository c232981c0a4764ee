"""Programs that read the standard input: a run for each case, compared here."""

from __future__ import annotations

from collections.abc import Sequence

from palestra.tools.sandboxes import ExecResult, SandboxDied
from palestra.tools.threads import run_in_thread
from palestra.types import Unscorable
from palestra.verifiers.code.compare import same_output
from palestra.verifiers.code.limits import Clock, CodeLimits
from palestra.verifiers.code.own_sandbox import OwnSandbox, fault_of_death, own_sandbox
from palestra.verifiers.code.reference import Case
from palestra.verifiers.code.verdict import Fault, ProgramFault, Verdict

_FILE = "main.py"
_SYNTAX_ERRORS = ("SyntaxError", "IndentationError", "TabError")
_SMALL_CHARS = 100_000


async def run_cases(source: str, cases: Sequence[Case], limits: CodeLimits) -> Verdict:
    """Run the program once for each case.

    Raises Unscorable for an expected output that is longer than what is kept of a program's.
    """
    most_bytes = limits.spec.limits.output_bytes
    if any(len(case.output.encode()) > most_bytes // 2 for case in cases):
        raise Unscorable(f"a case expects more output than a sandbox keeps ({most_bytes} bytes)")
    passed, first, position = 0, None, 0
    async with own_sandbox(limits) as sandbox:
        clock = Clock(limits)
        for i, case in enumerate(cases, 1):
            try:
                await _check(await _run(sandbox, source, case, clock), case, limits)
                passed += 1
            except ProgramFault as fault:
                if first is None:
                    first, position = fault, i
                if limits.stop_early or fault.fault is Fault.COMPILE_ERROR:
                    break
    if first is None:
        return Verdict(passed=passed, total=len(cases))
    detail = f"case {position}: {first.detail}".removesuffix(": ")
    return Verdict(passed=passed, total=len(cases), fault=first.fault, detail=detail)


async def _run(own: OwnSandbox, source: str, case: Case, clock: Clock) -> str:
    """What the program writes. Raises ProgramFault unless it ends well."""
    timeout_s = clock.for_one()
    try:
        sandbox = await own.current()
        # Every time: the run before may have changed it.
        await sandbox.write(_FILE, source.encode("utf-8", "replace"))
        stdin = case.input.encode("utf-8", "replace")
        result = await sandbox.run(["python3", _FILE], stdin=stdin, timeout_s=timeout_s)
    except SandboxDied as death:
        await own.drop()
        raise fault_of_death(death) from None
    except OSError as error:  # it has made the file something else
        raise ProgramFault(Fault.RUNTIME_ERROR, str(error)) from None
    if result.ended or result.exit_code != 0:
        raise _fault_of(result, timeout_s)
    return result.stdout


def _fault_of(result: ExecResult, timeout_s: float) -> ProgramFault:
    if result.ended == "timeout":
        return ProgramFault(Fault.TIMEOUT, f"not done after {timeout_s:.3g} s")
    last_line = (result.stderr.strip().splitlines() or [""])[-1]
    if result.ended == "memory" or last_line.startswith("MemoryError"):
        return ProgramFault(Fault.MEMORY)
    if last_line.startswith(_SYNTAX_ERRORS):
        return ProgramFault(Fault.COMPILE_ERROR, last_line)
    return ProgramFault(Fault.RUNTIME_ERROR, last_line or f"exit status {result.exit_code}")


async def _check(output: str, case: Case, limits: CodeLimits) -> None:
    def compare() -> bool:
        return same_output(output, case.output, tolerance=limits.tolerance)

    small = len(output) <= _SMALL_CHARS
    if not (compare() if small else await run_in_thread(compare)):
        raise ProgramFault(Fault.WRONG_ANSWER)
