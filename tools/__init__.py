"""Tools that a policy calls: what they are, and what happens when it does."""

# Not lazily: importing the modules `tool` and `calculator` makes these names theirs, so the
# functions have to be bound right after.
from palestra.tools.calculator import calculator
from palestra.tools.call import parse_reply
from palestra.tools.run import run_call
from palestra.tools.state import State
from palestra.tools.tool import Tool, tool
from palestra.types import ToolError

__all__ = ["tool", "Tool", "ToolError", "State", "calculator", "parse_reply", "run_call"]
