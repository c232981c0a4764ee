"""Numbers on the command line: what is out of range is refused in words."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any


def number(
    kind: type, low: float, what: str, *, high: float = sys.float_info.max
) -> Callable[[str], Any]:
    """A converter that refuses what is out of range in words."""

    def convert(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not low <= value <= high:
            raise argparse.ArgumentTypeError(f"must be {what}, got {text!r}")
        return value

    return convert


AT_LEAST_ONE = number(int, 1, "a whole number from 1 up")
SEED = number(int, 0, "a whole number from 0 up")
PORT = number(int, 0, "a port from 0 to 65535", high=65535)
NOT_NEGATIVE = number(float, 0, "a number from 0 up")
POSITIVE = number(float, 0.001, "a number above 0")
