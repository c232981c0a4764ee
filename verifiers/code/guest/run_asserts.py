"""Runs tests that are statements with assertions, each of which counts."""

from __future__ import annotations

import ast
from typing import Any

from palestra.verifiers.code.guest.proxies import Client, function_of
from palestra.verifiers.code.guest.tally import Tally


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

    def visit_TryStar(self, node: Any) -> ast.AST:
        return self.visit_Try(node)

    def visit_With(self, node: ast.With) -> ast.AST:
        return node


def run_asserts(
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
        tally.end()
