"""`run_call`: what happens when a model calls a tool."""

from __future__ import annotations

import asyncio
import difflib
import functools
import json
import logging
import time
from collections.abc import Mapping
from typing import Any

from palestra.tools.hidden import TimeLimit
from palestra.tools.isolation import run_isolated
from palestra.tools.output import as_text, printable, shortened
from palestra.tools.problems import BadArguments, shown
from palestra.tools.sandboxes.sandbox import Sandbox, SandboxDied
from palestra.tools.threads import run_in_thread
from palestra.tools.tool import Tool
from palestra.tools.trouble import RESOURCE_ERRORS, OutOfResources, Stopped, TimedOut, one_line
from palestra.types import Failure, ToolError, ToolResult, Unscorable

_logger = logging.getLogger(__name__)

_CALL_FORM = '{"name": <tool name>, "arguments": <object>}'


class _Refusal(Exception):
    """An answer to the model instead of the tool's; `kind` as in `ToolResult.error`."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


async def run_call(
    call: Mapping[str, Any], tools: Mapping[str, Tool], hidden: Mapping[Any, Any]
) -> ToolResult:
    """Run one entry of a message's `tool_calls`; whatever is wrong with it becomes the answer.

    `tools` is keyed by name, `hidden` holds what the environment injects by type, e.g.
    `{State: state, Sandbox: sandbox}`.

    Raises:
        Failure: the tool itself is broken (cause "tool:NAME"), or what it works with (e.g.
            "sandbox:docker"), never because of the call.
    """
    start = time.perf_counter()
    call = call if isinstance(call, Mapping) else {}
    name, arguments = _read(call)
    error: str | None = None
    try:
        tool = _find(call, name, arguments, tools)
        content = await _run(tool, arguments, hidden)
    except (_Refusal, BadArguments) as refusal:
        error, content = refusal.kind, printable(shortened(str(refusal)))
    return ToolResult(
        call_id=printable(str(call.get("id") or "")[:200]),
        name=name,
        content=content,
        error=error,
        duration_s=time.perf_counter() - start,
    )


def _read(call: Mapping[str, Any]) -> tuple[str, str]:
    """The name and the arguments' JSON in a call of any shape; "" for what is not there."""
    function = call.get("function")
    if not isinstance(function, Mapping):
        return "", ""
    name, arguments = function.get("name"), function.get("arguments")
    if arguments is None:
        arguments = ""
    elif not isinstance(arguments, str):
        try:
            arguments = json.dumps(arguments)
        except (TypeError, ValueError, RecursionError):
            arguments = str(type(arguments))  # no JSON either
    return printable(name[:200]) if isinstance(name, str) else "", arguments


def _find(call: Mapping[str, Any], name: str, arguments: str, tools: Mapping[str, Tool]) -> Tool:
    if call.get("error") == "cut":
        raise _Refusal("cut", "the call was cut off before its end: write a shorter one")
    if not name:
        raise _Refusal(
            "bad_json", f"this is no call, {_json_problem(arguments)}: write {_CALL_FORM}"
        )
    if name not in tools:
        matches = difflib.get_close_matches(name[:64], tools, n=1)
        guess = f', did you mean "{matches[0]}"?' if matches else "."
        available = f"Available: {', '.join(tools)}" if tools else "There are no tools"
        raise _Refusal("unknown_tool", f"unknown tool {shown(name)}{guess} {available}")
    return tools[name]


def _json_problem(text: str) -> str:
    try:
        call = json.loads(text)
    except json.JSONDecodeError as error:
        return f"it is not valid JSON ({error.msg} at character {error.pos + 1})"
    except (ValueError, RecursionError):
        return "its JSON is too large"
    if not isinstance(call, Mapping):
        return f"it is {shown(call)} and not a JSON object"
    return "it names no tool"


async def _run(tool: Tool, arguments: str, hidden: Mapping[Any, Any]) -> str:
    cause = f"tool:{tool.name}"
    try:
        return await _invoke(tool, tool.arguments.parse(arguments), arguments, hidden)
    except ToolError as error:
        raise _Refusal("tool_error", str(error) or f"{tool.name} refused") from None
    except TimedOut:
        if not (tool.is_async or tool.isolated):
            _warn_of_thread(tool.name)
        raise _Refusal("timeout", f"{tool.name} timed out after {tool.timeout_s:g} s") from None
    except Stopped as stopped:
        raise _Refusal(stopped.kind, str(stopped)) from None
    except SandboxDied as death:
        raise _Refusal("resources", str(death)) from None
    except OutOfResources as error:
        raise _Refusal("resources", f"{tool.name} ran out of resources: {error}") from None
    except RESOURCE_ERRORS as error:
        raise _Refusal(
            "resources", f"{tool.name} ran out of resources: {one_line(error)}"
        ) from None
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        # Nobody cancelled this call: the tool awaited something that was.
        raise Failure(cause, "CancelledError inside the tool") from error
    except (BadArguments, Failure, Unscorable):
        raise
    except (Exception, SystemExit) as error:
        raise Failure(cause, one_line(error)) from error


async def _invoke(
    tool: Tool, given: dict[str, Any], arguments: str, hidden: Mapping[Any, Any]
) -> str:
    if tool.isolated:
        return await run_isolated(tool, arguments)
    if tool.hidden:
        given |= _inject(tool, hidden)
    if not tool.is_async:
        return await run_in_thread(
            lambda: as_text(tool.function(**given)), timeout_s=tool.timeout_s
        )
    deadline = asyncio.timeout(None if _keeps_time(tool) else tool.timeout_s)
    try:
        async with deadline:
            return as_text(await tool.function(**given))
    except TimeoutError:
        if deadline.expired():
            raise TimedOut from None
        raise  # the tool's own, e.g. of a connection


def _keeps_time(tool: Tool) -> bool:
    return TimeLimit in tool.hidden.values()


@functools.cache  # once per tool: a policy may time out in every episode
def _warn_of_thread(name: str) -> None:
    _logger.warning(
        "tool %s timed out, but its thread cannot be killed and goes on: declare it with "
        "@tool(isolated=True) if it may hang",
        name,
    )


def _inject(tool: Tool, hidden: Mapping[Any, Any]) -> dict[str, Any]:
    injected: dict[str, Any] = {}
    for parameter, wanted in tool.hidden.items():
        if wanted is TimeLimit:
            injected[parameter] = TimeLimit(tool.timeout_s)
            continue
        found = [value for value in hidden.values() if isinstance(value, wanted)]
        if not found:
            given = ", ".join(type(value).__name__ for value in hidden.values()) or "nothing"
            example = (
                "sandbox=SandboxSpec()"
                if issubclass(wanted, Sandbox)
                else f"state={wanted.__name__}"
            )
            raise Failure(
                f"tool:{tool.name}",
                f'parameter "{parameter}" needs a {wanted.__name__}, the environment has {given}: '
                f"give it one, e.g. ToolEnv({example})",
            )
        injected[parameter] = found[0]
    return injected
