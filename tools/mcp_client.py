"""`mcp_server`: the tools of an MCP server, over its standard streams or streamable HTTP."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import re
import shutil
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from palestra.tools import event_loop
from palestra.tools.given_arguments import GivenArguments
from palestra.tools.mcp_connection import Connection, ServerAddress, connect
from palestra.tools.source import ToolSource
from palestra.tools.tool import Tool
from palestra.types import Task, ToolError

if TYPE_CHECKING:
    import mcp

_LAUNCHERS = {"bunx", "node", "npx", "uvx"}
_NOT_IN_NAMES = re.compile(r"[^a-zA-Z0-9_-]+")


def mcp_server(
    command: Sequence[str] | None = None,
    *,
    url: str | None = None,
    name: str | None = None,
    tools: Iterable[str] | None = None,
    shared: bool = False,
    env: Mapping[str, str] | None = None,
    cwd: str | Path | None = None,
    headers: Mapping[str, str] | None = None,
    timeout_s: float = 60.0,
    start_timeout_s: float = 60.0,
) -> McpServer:
    """Every tool of an MCP server, or those in `tools`, by the server's names for them.

        ToolEnv(tools=[mcp_server(["uvx", "mcp-server-time"])], …)
        ToolEnv(tools=[mcp_server(url="http://127.0.0.1:8000/mcp", shared=True)], …)

    Each episode starts or connects to a server of its own, unless they are to share one. A server
    runs on this host, with little but `env` in its environment: it is trusted, what models pass to
    it is not. One that cannot be reached or dies makes the episode failed, "tool:mcp:NAME".

    Raises:
        ValueError: neither or both of command and URL, a command that is not there, or `mcp` is not
            installed.
    """
    if (command is None) == (url is None):
        raise ValueError("an MCP server is reached by a command or by a url: give one of them")
    if isinstance(command, str) or (command is not None and not command):
        raise ValueError(f'a command is a list, e.g. ["uvx", "mcp-server-time"], got {command!r}')
    if importlib.util.find_spec("mcp") is None:
        raise ValueError('MCP servers need the mcp package: pip install "palestra[tools]"')
    if command and not _is_installed(command[0], cwd, (env or {}).get("PATH")):
        raise ValueError(f'the MCP server\'s command "{command[0]}" is not installed')
    address = ServerAddress(
        name=_valid(name or _default_name(command, url)),
        command=tuple(command or ()),
        env=dict(env or {}),
        cwd=None if cwd is None else Path(cwd),
        url=url or "",
        headers=dict(headers or {}),
    )
    return McpServer(
        address,
        tools=None if tools is None else frozenset(tools),
        shared=shared,
        timeout_s=timeout_s,
        start_timeout_s=start_timeout_s,
    )


class McpServer(ToolSource):
    """Connects to a server for each episode, or once for all; made by `mcp_server`."""

    def __init__(
        self,
        address: ServerAddress,
        *,
        tools: frozenset[str] | None,
        shared: bool,
        timeout_s: float,
        start_timeout_s: float,
    ) -> None:
        self.name = address.name
        self._address = address
        self._wanted = tools
        self._timeout_s = timeout_s
        self._start_timeout_s = start_timeout_s
        self._shared = _SharedConnection(address, start_timeout_s) if shared else None

    @asynccontextmanager
    async def open(self, task: Task) -> AsyncIterator[Sequence[Tool]]:
        if self._shared is not None:
            yield self._tools(await self._shared.get())
            return
        connection = await connect(self._address, timeout_s=self._start_timeout_s)
        try:
            yield self._tools(connection)
        finally:
            await connection.close()

    async def aclose(self) -> None:
        """End a shared connection before the process does; the next episode makes a new one."""
        if self._shared is not None:
            await self._shared.close()

    def _tools(self, connection: Connection) -> list[Tool]:
        offered = {tool.name: tool for tool in connection.tools}
        if missing := (self._wanted or frozenset()) - offered.keys():
            raise connection.failure(
                f"the server has no tool {', '.join(sorted(missing))}: it has {', '.join(offered)}"
            )
        made: dict[str, Tool] = {}
        for name, tool in offered.items():
            if self._wanted is None or name in self._wanted:
                unique = _unique(_valid(name), made)
                made[unique] = _make_tool(tool, unique, connection, self._timeout_s)
        return list(made.values())


class _SharedConnection:
    """One connection for everybody in this process, made again when it has died."""

    def __init__(self, address: ServerAddress, start_timeout_s: float) -> None:
        self._address = address
        self._start_timeout_s = start_timeout_s
        self._pid = 0
        self._lock: asyncio.Lock
        self._connection: Connection | None = None

    async def get(self) -> Connection:
        return await asyncio.wrap_future(event_loop.start(self._get()))

    async def close(self) -> None:
        if self._connection is not None:
            await self._connection.close()

    async def _get(self) -> Connection:
        # On one loop, so only one at a time gets here.
        if self._pid != os.getpid():  # the first time, or in a forked process
            self._pid, self._lock, self._connection = os.getpid(), asyncio.Lock(), None
        async with self._lock:
            if self._connection is None or not self._connection.alive:
                if self._connection is not None:
                    await self._connection.close()
                self._connection = await connect(self._address, timeout_s=self._start_timeout_s)
            return self._connection


def _make_tool(tool: mcp.Tool, name: str, connection: Connection, timeout_s: float) -> Tool:
    async def call(**arguments: Any) -> str:
        return _answer(await connection.call(tool.name, arguments))

    description = tool.description or tool.title or ""
    return Tool(
        call,
        name=name,
        description=description,
        timeout_s=timeout_s,
        arguments=GivenArguments(tool.input_schema, tool_name=name, description=description),
    )


def _answer(result: mcp.types.CallToolResult) -> str:
    """The parts of a result as text; raises ToolError if the server calls it an error."""
    text = "\n".join(filter(None, map(_part, result.content)))
    if result.is_error:
        raise ToolError(text or "the tool failed without a word")
    return text


def _part(part: Any) -> str:
    match part.type:
        case "text":
            return str(part.text)
        case "image" | "audio":
            size = len(part.data) * 3 // 4
            return f"[{part.type}, {part.mime_type}, about {size:,} bytes, not shown]"
        case "resource_link":
            return f"[resource {part.uri}]"
        case "resource" if (text := getattr(part.resource, "text", None)) is not None:
            return str(text)
    return f"[{part.type}, not shown]"


def _is_installed(program: str, cwd: str | Path | None, path: str | None) -> bool:
    if os.sep in program and cwd is not None:
        program = str(Path(cwd, program))
    return shutil.which(program, path=path) is not None


def _valid(name: str) -> str:
    """With nothing but what a tool's name may have in it."""
    return _NOT_IN_NAMES.sub("_", name)[:64].strip("_") or "tool"


def _unique(name: str, taken: Mapping[str, Any]) -> str:
    number, unique = 1, name
    while unique in taken:
        number += 1
        unique = f"{name[:60]}_{number}"
    return unique


def _default_name(command: Sequence[str] | None, url: str | None) -> str:
    """The host, or the program, or what a program such as Python or uvx is to start."""
    if url is not None:
        return urlsplit(url).hostname or "server"
    assert command is not None
    program, *words = [Path(word).stem for word in command if not word.startswith("-")]
    starts_others = program.startswith("python") or program in _LAUNCHERS
    return words[0] if words and starts_others else program
