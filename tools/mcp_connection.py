"""A connection to an MCP server, and its process if it is ours, from any event loop."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from palestra.tools import event_loop
from palestra.tools.trouble import one_line
from palestra.types import Failure, ToolError

if TYPE_CHECKING:
    import mcp

T = TypeVar("T")

_CLOSE_TIMEOUT_S = 8.0  # the SDK gives a process 2 s to end, and 2 s more after SIGTERM
_PROBE_TIMEOUT_S = 5.0
_MAX_PAGES = 100
_LOG_BYTES = 4096
# Even if this process is killed, its servers end: most by themselves, when their input does.
_DIES_WITH_PARENT = """
import ctypes, os, signal, sys
with_parent = getattr(ctypes.CDLL(None), "prctl", None)
if with_parent and sys.platform == "linux":
    with_parent(1, signal.SIGKILL)
os.execvp(sys.argv[1], sys.argv[1:])
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerAddress:
    """How to reach a server: a command that speaks MCP on its standard streams, or a URL."""

    name: str
    command: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    cwd: Path | None = None
    url: str = ""
    headers: dict[str, str] = field(default_factory=dict)


class Connection:
    """One open connection; made by `connect`.

    It lives on the event loop of `palestra.tools.event_loop`, in a task of its own: the SDK's
    contexts have to be left in the task that entered them, and no cancelled episode or closed loop
    may keep that from happening.
    """

    def __init__(self, address: ServerAddress) -> None:
        self.address = address
        self.tools: list[mcp.Tool] = []
        self.alive = False
        self._log = deque[str](maxlen=1)
        self._client: mcp.Client
        self._ready: asyncio.Future[None]
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None]

    async def call(self, tool: str, arguments: dict[str, Any]) -> mcp.types.CallToolResult:
        """What a tool answers.

        Raises:
            ToolError: the server refuses the call.
            Failure: the server is gone, or breaks the protocol (cause "tool:mcp:NAME").
        """
        return await _on_home_loop(self._call(tool, arguments))

    async def close(self) -> None:
        """End the connection, and the server's process if it is ours. May be called again."""
        # Whoever cancels this must not leave the process behind.
        await asyncio.shield(asyncio.wrap_future(event_loop.start(self._close())))

    def failure(self, what: str) -> Failure:
        """An error of the server, with the last that it has written to its standard error."""
        log = f"; its last words: {self._log[0]}" if self._log else ""
        return Failure(f"tool:mcp:{self.address.name}", what + log)

    async def _open(self, timeout_s: float) -> None:
        ready = self._ready = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._serve(ready))
        _open_connections.add(self)
        self._task.add_done_callback(lambda task: _open_connections.discard(self))
        try:
            async with asyncio.timeout(timeout_s):
                await ready
        except TimeoutError:
            await self._close()
            raise self.failure(f"the server was not ready in {timeout_s:g} s") from None
        except asyncio.CancelledError:
            await self._close()
            raise

    async def _serve(self, ready: asyncio.Future[None]) -> None:
        try:
            async with _client(self.address, self._log) as client:
                self._client = client
                self.tools = await _list_tools(client)
                self.alive = True
                if not ready.done():
                    ready.set_result(None)
                await self._stop.wait()
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            if not ready.done():
                ready.set_exception(self.failure(f"no connection: {one_line(_innermost(error))}"))
        finally:
            self.alive = False
            if not ready.done():
                ready.cancel()

    async def _close(self) -> None:
        self._stop.set()
        if not self._ready.done() or self._ready.cancelled():
            self._task.cancel()  # in the middle of connecting
        await asyncio.wait((self._task,), timeout=_CLOSE_TIMEOUT_S)

    async def _call(self, tool: str, arguments: dict[str, Any]) -> mcp.types.CallToolResult:
        from mcp import MCPError

        if not self.alive:
            raise self.failure("the server is gone")
        try:
            return await self._client.call_tool(tool, arguments)
        except MCPError as error:
            # A server may use any code for its own refusals: whether it is there, it has to show.
            if await self._is_there():
                raise ToolError(str(error)) from None
            self.alive = False
            raise self.failure(f"the server is gone: {error}") from None
        except Exception as error:
            if not await self._is_there():
                self.alive = False
            raise self.failure(one_line(_innermost(error))) from error

    async def _is_there(self) -> bool:
        try:
            async with asyncio.timeout(_PROBE_TIMEOUT_S):
                await self._client.list_tools(cache_mode="bypass")
        except Exception:
            return False
        return True


async def connect(address: ServerAddress, *, timeout_s: float) -> Connection:
    """Start or reach the server and ask for its tools.

    Raises Failure (cause "tool:mcp:NAME"); nothing is left then, nor if it is cancelled.
    """

    async def open() -> Connection:
        connection = Connection(address)
        await connection._open(timeout_s)
        return connection

    return await _on_home_loop(open(), undo=lambda connection: connection._close())


async def _on_home_loop(
    work: Coroutine[Any, Any, T], undo: Callable[[T], Coroutine[Any, Any, None]] | None = None
) -> T:
    """Run it on the loop where connections live; `undo` what a cancelled wait left behind."""
    future: Future[T] = event_loop.start(work)
    try:
        return await asyncio.wrap_future(future)
    except asyncio.CancelledError:
        if undo is not None and future.done() and not future.cancelled() and not future.exception():
            event_loop.start(undo(future.result()))
        raise


@asynccontextmanager
async def _client(address: ServerAddress, log: deque[str]) -> AsyncIterator[mcp.Client]:
    from mcp import Client

    async with contextlib.AsyncExitStack() as stack:
        transport: AbstractAsyncContextManager[Any]
        if address.command:
            transport = _stdio(address, stack, log)
        else:
            transport = await _http(address, stack)
        yield await stack.enter_async_context(Client(transport, cache=None))


def _stdio(
    address: ServerAddress, stack: contextlib.AsyncExitStack, log: deque[str]
) -> AbstractAsyncContextManager[Any]:
    from mcp import StdioServerParameters, stdio_client

    parameters = StdioServerParameters(
        command=sys.executable,
        args=["-I", "-S", "-c", _DIES_WITH_PARENT, *address.command],
        env=address.env or None,
        cwd=address.cwd,
    )
    read_fd, write_fd = os.pipe()
    os.set_blocking(read_fd, False)
    loop = asyncio.get_running_loop()
    loop.add_reader(read_fd, _keep_last, read_fd, log)
    stack.callback(os.close, read_fd)
    stack.callback(loop.remove_reader, read_fd)
    return stdio_client(parameters, errlog=stack.enter_context(os.fdopen(write_fd, "w")))


def _keep_last(fd: int, log: deque[str]) -> None:
    """The last line of what a server has written."""
    with contextlib.suppress(OSError):
        lines = os.read(fd, 1 << 16)[-_LOG_BYTES:].decode("utf-8", "replace").split("\n")
        log.extend([line.strip()[:300] for line in lines if line.strip()][-1:])


async def _http(
    address: ServerAddress, stack: contextlib.AsyncExitStack
) -> AbstractAsyncContextManager[Any]:
    import httpx2
    from mcp.client.streamable_http import streamable_http_client

    # A stream stays open for as long as a call takes, which is bounded elsewhere.
    http = httpx2.AsyncClient(headers=address.headers, timeout=httpx2.Timeout(30.0, read=None))
    await stack.enter_async_context(http)
    return streamable_http_client(address.url, http_client=http)


async def _list_tools(client: mcp.Client) -> list[mcp.Tool]:
    tools: list[mcp.Tool] = []
    cursor: str | None = None
    for _ in range(_MAX_PAGES):
        page = await client.list_tools(cursor=cursor)
        tools += page.tools
        cursor = page.next_cursor
        if cursor is None:
            break
    return tools


def _innermost(error: BaseException) -> BaseException:
    """Out of the groups that task groups put around what was raised in them."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


_open_connections: set[Connection] = set()


async def _close_all() -> None:
    await asyncio.gather(*(connection._close() for connection in list(_open_connections)))


def _close_at_exit() -> None:
    if _open_connections:
        with contextlib.suppress(TimeoutError):
            event_loop.run(asyncio.wait_for(_close_all(), _CLOSE_TIMEOUT_S))


atexit.register(_close_at_exit)
# In a forked process they are the parent's.
os.register_at_fork(after_in_child=_open_connections.clear)
