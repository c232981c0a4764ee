"""`Verdict`: what tests say of a program, with what was wrong told apart."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from palestra.tools.output import printable
from palestra.types import Score

MAX_DETAIL_CHARS = 200


class Fault(StrEnum):
    """What was wrong with a program, by its first test that failed."""

    NO_PROGRAM = "no program"
    COMPILE_ERROR = "compile error"
    TIMEOUT = "timeout"
    MEMORY = "memory"
    RUNTIME_ERROR = "runtime error"
    WRONG_ANSWER = "wrong answer"


class ProgramFault(Exception):
    """The program gave no answer to a question; the text says more."""

    def __init__(self, fault: Fault, detail: str = "") -> None:
        super().__init__(detail)
        self.fault = fault
        self.detail = detail


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """`passed` of `total` tests; `fault` is None if that is all of them."""

    passed: int = 0
    total: int = 0
    fault: Fault | None = None
    detail: str = ""

    def score(self, *, partial: bool) -> Score:
        """1 or 0, or with `partial` the share of tests that pass.

        `parts` has that share as "passed" and a 1 for the fault, e.g. {"passed": 0.5, "timeout": 1,
        "memory": 0, ...}.
        """
        share = self.passed / self.total if self.total else 0.0
        if self.fault is None:
            explanation = f"passed {self.passed} of {self.total}"
        else:
            detail = printable(" ".join(self.detail.split()))[:MAX_DETAIL_CHARS]
            said = f": {detail}" if detail else ""
            counted = f", passed {self.passed} of {self.total}" if self.total else ""
            explanation = f"{self.fault}{counted}{said}"
        faults = {fault.value.replace(" ", "_"): float(fault is self.fault) for fault in Fault}
        return Score(
            value=share if partial else float(self.fault is None),
            parts={"passed": share, **faults},
            explanation=explanation,
        )
