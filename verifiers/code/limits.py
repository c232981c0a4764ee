"""`CodeLimits`: how long a program may run and how its results are judged; `Clock`: what is left."""

from __future__ import annotations

import time
from dataclasses import dataclass

from palestra.tools.sandboxes import SandboxSpec
from palestra.verifiers.code.verdict import Fault, ProgramFault


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


class Clock:
    """Counts the time of one program from when it is made."""

    def __init__(self, limits: CodeLimits) -> None:
        self._limits = limits
        self._end = time.monotonic() + limits.total_timeout_s

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
