"""What the tests of the tools share: sandboxes of several backends, and calls in them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from palestra.tools import Sandbox, SandboxSpec, Tool, run_call
from palestra.tools.sandboxes import LeasedSandbox, close_pools
from palestra.tools.sandboxes.choose import backend_class
from palestra.types import ToolResult

# Runs the calls (tool, arguments) one after the other in one sandbox.
Play = Callable[..., list[ToolResult]]


@pytest.fixture(params=["unsafe", "namespace"])
def sandbox_spec(request: pytest.FixtureRequest) -> Iterator[SandboxSpec]:
    """For each backend that starts quickly; the conformance suite compares them all."""
    spec = SandboxSpec(backend=request.param, packages=(), warm=0)
    offered = backend_class(request.param).capabilities(spec)
    if not offered.available:
        if os.environ.get("CI"):
            pytest.fail(f"{request.param} must work in CI: {offered.problem}")
        pytest.skip(f"{request.param}: {offered.problem}")
    yield spec
    close_pools()


@pytest.fixture
def play(sandbox_spec: SandboxSpec) -> Play:
    """Calls tools in a sandbox: `play((bash, {"command": "ls"}), (python, {"code": "1"}))`."""

    def run(*calls: tuple[Tool, dict[str, Any]]) -> list[ToolResult]:
        return asyncio.run(play_in(sandbox_spec, *calls))

    return run


async def play_in(spec: SandboxSpec, *calls: tuple[Tool, dict[str, Any]]) -> list[ToolResult]:
    sandbox = LeasedSandbox(spec)
    try:
        return [await call_tool(tool, arguments, sandbox) for tool, arguments in calls]
    finally:
        await sandbox.kill()


async def call_tool(tool: Tool, arguments: dict[str, Any], sandbox: Sandbox) -> ToolResult:
    call = {"id": "call_0", "function": {"name": tool.name, "arguments": arguments}}
    return await run_call(call, {tool.name: tool}, {Sandbox: sandbox})
