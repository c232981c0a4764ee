"""`bash`: shell commands in the sandbox, whose folder, variables and functions live on."""

from __future__ import annotations

import signal

from palestra.tools.hidden import TimeLimit
from palestra.tools.python import NO_OUTPUT
from palestra.tools.sandboxes.sandbox import ExecResult, Sandbox
from palestra.tools.tool import tool
from palestra.tools.trouble import Stopped

# A process per call: one shell for all of them could not be stopped without losing everything. What
# has to live on goes through a file. It is the sandbox's own, as hostile as everything in there.
# Sourcing it complains of the shell's own read-only variables, and that is all it does. All of this
# is one line, so that bash counts the lines of the command as the model does.
_SCRIPT = " ".join(
    (
        "__palestra_file=${TMPDIR:-/tmp}/.bash_session; __palestra_command=$1; shift;",
        '[ -r "$__palestra_file" ] && . "$__palestra_file" 2>/dev/null;',
        "__palestra_save() { set +eux; unset __palestra_command;",
        r"""printf '%s\n' "$(declare -p)" "$(declare -f)" "cd -- ${PWD@Q}" """,
        '>"$__palestra_file"; };',
        "exec 2>&1; trap '{ __palestra_save; } 2>/dev/null' EXIT;",
        'eval "$__palestra_command"',
    )
)


@tool
async def bash(command: str, sandbox: Sandbox, limit: TimeLimit) -> str:
    """Run a command in bash. The working folder, variables and functions last until the next call.

    Nothing can be typed in. Send the output of what runs in the background to a file.
    """
    result = await sandbox.run(["bash", "-c", _SCRIPT, "bash", command], timeout_s=limit.seconds)
    shown = _show(result, limit.seconds)
    if result.ended:
        raise Stopped("timeout" if result.timed_out else "resources", shown)
    return shown


def _show(result: ExecResult, timeout_s: float) -> str:
    lines = [result.stdout.rstrip("\n"), result.stderr.rstrip("\n")]
    if result.timed_out:
        lines.append(f"[timed out after {timeout_s:g} s]")
    elif result.ended == "memory":
        lines.append("[killed: out of memory]")
    elif result.exit_code < 0:
        lines.append(f"[killed by {_signal_name(-result.exit_code)}]")
    elif result.exit_code > 0:
        lines.append(f"[exit code {result.exit_code}]")
    if result.left_running:
        count = result.left_running
        lines.append(f"[{count} process{'es' * (count > 1)} running in the background]")
    return "\n".join(filter(None, lines)) or NO_OUTPUT


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
