"""`sql`: the reply is a query that gives what the reference query gives, on SQLite."""

from __future__ import annotations

import functools
import os
import re
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from palestra.tools.threads import run_in_thread
from palestra.tools.trouble import OutOfResources, TimedOut
from palestra.types import Score, Task, ToolError, Unscorable
from palestra.verifiers.fenced import last_block
from palestra.verifiers.isolated import QUEUE_TIMEOUT_S
from palestra.verifiers.sql_result import difference
from palestra.verifiers.sql_rows import Rows, query_rows
from palestra.verifiers.verifier import verifier

_MAX_SQL_CHARS = 100_000
_CACHED_RESULTS = 256
_CACHED_ROWS = 1_000
_NOT_TOP_LEVEL = re.compile(
    r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|`[^`]*`|--[^\n]*|/\*.*?\*/", re.DOTALL
)
_INNERMOST = re.compile(r"\([^()]*\)")
_ORDER_BY = re.compile(r"\border\s+by\b", re.IGNORECASE)

Database = str | Path


def sql(
    database: Database | Callable[[Task], Database | Sequence[Database]],
    *,
    ordered: bool | Literal["auto"] = "auto",
    by_name: bool = False,
    relative: float = 1e-6,
    allow_empty: bool = False,
    max_rows: int = 10_000,
    timeout_s: float = 5.0,
) -> Callable[..., Any]:
    """A verifier: 1 if the reply's query and the task's answer give the same rows.

    The query is the reply's last fenced block, or the whole reply. It runs in a process of its own,
    on one statement that may only read, for at most `timeout_s` and `max_rows` rows; what goes
    beyond is wrong. Results are bags of rows, or in order where `ordered` (auto: where the
    reference has an ORDER BY of its own); see `difference` for `by_name` and `relative`.

    `database` is a file, or a function of the task that returns one or several: on each of several
    the results must agree, which tells a query that is right from one that happens to be right here
    (Zhong, Yu and Klein, arXiv 2010.02840). A query that writes the answer down (`SELECT 42`)
    passes on a single one. A reference that finds nothing is unscorable unless `allow_empty`,
    because any query that finds nothing would pass.

    Raises:
        ValueError: a number out of range.
    """
    if not timeout_s > 0 or max_rows < 1 or not relative >= 0:
        raise ValueError(
            "sql needs a positive timeout_s, at least one row and a relative of at least 0, "
            f"got {timeout_s}, {max_rows} and {relative}"
        )
    cache: OrderedDict[tuple[str, int, str], Rows] = OrderedDict()

    async def expected_rows(path: Path, query: str) -> Rows:
        key = (str(path), os.stat(path).st_mtime_ns, query)
        if (known := cache.get(key)) is not None:
            return known
        rows = await query_rows(path, query, max_rows=max_rows, timeout_s=timeout_s)
        if len(rows.rows) <= _CACHED_ROWS:
            cache[key] = rows
            while len(cache) > _CACHED_RESULTS:
                cache.popitem(last=False)
        return rows

    @verifier(name="sql", timeout_s=QUEUE_TIMEOUT_S)
    async def same_result(reply: str, answer: Any, task: Task) -> Score:
        """1 if the results agree. Raises Unscorable for a reference that gives none."""
        if not isinstance(answer, str) or not answer.strip():
            raise Unscorable(f"sql needs a query as the task's answer, got {answer!r:.80}")
        in_order = _has_order(answer) if ordered == "auto" else ordered
        query = await run_in_thread(lambda: _query_of(reply))
        finds_something = False
        for path in _files(database, task):
            try:
                expected = await expected_rows(path, answer)
            except (ToolError, TimedOut, OutOfResources, OSError) as error:
                raise Unscorable(f"the reference query has no result: {error}"[:300]) from None
            finds_something |= bool(expected.rows)
            try:
                found = await query_rows(path, query, max_rows=max_rows, timeout_s=timeout_s)
            except ToolError as error:
                return Score(value=0.0, explanation=str(error)[:300])
            except TimedOut:
                return Score(value=0.0, explanation=f"the query had no result in {timeout_s:g} s")
            except OutOfResources:
                return Score(value=0.0, explanation="the query took too much memory")
            problem = await run_in_thread(
                functools.partial(
                    difference,
                    found,
                    expected,
                    ordered=in_order,
                    by_name=by_name,
                    relative=relative,
                )
            )
            if problem:
                return Score(value=0.0, explanation=problem)
        if not finds_something and not allow_empty:
            raise Unscorable("the reference query finds nothing: any that does not would pass")
        return Score(value=1.0)

    return same_result


def _files(database: Any, task: Task) -> list[Path]:
    chosen = database(task) if callable(database) else database
    paths = [chosen] if isinstance(chosen, str | Path) else list(chosen)
    if not paths:
        raise Unscorable(f"task {task.id} has no database")
    return [Path(path) for path in paths]


def _query_of(reply: str) -> str:
    block = last_block(reply, ("sql", "sqlite"))
    query = reply if block is None else block
    return query if len(query) <= _MAX_SQL_CHARS else ""


def _has_order(query: str) -> bool:
    """Whether the query itself, not one inside of it, has an ORDER BY."""
    text = _NOT_TOP_LEVEL.sub(" ", query)
    while (outer := _INNERMOST.sub(" ", text)) != text:
        text = outer
    return _ORDER_BY.search(text) is not None
