"""What can go wrong in a call without the tool being broken: the arguments provoked it."""

from __future__ import annotations

from palestra.tools.output import printable

# Some arguments make a sound function raise these.
RESOURCE_ERRORS = (MemoryError, RecursionError, OverflowError)


class TimedOut(Exception):
    """A call had no result in time. (Not TimeoutError: a called function may raise that itself.)"""


class OutOfResources(Exception):
    """A call exhausted its process's memory or killed the process."""


class Stopped(Exception):
    """A call that was ended with something to show for it; the text is the answer.

    `kind` is "timeout" or "resources", as in `ToolResult.error`.
    """

    def __init__(self, kind: str, shown: str) -> None:
        super().__init__(shown)
        self.kind = kind


def one_line(error: BaseException, max_chars: int = 300) -> str:
    """An exception as its type and message, e.g. "ZeroDivisionError: division by zero"."""
    text = " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
    return printable(text if len(text) <= max_chars else text[: max_chars - 1] + "…")
