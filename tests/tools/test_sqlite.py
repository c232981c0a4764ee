"""`sqlite` against real files, and against SQL that means harm."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from palestra.tools import ToolSource, run_call, sqlite
from palestra.types import Failure, Task, ToolResult

TASK = Task(id="t", messages=())
FOREVER = "WITH RECURSIVE t(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM t) "


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    path = tmp_path / "shop.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE item (name TEXT, price REAL, picture BLOB)")
        rows = [("tea", 1.5, None), ("two\nlines", 2, b"\0" * 20), ("jam", 3, b"ab")]
        connection.executemany("INSERT INTO item VALUES (?, ?, ?)", rows)
        connection.commit()
    return path


def query(source: ToolSource, *statements: str, task: Task = TASK) -> list[ToolResult]:
    """The results of one episode's calls."""

    async def episode() -> list[ToolResult]:
        async with source.open(task) as (tool,):
            return [
                await run_call(
                    {"id": "c", "function": {"name": tool.name, "arguments": {"sql": sql}}},
                    {tool.name: tool},
                    {},
                )
                for sql in statements
            ]

    return asyncio.run(episode())


def test_rows_are_shown_as_text(shop: Path) -> None:
    (result,) = query(sqlite(shop), "SELECT * FROM item")
    assert result.content == (
        "name | price | picture\ntea | 1.5 | NULL\ntwo\\nlines | 2.0 | [blob, 20 bytes]\n"
        "jam | 3.0 | x'6162'"
    )


@pytest.mark.parametrize(
    ("sql", "shown"),
    [
        ("SELECT 1 AS a; SELECT ';' AS b", "a\n1\n\nb\n;"),
        ("SELECT name FROM item WHERE price > 9", "name\n[no rows]"),
        ("", "[no statement]"),
        (FOREVER + "SELECT x FROM t", "x\n1\n2\n[more rows: only the first 2 are shown]"),
        ("SELECT name FROM pragma_table_info('item')", "name\nname\nprice\n[more rows: only"),
        ("SELECT hex(zeroblob(50)) AS h", "h\n" + "0" * 20 + "\\n[… 60 characters cut …]\\n"),
    ],
)
def test_long_results_are_cut_with_a_note(shop: Path, sql: str, shown: str) -> None:
    (result,) = query(sqlite(shop, max_rows=2, max_cell_chars=40), sql)
    assert result.error is None
    assert result.content.startswith(shown)


def test_errors_are_answers(shop: Path) -> None:
    first, second = query(sqlite(shop), "SELECT missing", "SELECT 1 AS a; SELEC")
    assert (first.error, first.content) == ("tool_error", "no such column: missing")
    assert second.error == "tool_error"
    assert second.content.startswith("a\n1\n\nstatement 2: ")


@pytest.mark.parametrize("read_only", [True, False])
@pytest.mark.parametrize(
    ("sql", "complaint"),
    [
        ("ATTACH 'FOLDER/evil.db' AS evil", "not authorized"),
        ("VACUUM INTO 'FOLDER/evil.db'", "authorization denied"),
        ("SELECT load_extension('evil')", "not authorized"),
        ("PRAGMA writable_schema = 1", "not authorized"),
        ("PRAGMA hard_heap_limit = 1", "not authorized"),
        ("PRAGMA database_list", "not authorized"),
        ("SELECT * FROM pragma_database_list", "not authorized"),
        ("CREATE VIRTUAL TABLE v USING fts5(a)", "not authorized"),
        ("UPDATE sqlite_master SET sql = 'x'", "may not be modified"),
        ("SELECT zeroblob(2000000000)", "too big"),
        ("SELECT hex(randomblob(9000000))", "too big"),
        ("SELECT '" + "a" * 200_000 + "'", "too large"),
        ("SELECT 1" + " + 1" * 5000, "too large"),
        ("SELECT " + "(" * 500 + "1" + ")" * 500, "overflow"),
        ("SELECT 1" + " UNION ALL SELECT 1" * 1000, "too many terms"),
        ("SELECT 1;" * 101, "at most 100 statements"),
    ],
)
def test_hostile_sql_is_refused(shop: Path, sql: str, complaint: str, read_only: bool) -> None:
    sql = sql.replace("FOLDER", str(shop.parent))
    (result,) = query(sqlite(shop, read_only=read_only), sql)
    assert result.error == "tool_error"
    assert complaint in result.content
    assert not (shop.parent / "evil.db").exists()


@pytest.mark.parametrize(
    "sql",
    [
        FOREVER + "SELECT count(*) FROM t",
        FOREVER + "SELECT max(length(randomblob(1000000))) FROM t",
        "SELECT printf('%.*c', 2000000000, 'x')",  # one operation: its process is killed
    ],
)
def test_sql_that_takes_too_long_is_stopped(shop: Path, sql: str) -> None:
    late, after = query(sqlite(shop, timeout_s=0.5), sql, "SELECT 1 AS a")
    assert (late.error, late.content) == ("timeout", "sqlite timed out after 0.5 s")
    assert after.content == "a\n1"


def test_sql_that_takes_too_much_memory_is_stopped(shop: Path) -> None:
    hungry = (
        "WITH RECURSIVE t(x, y) AS (SELECT 1, randomblob(9000000) UNION ALL "
        "SELECT x + 1, randomblob(9000000) FROM t) SELECT x FROM t ORDER BY y"
    )
    greedy, after = query(sqlite(shop, timeout_s=30, memory_mb=64), hungry, "SELECT 1 AS a")
    assert greedy.error == "resources"
    assert after.content == "a\n1"


@pytest.mark.parametrize("sql", ["DELETE FROM item", "CREATE TABLE x (a)", "DROP TABLE item"])
def test_a_read_only_database_is_not_changed(shop: Path, sql: str) -> None:
    before = shop.read_bytes()
    refused, count = query(sqlite(shop), sql, "SELECT count(*) AS n FROM item")
    assert (refused.error, refused.content) == ("tool_error", "not authorized")
    assert count.content == "n\n3"
    assert shop.read_bytes() == before
    assert [path.name for path in shop.parent.iterdir()] == ["shop.db"]


def test_every_episode_has_a_copy_of_its_own(shop: Path) -> None:
    source = sqlite(shop, read_only=False)
    for _ in range(2):
        results = query(source, "DELETE FROM item WHERE name = 'tea'", "SELECT count(*) FROM item")
        assert [result.content for result in results] == ["1 row changed", "count(*)\n2"]
    (count,) = query(sqlite(shop), "SELECT count(*) FROM item")
    assert count.content == "count(*)\n3"


def test_a_copy_takes_along_what_the_write_ahead_log_holds(shop: Path) -> None:
    with closing(sqlite3.connect(shop)) as writer:
        writer.execute("PRAGMA journal_mode = WAL")
        writer.execute("INSERT INTO item VALUES ('new', 1, NULL)")
        writer.commit()
        for read_only in (True, False):
            (count,) = query(sqlite(shop, read_only=read_only), "SELECT count(*) FROM item")
            assert count.content == "count(*)\n4"


def test_a_copy_grows_only_so_far(shop: Path) -> None:
    flood = "INSERT INTO item " + FOREVER + "SELECT x, x, randomblob(100000) FROM t"
    full, count = query(
        sqlite(shop, read_only=False, disk_mb=2), flood, "SELECT count(*) FROM item"
    )
    assert (full.error, full.content) == ("tool_error", "database or disk is full")
    assert count.content == "count(*)\n3"


def test_a_transaction_left_open_is_told_to_be_undone(shop: Path) -> None:
    left, count = query(
        sqlite(shop, read_only=False), "BEGIN; DELETE FROM item", "SELECT count(*) FROM item"
    )
    assert left.content.endswith("[rolled back: the transaction was not committed in this call]")
    assert count.content == "count(*)\n3"


def test_an_empty_database_may_be_the_beginning() -> None:
    *_, rows = query(
        sqlite(None, read_only=False),
        "CREATE TABLE t (a); INSERT INTO t VALUES (7)",
        "TABLE t",
        "SELECT * FROM t",
    )
    assert rows.content == "a\n7"


def test_each_task_may_have_its_own_database(shop: Path) -> None:
    source = sqlite(lambda task: task.info["database"])
    task = Task(id="t", messages=(), info={"database": shop})
    (result,) = query(source, "SELECT count(*) FROM item", task=task)
    assert result.content == "count(*)\n3"
    missing = Task(id="t", messages=(), info={"database": shop.parent / "missing"})
    with pytest.raises(Failure, match=r"tool:sqlite: .*missing: No such file"):
        query(source, "SELECT 1", task=missing)


def test_a_database_that_is_broken_is_our_fault(shop: Path) -> None:
    data = bytearray(shop.read_bytes())
    data[100:] = b"\xff" * (len(data) - 100)
    shop.write_bytes(data)
    with pytest.raises(Failure, match=r"tool:sqlite: .*malformed"):
        query(sqlite(shop), "SELECT * FROM item")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"database": "missing.db"}, "missing.db: No such file"),
        ({"database": __file__}, "is no SQLite database"),
        ({"database": None}, "pass read_only=False"),
        ({"database": None, "read_only": False, "max_rows": 0}, "max_rows of sqlite must be"),
        ({"database": None, "read_only": False, "timeout_s": 0}, "timeout_s"),
    ],
)
def test_what_cannot_work_is_refused_when_it_is_made(
    options: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        sqlite(**options)
