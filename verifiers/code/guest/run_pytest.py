"""Runs the tests of a file with pytest, with no configuration but its own."""

from __future__ import annotations

import builtins
import importlib
import os
from typing import Any

from palestra.verifiers.code.guest.proxies import Client, Remote
from palestra.verifiers.code.guest.tally import Tally


class _PytestPlugin:
    """Counts in a tally; `problem` is that of a module that could not be collected."""

    def __init__(self, tally: Tally) -> None:
        self.problem: BaseException | None = None
        self._tally = tally
        self._error: BaseException | None = None
        self._skipped = False

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        self._tally.planned = len(items)

    def pytest_exception_interact(self, node: Any, call: Any, report: Any) -> None:
        if report.when == "collect" and self.problem is None:
            self.problem = call.excinfo.value.__cause__ or call.excinfo.value

    def pytest_runtest_logstart(self, nodeid: str, location: Any) -> None:
        self._error, self._skipped = None, False
        self._tally.begin()

    def pytest_runtest_makereport(self, item: Any, call: Any) -> None:
        if call.excinfo is not None and self._error is None:
            self._error = call.excinfo.value

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.outcome == "skipped" or hasattr(report, "wasxfail"):
            self._skipped = True
        elif report.outcome == "failed" and self._error is None:
            self._error = AssertionError()

    def pytest_runtest_logfinish(self, nodeid: str, location: Any) -> None:
        self._tally.end(None if self._skipped else self._error, skipped=self._skipped)


def run_pytest(
    job: dict[str, Any], namespace: dict[str, Any], client: Client, tally: Tally
) -> None:
    pytest = importlib.import_module("pytest")
    for name, value in namespace.items():  # its module is made by pytest
        if not name.startswith("__") or isinstance(value, Remote):
            setattr(builtins, name, value)
    file = os.path.abspath(namespace["__name__"] + ".py")
    with open(file, "w", encoding="utf-8") as stream:
        stream.write(job["source"])
    plugin = _PytestPlugin(tally)
    options = ["-q", "--noconftest", "-p", "no:cacheprovider", "-p", "no:faulthandler"]
    options += ["-c", os.devnull, "--rootdir", os.getcwd(), "--import-mode", "importlib"]
    pytest.main([*options, *(["-x"] if job["stop_early"] else []), file], plugins=[plugin])
    if plugin.problem is not None:
        raise plugin.problem
