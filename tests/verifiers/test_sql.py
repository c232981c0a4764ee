"""SQL results: what the query finds counts, not how it is written; hostile queries are bounded."""

from __future__ import annotations

import asyncio
import re
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from palestra.types import Failure, Score, Task, Unscorable
from palestra.verifiers import run_verifier, sql
from palestra.verifiers.sql_result import difference
from palestra.verifiers.sql_rows import Rows

Judge = Callable[..., Score]
ENDLESS = "WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM r) "


def make_database(path: Path, *rows: tuple[Any, ...]) -> Path:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE t (a INT, b TEXT, c REAL)")
        connection.executemany("INSERT INTO t VALUES (?, ?, ?)", rows)
        connection.commit()
    return path


@pytest.fixture
def database(tmp_path: Path) -> Path:
    rows = [(1, "x", 0.1), (2, "y", 0.2), (3, "y", 0.3), (3, "y", 0.3), (None, None, None)]
    return make_database(tmp_path / "a.db", *rows)


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("SELECT * FROM t", "SELECT a, b, c FROM t"),
        ("SELECT a x, b y FROM t;", "SELECT a, b FROM t"),
        ("SELECT a FROM t ORDER BY a DESC", "SELECT a FROM t"),
        ("SELECT sum(c) FROM t", "SELECT 0.9"),
        ("SELECT 3.0", "SELECT max(a) FROM t"),
        ("```sql\nSELECT max(a) FROM t\n```", "SELECT 3"),
        ("First\n```sql\nSELECT 1\n```\nno:\n```sql\nSELECT 3\n```", "SELECT max(a) FROM t"),
        ("SELECT a FROM t -- all of it", "SELECT a FROM t"),
        ("SELECT a FROM t; -- done", "SELECT a FROM t"),
        ("SELECT x'00ff', NULL, 9e999", "SELECT x'00ff', NULL, 9e999"),
        ("SELECT a FROM t ORDER BY a", "SELECT a FROM t ORDER BY a ASC"),
        ("SELECT b, a FROM t WHERE b = 'y; z' OR a = 1", "SELECT b, a FROM t WHERE a = 1"),
    ],
)
def test_queries_that_find_the_same_are_right(
    judge: Judge, database: Path, reply: str, answer: str
) -> None:
    assert judge(sql(database), reply, answer).value == 1.0


@pytest.mark.parametrize(
    ("reply", "answer", "why"),
    [
        ("SELECT DISTINCT a FROM t", "SELECT a FROM t", "4 rows instead of 5"),
        ("SELECT a, b FROM t", "SELECT a FROM t", "2 columns instead of 1"),
        ("SELECT b, a FROM t", "SELECT a, b FROM t", "other rows"),
        ("SELECT a FROM t ORDER BY a DESC", "SELECT a FROM t ORDER BY a", "or another order"),
        ("SELECT '3'", "SELECT max(a) FROM t", "other rows"),
        ("SELECT 3.001", "SELECT max(a) FROM t", "other rows"),
        ("SELECT 0", "SELECT NULL", "other rows"),
        ("SELECT ''", "SELECT NULL", "other rows"),
        ("SELECT 'X'", "SELECT 'x'", "other rows"),
        ("SELECT a FROM t WHERE 0", "SELECT a FROM t", "0 rows instead of 5"),
        ("", "SELECT a FROM t", "there is no query"),
        ("  ;", "SELECT a FROM t", "one statement is expected, got 0"),
        ("The answer is 3.", "SELECT a FROM t", 'near "The": syntax error'),
        ("SELECT a FROM t; SELECT 1", "SELECT a FROM t", "one statement is expected, got 2"),
        ("```sql\nSELECT a FROM t", "SELECT a FROM t", "syntax error|unrecognized token"),
    ],
)
def test_queries_that_find_something_else_are_wrong_and_told_why(
    judge: Judge, database: Path, reply: str, answer: str, why: str
) -> None:
    score = judge(sql(database), reply, answer)
    assert score.value == 0.0
    assert re.search(why, score.explanation)


@pytest.mark.parametrize(
    "query",
    [
        "DROP TABLE t",
        "DELETE FROM t",
        "INSERT INTO t VALUES (9, 'z', 9)",
        "UPDATE t SET a = 9",
        "CREATE TABLE u (a)",
        "CREATE TEMP TABLE u (a)",
        "ATTACH 'other.db' AS o",
        "VACUUM INTO 'copy.db'",
        "PRAGMA journal_mode = WAL",
        "PRAGMA writable_schema = ON",
        "SELECT load_extension('x')",
        "BEGIN",
    ],
)
def test_a_query_that_does_more_than_read_is_wrong_and_does_nothing(
    judge: Judge, database: Path, query: str
) -> None:
    before = database.read_bytes()
    assert judge(sql(database), query, "SELECT a FROM t").value == 0.0
    assert database.read_bytes() == before
    assert sorted(path.name for path in database.parent.iterdir()) == ["a.db"]


@pytest.mark.parametrize(
    ("query", "why"),
    [
        (ENDLESS + "SELECT count(*) FROM r", "the query had no result in 0.5 s"),
        (ENDLESS + "SELECT x FROM r", "more than 10,000 rows"),
        (ENDLESS + "SELECT hex(zeroblob(1000000)) FROM r", "rows of more than 8,000,000 bytes"),
        ("SELECT a FROM t, t, t, t, t, t, t, t, t", "ambiguous column name: a"),
        ("SELECT " + "(" * 5_000 + "1" + ")" * 5_000, ""),
        ("SELECT '\0'", "there is no query"),
        ("SELECT '\ud800'", "there is no query"),
        ("x" * 1_000_000, "there is no query"),
    ],
)
def test_a_hostile_query_is_wrong_in_bounded_time(
    judge: Judge, database: Path, query: str, why: str
) -> None:
    started = time.perf_counter()
    score = judge(sql(database, timeout_s=0.5), query, "SELECT a FROM t")
    assert score.value == 0.0
    assert why in score.explanation
    assert time.perf_counter() - started < 20


def test_a_query_that_takes_all_memory_is_wrong(judge: Judge, database: Path) -> None:
    query = ENDLESS + ", s AS (SELECT x FROM r LIMIT 9000000) SELECT x FROM s ORDER BY x || hex(x)"
    score = judge(sql(database, timeout_s=30), query, "SELECT a FROM t")
    assert (score.value, score.explanation) == (0.0, "the query took too much memory")
    assert judge(sql(database), "SELECT 3", "SELECT max(a) FROM t").value == 1.0


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (None, "sql needs a query as the task's answer"),
        ("", "sql needs a query as the task's answer"),
        ("SELEC a", "the reference query has no result"),
        ("SELECT nope FROM t", "the reference query has no result"),
        ("DROP TABLE t", "the reference query has no result"),
        (ENDLESS + "SELECT x FROM r", "more than 10,000 rows"),
    ],
)
def test_a_reference_without_a_result_is_unscorable(
    judge: Judge, database: Path, answer: Any, why: str
) -> None:
    for reply in ("", "SELECT 1"):
        with pytest.raises(Unscorable, match=why):
            judge(sql(database), reply, answer)


def test_a_reference_that_finds_nothing_is_unscorable_unless_it_may(
    judge: Judge, database: Path
) -> None:
    empty = "SELECT a FROM t WHERE 0"
    with pytest.raises(Unscorable, match="the reference query finds nothing"):
        judge(sql(database), "SELECT a FROM t WHERE 1 = 2", empty)
    allowed = sql(database, allow_empty=True)
    assert judge(allowed, "SELECT a FROM t WHERE 1 = 2", empty).value == 1.0
    assert judge(allowed, "", empty).value == 0.0


def test_columns_may_be_matched_by_name(judge: Judge, database: Path) -> None:
    by_name = sql(database, by_name=True)
    assert judge(by_name, "SELECT b, A FROM t", "SELECT a, b FROM t").value == 1.0
    assert judge(by_name, "SELECT b, a AS z FROM t", "SELECT a, b FROM t").value == 0.0


def test_a_query_has_to_agree_on_every_database(judge: Judge, database: Path) -> None:
    other = make_database(database.parent / "b.db", (7, "z", 0.7))
    assert judge(sql(database), "SELECT 3", "SELECT max(a) FROM t").value == 1.0
    both = sql(lambda task: [database, other])
    assert judge(both, "SELECT 3", "SELECT max(a) FROM t").value == 0.0
    assert judge(both, "SELECT a FROM t ORDER BY a DESC LIMIT 1", "SELECT max(a) FROM t").value == 1


def test_a_database_that_cannot_be_read_is_not_the_answers_fault(
    judge: Judge, database: Path
) -> None:
    with pytest.raises(Unscorable, match="the reference query has no result"):
        judge(sql(database.parent / "missing.db"), "SELECT 1", "SELECT 1")
    (database.parent / "bad.db").write_bytes(b"no database" * 1000)
    with pytest.raises(Failure, match="file is not a database") as raised:
        judge(sql(database.parent / "bad.db"), "SELECT 1", "SELECT a FROM t")
    assert raised.value.cause == "verifier"


def test_many_at_once_agree_with_one_by_one(database: Path) -> None:
    verifier = sql(database)
    tasks = [Task(id=str(i), messages=(), answer="SELECT max(a) FROM t") for i in range(60)]

    async def main() -> list[Score]:
        return await asyncio.gather(
            *(
                run_verifier(verifier, task=task, messages=(), reply=f"SELECT {i % 5}", timeout_s=1)
                for i, task in enumerate(tasks)
            )
        )

    assert [score.value for score in asyncio.run(main())] == [float(i % 5 == 3) for i in range(60)]


# Results


def rows(*found: tuple[Any, ...]) -> Rows:
    return Rows(columns=tuple("abc"[: len(found[0])]), rows=found)


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        (rows((1.0,)), rows((1.0 + 1e-9,)), True),
        (rows((1.0,)), rows((1.0 + 1e-3,)), False),
        (rows((1000001,)), rows((1000000,)), False),
        (rows((10,)), rows((10.0,)), True),
        (rows(("a", 0.1 + 0.2), ("b", 0.3)), rows(("b", 0.3), ("a", 0.3)), True),
        (rows(("a", 0.1 + 0.2), ("b", 0.3)), rows(("a", 0.3), ("a", 0.3)), False),
        # Sorted by their first column, which differs by rounding, these pair off wrongly.
        (rows((0.1 + 0.2, 2.0), (0.3, 1.0)), rows((0.3, 2.0), (0.1 + 0.2, 1.0)), True),
        (rows((0.1 + 0.2, 2.0), (0.3, 1.0)), rows((0.3, 2.0), (0.1 + 0.2, 2.0)), False),
        (rows((b"a",)), rows(("a",)), False),
        (rows((None,)), rows((0,)), False),
        (rows((float("inf"),)), rows((float("inf"),)), True),
        (rows((-0.0,)), rows((0,)), True),
    ],
)
def test_rows_are_compared_as_bags_with_a_tolerance_for_floats(
    left: Rows, right: Rows, same: bool
) -> None:
    for a, b in ((left, right), (right, left)):
        found = difference(a, b, ordered=False, by_name=False, relative=1e-6)
        assert (found == "") is same
