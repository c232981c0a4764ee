"""A small MCP server for the tests: `python mcp_demo_server.py [port]`."""

from __future__ import annotations

import os
import sys
import time

from mcp.server import MCPServer
from mcp.server.mcpserver import Image

server = MCPServer("demo")
calls = 0


@server.tool()
def add(a: int, b: int) -> int:
    """Add two integers."""
    return a + b


@server.tool()
def count() -> int:
    """How often it was called."""
    global calls
    calls += 1
    return calls


@server.tool()
def refuse() -> str:
    """Raise."""
    from mcp.server.mcpserver.exceptions import ToolError

    raise ToolError("no tea left")


@server.tool()
def paint() -> list[str | Image]:
    """Text and an image."""
    return ["a dot", Image(data=b"\x89PNG" + b"\0" * 96, format="png")]


@server.tool()
def nap(seconds: float) -> str:
    """Sleep."""
    time.sleep(seconds)
    return "slept"


@server.tool()
def process() -> int:
    """The server's process."""
    return os.getpid()


@server.tool()
def die() -> str:
    """Crash."""
    print("I am dying", file=sys.stderr, flush=True)
    os._exit(3)


@server.tool(name="dotted.name")
def dotted() -> str:
    """A name that is no tool's."""
    return "dotted"


if __name__ == "__main__":
    if len(sys.argv) > 1:
        server.run("streamable-http", host="127.0.0.1", port=int(sys.argv[1]))
    else:
        server.run("stdio")
