"""Which names a test file uses, binds and imports, and what would run it."""

from __future__ import annotations

import ast
import builtins
from dataclasses import dataclass
from functools import lru_cache

from palestra.types import Unscorable


@lru_cache(maxsize=1024)
def helpers_of(prompt: str) -> str:
    """A prompt's code as far as it is complete by itself; its last function may have no body."""
    for source in (prompt, prompt.rstrip() + "\n        pass\n"):
        try:
            ast.parse(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        return source
    return ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Names:
    """The names of a source: bound anywhere in it, or used and not bound; modules imported."""

    bound: frozenset[str]
    free: tuple[str, ...]
    imported: frozenset[str]
    star: bool
    runner: str


@lru_cache(maxsize=1024)
def names_of(source: str) -> Names:
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise Unscorable(f"the tests do not parse: {error}"[:200]) from None
    bound, used, imported = set[str](), dict[str, None](), set[str]()
    star, runner = False, "asserts"
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            if isinstance(node.ctx, ast.Load):
                used[node.id] = None
            else:
                bound.add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            bound.add(node.name)
        elif isinstance(node, ast.arg):
            bound.add(node.arg)
        elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
            bound.add(node.name)
        elif isinstance(node, ast.MatchMapping) and node.rest:
            bound.add(node.rest)
        elif isinstance(node, ast.Import):
            imported.update(alias.name for alias in node.names)
            bound.update((a.asname or a.name).partition(".")[0] for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module or "")
            star |= any(alias.name == "*" for alias in node.names)
            bound.update(alias.asname or alias.name for alias in node.names)
    if "unittest" in imported and any(isinstance(node, ast.ClassDef) for node in tree.body):
        runner = "unittest"
    elif "pytest" in imported or _has_tests(tree):
        runner = "pytest"
    module_names = {"__name__", "__file__", "__doc__"}
    free = tuple(n for n in used if n not in bound | module_names and not hasattr(builtins, n))
    return Names(
        bound=frozenset(bound),
        free=free,
        imported=frozenset(imported),
        star=star,
        runner=runner,
    )


def _has_tests(tree: ast.Module) -> bool:
    """Whether there is something that pytest would collect."""
    return any(
        (isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test"))
        or (isinstance(node, ast.ClassDef) and node.name.startswith("Test"))
        for node in tree.body
    )
