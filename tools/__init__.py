"""Tools that a policy calls: what they are, and what happens when it does."""

# Not lazily: importing the modules `tool`, `calculator`, `python` and so on makes these names
# theirs, so the functions have to be bound right after.
from palestra.tools.bash import bash
from palestra.tools.calculate import calculate
from palestra.tools.calculator import calculator
from palestra.tools.call import parse_reply
from palestra.tools.files import files
from palestra.tools.hidden import TimeLimit
from palestra.tools.mcp_client import mcp_server
from palestra.tools.python import python
from palestra.tools.run import run_call
from palestra.tools.sandboxes import Sandbox, SandboxSpec
from palestra.tools.search import search
from palestra.tools.source import ToolSource
from palestra.tools.sqlite import sqlite
from palestra.tools.state import State
from palestra.tools.submit import finish, submit
from palestra.tools.tool import Tool, tool
from palestra.types import ToolError

__all__ = [
    "tool",
    "Tool",
    "ToolError",
    "ToolSource",
    "State",
    "Sandbox",
    "SandboxSpec",
    "TimeLimit",
    "python",
    "bash",
    "files",
    "sqlite",
    "search",
    "mcp_server",
    "calculator",
    "calculate",
    "submit",
    "finish",
    "parse_reply",
    "run_call",
]
