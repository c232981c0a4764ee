"""Runs tests against a program that is elsewhere: asserts, unittest or pytest."""

from __future__ import annotations

import ast
import builtins
import importlib
import os
import sys
import types
import unittest
from typing import Any

from palestra.verifiers.code.guest.proxies import Client, ProgramModule, Remote, function_of
from palestra.verifiers.code.guest.tally import Tally

_TEST_MODULE = "test_program"


def run_tests(job: dict[str, Any], client: Client) -> dict[str, Any]:
    """Run a job's tests: `source` by `runner` ("asserts", "unittest" or "pytest").

    The program is the module `module`; its `names` are also there without an import. `setup` is
    run before, with what the tests need. `stop_early` ends at the first test that fails.
    """
    tally = Tally(client)
    sys.modules[job["module"]] = ProgramModule(client, job["module"])
    namespace: dict[str, Any] = {"__name__": _TEST_MODULE}
    try:
        # Trusted helpers come first, then the names that only the program has.
        exec(compile(job["setup"], "setup.py", "exec", dont_inherit=True), namespace)
        for name in job["names"]:
            namespace[name] = function_of(client, name)
        {"asserts": _run_asserts, "unittest": _run_unittest, "pytest": _run_pytest}[job["runner"]](
            job, namespace, client, tally
        )
    except BaseException as error:
        if client.asked == 0 or _misses_module(error, job["module"]):
            tally.broken = f"{type(error).__name__}: {error}"[:300]
        else:
            tally.fail(error)
    return tally.report()


def _misses_module(error: BaseException, program: str) -> bool:
    """Whether the tests import something that is not here, the program aside."""
    raised_by_answer = getattr(error, "raised_by_answer", False)
    return isinstance(error, ImportError) and not raised_by_answer and error.name != program


class _Stop(BaseException):
    """The first test has failed, and no more are wanted."""


class _Check:
    """Encloses an assertion that counts as a test."""

    def __init__(self, tally: Tally, stop_early: bool) -> None:
        self._tally, self._stop_early = tally, stop_early

    def __enter__(self) -> None:
        self._tally.begin()

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> bool:
        if error is not None and not isinstance(error, Exception):
            return False
        if not self._tally.end(error) and self._stop_early:
            raise _Stop
        return True


class _Assertions(ast.NodeTransformer):
    """Encloses each assertion, but those whose failure the tests themselves handle."""

    def __init__(self) -> None:
        self.count = 0

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        if isinstance(node.test, ast.Constant):
            return node
        self.count += 1
        check = ast.Name(id="__check__", ctx=ast.Load())
        block = ast.With(items=[ast.withitem(context_expr=check)], body=[node])
        return ast.fix_missing_locations(ast.copy_location(block, node))

    def visit_Try(self, node: ast.Try) -> ast.AST:
        for part in (*node.handlers, *node.orelse, *node.finalbody):
            self.visit(part)
        return node

    visit_TryStar = visit_Try

    def visit_With(self, node: ast.With) -> ast.AST:
        return node


def _run_asserts(
    job: dict[str, Any], namespace: dict[str, Any], client: Client, tally: Tally
) -> None:
    """Statements with assertions, or a function `check` that takes the program's function."""
    assertions = _Assertions()
    tree = assertions.visit(ast.parse(job["source"]))
    tally.planned = assertions.count
    namespace["__check__"] = _Check(tally, job["stop_early"])
    try:
        exec(compile(tree, "tests.py", "exec", dont_inherit=True), namespace)
        if job["entry_point"] and "check" in namespace:
            namespace["check"](function_of(client, job["entry_point"]))
    except _Stop:
        return
    tally.planned = 0  # all has run, however often
    if tally.passed + tally.failed == 0:
        tally.begin()
        tally.end()


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


def _run_unittest(
    job: dict[str, Any], namespace: dict[str, Any], client: Client, tally: Tally
) -> None:
    module = types.ModuleType(_TEST_MODULE)
    module.__dict__.update(namespace)
    sys.modules[_TEST_MODULE] = module
    exec(compile(job["source"], "tests.py", "exec", dont_inherit=True), module.__dict__)
    suite = unittest.defaultTestLoader.loadTestsFromModule(module)
    tally.planned = suite.countTestCases()
    suite.run(_Result(tally, job["stop_early"]))


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


def _run_pytest(
    job: dict[str, Any], namespace: dict[str, Any], client: Client, tally: Tally
) -> None:
    pytest = importlib.import_module("pytest")
    for name, value in namespace.items():  # its module is made by pytest
        if not name.startswith("__") or isinstance(value, Remote):
            setattr(builtins, name, value)
    file = os.path.abspath(_TEST_MODULE + ".py")
    with open(file, "w", encoding="utf-8") as stream:
        stream.write(job["source"])
    plugin = _PytestPlugin(tally)
    options = ["-q", "--noconftest", "-p", "no:cacheprovider", "-p", "no:faulthandler"]
    options += ["-c", os.devnull, "--rootdir", os.getcwd(), "--import-mode", "importlib"]
    pytest.main([*options, *(["-x"] if job["stop_early"] else []), file], plugins=[plugin])
    if plugin.problem is not None:
        raise plugin.problem
