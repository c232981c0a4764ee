"""Signal handlers, set without the enumerations that the module `signal` looks up each time."""

from __future__ import annotations

import signal
from _signal import signal as _set_handler  # type: ignore[import-not-found]
from collections.abc import Callable
from typing import Any

ALARM, CHILD_ENDED, INTERRUPT = int(signal.SIGALRM), int(signal.SIGCHLD), int(signal.SIGINT)
DEFAULT = int(signal.SIG_DFL)

set_handler: Callable[[int, Any], Any] = _set_handler


def do_nothing(number: int, frame: Any) -> None:
    """A handler for signals that only have to end a wait."""
