"""`Toolbox`: the tools of an environment, and what an episode opens of them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any

from palestra.tools.run import run_call
from palestra.tools.sandboxes.choose import choose
from palestra.tools.sandboxes.leased import LeasedSandbox
from palestra.tools.sandboxes.sandbox import Sandbox
from palestra.tools.sandboxes.spec import SandboxSpec
from palestra.tools.source import ToolSource
from palestra.tools.state import State
from palestra.tools.tool import Tool
from palestra.types import Failure, Task, ToolResult, ToolSchema


class Toolbox:
    """What an environment's list of tools comes to, checked.

    `sandbox` is what to start where a tool, or `needs_sandbox`, asks for a sandbox.

    Raises:
        ValueError: something that is no tool, two tools of one name, a tool that needs another
            state, or no sandbox here that gives what is required.
    """

    def __init__(
        self,
        tools: Iterable[object],
        *,
        state: Callable[[], State] = State,
        sandbox: SandboxSpec | None = None,
        needs_sandbox: bool = False,
        max_calls: int = 16,
    ) -> None:
        tools = tuple(tools)
        self.sources = tuple(tool for tool in tools if isinstance(tool, ToolSource))
        self.tools = _by_name(tool for tool in tools if not isinstance(tool, ToolSource))
        _check_state(self.tools.values(), state)
        self.max_calls = max_calls
        if sandbox is None and (needs_sandbox or any(map(_uses_sandbox, self.tools.values()))):
            sandbox = SandboxSpec()
        if sandbox is not None:
            choose(sandbox)
        self.sandbox = sandbox
        self._make_state = state
        self._schemas_json = json.dumps([tool.schema() for tool in self.tools.values()])

    async def open(
        self, task: Task, prepare: Callable[[Sandbox], Any] | None = None
    ) -> OpenToolbox:
        """The tools of an episode; `prepare` is called with every sandbox that it starts.

        Raises Failure, or whatever a source raises; nothing stays open then.
        """
        async with AsyncExitStack() as stack:
            sandbox = None
            if self.sandbox is not None:
                sandbox = LeasedSandbox(self.sandbox, prepare=prepare)
                stack.push_async_callback(sandbox.kill)
                if prepare is not None:
                    await sandbox.start()
            tools, schemas = dict(self.tools), json.loads(self._schemas_json)
            for source in self.sources:
                for tool in await stack.enter_async_context(source.open(task)):
                    unique = _renamed(tool, source.name, tools)
                    tools[unique.name] = unique
                    schemas.append(unique.schema())
            return OpenToolbox(
                tools=tools,
                schemas=tuple(schemas),
                state=self._make_state(),
                sandbox=sandbox,
                new_sandbox=lambda: LeasedSandbox(self.sandbox or SandboxSpec(), prepare=prepare),
                max_calls=self.max_calls,
                stack=stack.pop_all(),
            )


class OpenToolbox:
    """The tools of one episode, with what they share: `state` and, if any needs one, `sandbox`.

    `new_sandbox` makes another one, as the episode's was at its beginning.
    """

    def __init__(
        self,
        *,
        tools: Mapping[str, Tool],
        schemas: tuple[ToolSchema, ...],
        state: State,
        sandbox: Sandbox | None,
        new_sandbox: Callable[[], Sandbox],
        max_calls: int,
        stack: AsyncExitStack,
    ) -> None:
        self.tools = tools
        self.schemas = schemas
        self.state = state
        self.sandbox = sandbox
        self.new_sandbox = new_sandbox
        self._max_calls = max_calls
        self._stack = stack
        self._sandbox_turn = asyncio.Lock()

    async def run(self, calls: Sequence[dict[str, Any]]) -> tuple[ToolResult, ...]:
        """Run the calls of one reply, at most `max_calls`, concurrently.

        Those that use the sandbox run one after the other, in their order. Raises Failure.
        """
        allowed, refused = calls[: self._max_calls], calls[self._max_calls :]
        if len(allowed) <= 1:  # the usual case needs no asyncio task of its own
            results = [await self._run(call) for call in allowed]
        else:
            try:
                async with asyncio.TaskGroup() as group:
                    running = [group.create_task(self._run(call)) for call in allowed]
            except BaseExceptionGroup as errors:
                first = errors.exceptions[0]
                raise first from first.__cause__
            results = [task.result() for task in running]
        return (*results, *(self._refuse(call) for call in refused))

    def submitted(self, results: Sequence[ToolResult]) -> ToolResult | None:
        """The first result of a tool that ends the episode, if one has succeeded."""
        for result in results:
            if result.error is None and self.tools[result.name].ends_episode:
                return result
        return None

    async def aclose(self) -> None:
        """Let go of the sandbox and of what the sources have opened. May be called again."""
        await self._stack.aclose()

    async def _run(self, call: dict[str, Any]) -> ToolResult:
        hidden: dict[type, Any] = {State: self.state}
        if self.sandbox is None:
            return await run_call(call, self.tools, hidden)
        hidden[Sandbox] = self.sandbox
        if not self._needs_sandbox(call):
            return await run_call(call, self.tools, hidden)
        # A call's time begins when it has the sandbox.
        async with self._sandbox_turn:
            await self.sandbox.start()
            return await run_call(call, self.tools, hidden)

    def _needs_sandbox(self, call: dict[str, Any]) -> bool:
        function = call.get("function")
        name = function.get("name") if isinstance(function, dict) else None
        tool = self.tools.get(name) if isinstance(name, str) else None
        return tool is not None and _uses_sandbox(tool)

    def _refuse(self, call: dict[str, Any]) -> ToolResult:
        function = call.get("function")
        return ToolResult(
            call_id=str(call.get("id", "")),
            name=str(function.get("name", "")) if isinstance(function, dict) else "",
            content=f"not run: at most {self._max_calls} tool calls in one reply",
            error="too_many_calls",
        )


def _by_name(tools: Iterable[object]) -> dict[str, Tool]:
    found: dict[str, Tool] = {}
    for tool in tools:
        if not isinstance(tool, Tool):
            name = getattr(tool, "__name__", repr(tool))
            raise ValueError(f"{name} is not a tool: write @tool above its definition")
        if tool.name in found:
            raise ValueError(f'two tools are called "{tool.name}": rename one with @tool(name=…)')
        found[tool.name] = tool
    return found


def _check_state(tools: Iterable[Tool], state: Callable[[], State]) -> None:
    """A tool that is never given the state it needs would fail every episode."""
    if not isinstance(state, type):
        return  # a function: what it makes is known only in an episode
    for tool in tools:
        for wanted in tool.hidden.values():
            if issubclass(wanted, State) and not issubclass(state, wanted):
                raise ValueError(
                    f'tool "{tool.name}" needs a {wanted.__name__}: pass state={wanted.__name__}'
                )


def _uses_sandbox(tool: Tool) -> bool:
    return any(issubclass(wanted, Sandbox) for wanted in tool.hidden.values())


def _renamed(tool: Tool, source: str, taken: Mapping[str, Tool]) -> Tool:
    if tool.name not in taken:
        return tool
    name = f"{source}_{tool.name}"[:64]
    if name in taken:
        raise Failure(f"tool:{source}", f'two of its tools would be called "{name}"')
    return tool.with_options(name=name)
