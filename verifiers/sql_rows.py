"""Run one read-only query in a killable process and hand its rows over as data."""

from __future__ import annotations

import json
import sqlite3
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from palestra.tools.sqlite_query import (
    HOST_TROUBLE,
    INTERRUPTED,
    connect,
    restrict,
    statements,
)
from palestra.tools.threads import run_in_thread
from palestra.tools.tool import Tool
from palestra.tools.trouble import TimedOut
from palestra.types import ToolError
from palestra.verifiers.isolated import in_process

_MAX_BYTES = 8_000_000  # of all rows, as JSON
# A query that is stopped by itself has not ended this long after: then its process is killed.
_GRACE_S = 1.0
_MEMORY_MB = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """What a query gives: NULL is None, a blob its bytes."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]


async def query_rows(
    database: Path, sql: str, *, max_rows: int, timeout_s: float, hostile_file: bool = False
) -> Rows:
    """The rows of one statement that only reads, on an SQLite file that nobody changes meanwhile.

    `hostile_file`: the policy wrote it, so that whatever is wrong with it is told as a ToolError.

    Raises:
        ToolError: what SQLite complains of, more than one statement, or too many rows.
        TimedOut, OutOfResources: as the query went.
        Failure: the file cannot be read.
    """
    if "\0" in sql or not sql.strip() or not _encodable(sql):
        raise ToolError("there is no query")
    in_worker = Tool(
        write_rows, name="sql", isolated=True, timeout_s=timeout_s + _GRACE_S, memory_mb=_MEMORY_MB
    )
    with TemporaryDirectory(prefix="palestra-sql-") as folder:
        output = Path(folder, "rows.json")
        try:
            await in_process(
                in_worker,
                database=str(database),
                sql=sql,
                output=str(output),
                max_rows=max_rows,
                timeout_s=timeout_s,
                hostile_file=hostile_file,
            )
        except ToolError as error:
            if str(error) == INTERRUPTED:
                raise TimedOut from None
            raise
        return await run_in_thread(lambda: _read(output))


def write_rows(
    database: str, sql: str, output: str, max_rows: int, timeout_s: float, hostile_file: bool
) -> None:
    """Write [columns, rows] as JSON; blobs are {"blob": hexadecimal}."""
    try:
        with closing(connect(database, read_only=True)) as connection:
            restrict(connection, 0, time.monotonic() + timeout_s)
            columns, rows = _fetch(connection, sql, max_rows)
    except sqlite3.DatabaseError as error:
        code = getattr(error, "sqlite_errorcode", 0)
        if code == sqlite3.SQLITE_INTERRUPT:
            raise ToolError(INTERRUPTED) from None
        if not hostile_file and code & 0xFF in HOST_TROUBLE:
            raise
        raise ToolError(str(error)) from None
    Path(output).write_text(json.dumps([columns, rows]))


def _read(output: Path) -> Rows:
    columns, rows = json.loads(output.read_bytes())
    return Rows(columns=tuple(columns), rows=tuple(tuple(map(_cell, row)) for row in rows))


def _fetch(
    connection: sqlite3.Connection, sql: str, max_rows: int
) -> tuple[list[str], list[list[Any]]]:
    found = [statement for statement in statements(sql) if not _is_comment(statement)]
    if len(found) != 1:
        raise ToolError(f"one statement is expected, got {len(found)}")
    with closing(connection.execute(found[0])) as cursor:
        if cursor.description is None:
            raise ToolError("the statement gives no rows")
        columns = [column[0] for column in cursor.description]
        rows: list[list[Any]] = []
        size = 0
        for row in cursor:
            if len(rows) == max_rows:
                raise ToolError(f"more than {max_rows:,} rows")
            rows.append([{"blob": v.hex()} if isinstance(v, bytes) else v for v in row])
            size += sum(len(v) if isinstance(v, str | bytes) else 8 for v in row)
            if size > _MAX_BYTES:
                raise ToolError(f"rows of more than {_MAX_BYTES:,} bytes")
    return columns, rows


def _is_comment(statement: str) -> bool:
    """Whether there is nothing but comments, space and semicolons in it."""
    rest = statement.strip().strip(";").strip()
    while rest.startswith(("--", "/*")):
        end = "\n" if rest.startswith("--") else "*/"
        rest = rest.partition(end)[2].strip().strip(";").strip()
    return not rest


def _cell(value: Any) -> Any:
    return bytes.fromhex(value["blob"]) if isinstance(value, dict) else value


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
