"""Runs the test cases of a module of unittest."""

from __future__ import annotations

import sys
import types
import unittest
from typing import Any

from palestra.verifiers.code.guest.proxies import Client
from palestra.verifiers.code.guest.tally import Tally


class _Result(unittest.TestResult):
    """Counts in a tally."""

    def __init__(self, tally: Tally, stop_early: bool) -> None:
        super().__init__()
        self.failfast = stop_early
        self._tally = tally
        self._over = False

    def startTest(self, test: Any) -> None:
        super().startTest(test)
        self._over = False
        self._tally.begin()

    def _end(self, error: BaseException | None = None, *, skipped: bool = False) -> None:
        if self._over:  # of several failures in one test, the first counts
            return
        self._over = True
        if not self._tally.end(error, skipped=skipped) and self.failfast:
            self.stop()

    def addSuccess(self, test: Any) -> None:
        self._end()

    def addFailure(self, test: Any, err: Any) -> None:
        self._end(err[1])

    def addError(self, test: Any, err: Any) -> None:
        self._end(err[1])

    def addSubTest(self, test: Any, subtest: Any, err: Any) -> None:
        if err is not None:
            self._end(err[1])

    def addSkip(self, test: Any, reason: str) -> None:
        self._end(skipped=True)

    def addExpectedFailure(self, test: Any, err: Any) -> None:
        self._end(skipped=True)

    def addUnexpectedSuccess(self, test: Any) -> None:
        self._end(AssertionError())


def run_unittest(
    job: dict[str, Any], namespace: dict[str, Any], client: Client, tally: Tally
) -> None:
    module = types.ModuleType(namespace["__name__"])
    module.__dict__.update(namespace)
    sys.modules[module.__name__] = module
    exec(compile(job["source"], "tests.py", "exec", dont_inherit=True), module.__dict__)
    suite = unittest.defaultTestLoader.loadTestsFromModule(module)
    tally.planned = suite.countTestCases()
    suite.run(_Result(tally, job["stop_early"]))
