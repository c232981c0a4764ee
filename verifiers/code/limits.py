"""`CodeLimits`: how programs are run and judged; `Clock`: the time that one has left."""

from __future__ import annotations

import time
from dataclasses import dataclass

from palestra.tools.sandboxes import SandboxSpec
from palestra.verifiers.code.verdict import Fault, ProgramFault

# Beside a text, what the session adds to it.
_SLACK_CHARS = 512


@dataclass(frozen=True, kw_only=True, slots=True)
class CodeLimits:
    """What holds for all programs that one verifier judges.

    `timeout_s` is for one case or call, `total_timeout_s` for all the tests of a program together.
    `stop_early`: the first failed test decides.
    """

    spec: SandboxSpec
    timeout_s: float
    total_timeout_s: float
    tolerance: float
    strict_tuples: bool
    stop_early: bool

    @property
    def max_chars(self) -> int:
        """The longest question or reply, as JSON, that a sandbox's Python session shows whole."""
        return self.spec.limits.output_bytes - _SLACK_CHARS


class Clock:
    """Counts the time of one program from when it is made; `more_s` is added to the total."""

    def __init__(self, limits: CodeLimits, *, more_s: float = 0.0) -> None:
        self._limits = limits
        self._end = time.monotonic() + limits.total_timeout_s + more_s

    def for_one(self) -> float:
        """Seconds that the next case or call may take. Raises ProgramFault if none are left."""
        return min(self._limits.timeout_s, self.for_all())

    def for_all(self) -> float:
        """Seconds that are left. Raises ProgramFault if none are."""
        left_s = self._end - time.monotonic()
        if left_s <= 0:
            total_s = self._limits.total_timeout_s
            raise ProgramFault(Fault.TIMEOUT, f"all tests together took more than {total_s:g} s")
        return left_s
