"""`Tally`: counts the tests that pass, and says of the first that does not what was wrong."""

from __future__ import annotations

from typing import Any

from palestra.verifiers.code.guest.proxies import Client, Trouble

MAX_DETAIL_CHARS = 300


class Tally:
    """`begin` and `end` enclose each test; `broken` says why no test could be started."""

    def __init__(self, client: Client) -> None:
        self.passed = 0
        self.failed = 0
        self.planned = 0  # tests that are known to exist; those that never run have failed
        self.neutral = 0  # skipped, whatever the program is
        self.failure: list[str] = []
        self.broken = ""
        self._client = client
        self._asked = 0
        self._troubles = 0

    def begin(self) -> None:
        """A test starts."""
        self._asked, self._troubles = self._client.asked, self._client.troubles

    def end(self, error: BaseException | None = None, *, skipped: bool = False) -> bool:
        """The test is over; whether the next may start."""
        if self._client.troubles > self._troubles:
            self.fail(error or Trouble("wrong answer", "a test caught what went wrong"))
            return False
        if error is not None:
            self.fail(error)
            return False
        if not skipped:
            self.passed += 1
        elif self._client.asked == self._asked and not self._client.missing:
            self.neutral += 1
        else:
            self.fail(Trouble("wrong answer", "a test was skipped because of the program"))
            return False
        return True

    def fail(self, error: BaseException) -> None:
        """Count a failed test."""
        self.failed += 1
        if not self.failure:
            self.failure = [_kind_of(error), _text_of(error)]

    def report(self) -> dict[str, Any]:
        """What the host is told."""
        if self._client.troubles and not self.failed:
            self.fail(Trouble("wrong answer", "the tests caught what went wrong"))
        counted = self.passed + self.failed
        return {
            "passed": self.passed,
            "total": max(counted, self.planned - self.neutral),
            "failure": self.failure,
            "asked": self._client.asked,
            "refused": self._client.refused,
            "broken": self.broken,
        }


def _kind_of(error: BaseException) -> str:
    if isinstance(error, Trouble):
        return error.kind
    raised_by_answer = getattr(error, "raised_by_answer", False)
    if isinstance(error, MemoryError) and raised_by_answer:
        return "memory"
    if isinstance(error, AssertionError) and not raised_by_answer:
        return "wrong answer"
    return "runtime error" if raised_by_answer else "wrong answer"


def _text_of(error: BaseException) -> str:
    if isinstance(error, AssertionError) and not getattr(error, "raised_by_answer", False):
        return ""  # it may quote what was expected
    return f"{type(error).__name__}: {error}"[:MAX_DETAIL_CHARS]
