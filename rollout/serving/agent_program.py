"""`AgentProgram`: a program in any language as an agent; a process for each episode."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

from palestra.rollout.serving.agents import AgentTask, PolicyAtFault, tells_policys_fault
from palestra.types import Failure

_MOST_OUTPUT = 65_536  # bytes kept of what it prints
_POLL_S = 0.02
_TAIL = 2_000  # characters of its complaint


class AgentProgram:
    """Runs `command` for each episode, in a process group that is killed at the end.

    The task is on its standard input as JSON: `id, messages, tools, base_url, anthropic_base_url,
    api_key`; OPENAI_BASE_URL, OPENAI_API_KEY, ANTHROPIC_BASE_URL and ANTHROPIC_API_KEY are set, so
    that clients find the episode by themselves. The last line that it prints is its answer; if it
    prints nothing, the policy's last reply is.

    Raises:
        ValueError: there is no such program.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        folder: str | Path | None = None,
    ) -> None:
        if isinstance(command, str) or not command:
            raise ValueError(f"an agent's command is a list of words, got {command!r}")
        if shutil.which(command[0]) is None:
            raise ValueError(f"there is no program {command[0]!r}: is it installed, or on PATH?")
        self._command = tuple(command)
        self._environment = dict(environment or {})
        self._folder = folder

    async def __call__(self, task: AgentTask) -> str | None:
        """Play one episode.

        Raises:
            PolicyAtFault: it ended with an exception of its framework that says so.
            Failure: it ended with another status than 0 (cause "agent").
        """
        process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, **self._environment, **_clients_environment(task)},
            cwd=self._folder,
            start_new_session=True,
        )
        assert process.stdin is not None and process.stdout is not None
        assert process.stderr is not None
        output = asyncio.create_task(_read_end(process.stdout))
        complaint = asyncio.create_task(_read_end(process.stderr))
        try:
            await _write(process.stdin, _as_json(task))
            # `process.wait()` also waits for whoever else holds the pipes.
            while process.returncode is None:  # noqa: ASYNC110
                await asyncio.sleep(_POLL_S)
        finally:
            # Whatever it started goes with it, and lets go of the pipes.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await asyncio.gather(output, complaint)
            status = await process.wait()
        if status != 0:
            tail = complaint.result()[-_TAIL:].strip()
            if tells_policys_fault(tail):
                raise PolicyAtFault(tail.splitlines()[-1])
            raise Failure("agent", f"{self._command[0]} ended with status {status}: {tail}")
        lines = output.result().strip().splitlines()
        return lines[-1] if lines else None


def _clients_environment(task: AgentTask) -> dict[str, str]:
    # Clients go through a proxy, where one is set, to all but these.
    direct = os.environ.get("NO_PROXY") or os.environ.get("no_proxy")
    direct = ",".join(filter(None, [direct, "127.0.0.1,localhost"]))
    return {
        "OPENAI_BASE_URL": task.base_url,
        "OPENAI_API_KEY": task.api_key,
        "ANTHROPIC_BASE_URL": task.anthropic_base_url,
        "ANTHROPIC_API_KEY": task.api_key,
        "NO_PROXY": direct,
        "no_proxy": direct,
        # Its traces would carry the episode's key to OpenAI.
        "OPENAI_AGENTS_DISABLE_TRACING": "1",
    }


def _as_json(task: AgentTask) -> bytes:
    fields = {name: getattr(task, name) for name in AgentTask.__dataclass_fields__}
    return json.dumps(fields).encode()


async def _write(stdin: asyncio.StreamWriter, data: bytes) -> None:
    # A program need not read it.
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        stdin.write(data)
        await stdin.drain()
    stdin.close()


async def _read_end(stream: asyncio.StreamReader) -> str:
    """The last of what a program prints, once it has closed the stream."""
    end = b""
    while chunk := await stream.read(_MOST_OUTPUT):
        end = (end + chunk)[-_MOST_OUTPUT:]
    return end.decode("utf-8", "replace")
