"""`python`: a Python session in the sandbox, as a REPL shows it."""

from __future__ import annotations

from palestra.tools.hidden import TimeLimit
from palestra.tools.sandboxes.sandbox import PythonResult, Sandbox
from palestra.tools.tool import tool
from palestra.tools.trouble import Stopped

NO_OUTPUT = "[no output]"


@tool
async def python(code: str, sandbox: Sandbox, limit: TimeLimit) -> str:
    """Run Python code in a session that keeps its variables from call to call.

    Shows what the code prints, the value of its last expression, or the traceback.
    """
    result = await sandbox.python(code, timeout_s=limit.seconds)
    shown = _show(result, limit.seconds)
    if result.ended in ("timeout", "memory") or result.died.startswith("killed"):
        raise Stopped("timeout" if result.timed_out else "resources", shown)
    return shown


def _show(result: PythonResult, timeout_s: float) -> str:
    lines = []
    if result.restarted:
        lines.append("[the session had ended: a new one begins, earlier variables are gone]")
    lines += [result.output.rstrip("\n"), result.value, result.error]
    if result.timed_out:
        lines.append(f"[timed out after {timeout_s:g} s]")
    elif result.ended == "memory":
        lines.append("[killed: out of memory]")
    if result.died:
        lines.append(f"[the session ended, {result.died}: its variables are gone]")
    return "\n".join(filter(None, lines)) or NO_OUTPUT
