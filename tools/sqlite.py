"""`sqlite`: SQL on a database file, or on a copy of it that lives as long as the episode."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, closing, nullcontext
from pathlib import Path

from palestra.tools.hidden import TimeLimit
from palestra.tools.isolation import run_isolated
from palestra.tools.source import ToolSource
from palestra.tools.sqlite_query import INTERRUPTED, run_sql
from palestra.tools.threads import run_in_thread
from palestra.tools.tool import Tool
from palestra.tools.trouble import TimedOut, one_line
from palestra.types import Failure, Task, ToolError

_HEADER = b"SQLite format 3\0"
# What SQL is stopped by itself has not ended this long after: then its process is killed.
_GRACE_S = 1.0


def sqlite(
    database: str | Path | Callable[[Task], str | Path] | None,
    *,
    read_only: bool = True,
    max_rows: int = 100,
    max_cell_chars: int = 500,
    timeout_s: float = 10.0,
    memory_mb: int = 256,
    disk_mb: int = 64,
    name: str = "sqlite",
    description: str = "Run SQL (SQLite) on the database and show the rows it gives.",
) -> SqliteSource:
    """A tool that runs SQL on a database file, e.g. `ToolEnv(tools=[sqlite("shop.db")], …)`.

    With `read_only=False` each episode works on a copy of its own, which may grow by `disk_mb`;
    then `database` may be None for an empty one. A function is asked for each task's file. SQL runs
    in a process that is bounded in time and memory (`memory_mb` beyond its start; Linux only).

    Raises:
        ValueError: no such file, one that is no SQLite database, or a number out of range.
    """
    return SqliteSource(
        database,
        read_only=read_only,
        max_rows=max_rows,
        max_cell_chars=max_cell_chars,
        timeout_s=timeout_s,
        memory_mb=memory_mb,
        disk_mb=disk_mb,
        name=name,
        description=description,
    )


class SqliteSource(ToolSource):
    """Makes the tool of `sqlite` for each episode."""

    def __init__(
        self,
        database: str | Path | Callable[[Task], str | Path] | None,
        *,
        read_only: bool,
        max_rows: int,
        max_cell_chars: int,
        timeout_s: float,
        memory_mb: int,
        disk_mb: int,
        name: str,
        description: str,
    ) -> None:
        for what, number in {
            "max_rows": max_rows,
            "max_cell_chars": max_cell_chars,
            "disk_mb": disk_mb,
        }.items():
            if number < 1:
                raise ValueError(f"{what} of {name} must be at least 1, got {number}")
        if not timeout_s > 0:
            raise ValueError(f"timeout_s of {name} must be positive, got {timeout_s}")
        if database is None and read_only:
            raise ValueError("without a database there is nothing to read: pass read_only=False")
        if isinstance(database, str | Path):
            _check_file(Path(database))
        self.name = name
        self._database = database
        self._read_only = read_only
        self._max_rows = max_rows
        self._max_cell_chars = max_cell_chars
        self._disk_bytes = disk_mb << 20
        self._description = description
        self._timeout_s = timeout_s
        # Never called by its schema: only its process, with these limits, is wanted.
        self._in_process = Tool(
            run_sql, name=name, isolated=True, timeout_s=timeout_s + _GRACE_S, memory_mb=memory_mb
        )

    @asynccontextmanager
    async def open(self, task: Task) -> AsyncIterator[Sequence[Tool]]:
        database = self._database
        if database is not None and not isinstance(database, str | Path):
            try:
                database = database(task)
                _check_file(Path(database))
            except Exception as error:
                raise Failure(f"tool:{self.name}", one_line(error)) from error
        if self._read_only:
            assert database is not None
            yield (self._tool(str(database), max_bytes=0),)
            return
        with tempfile.TemporaryDirectory(prefix="palestra-sqlite-") as folder:
            copy = Path(folder, "database")
            size_bytes = await run_in_thread(lambda: _copy(database, copy))
            yield (self._tool(str(copy), size_bytes + self._disk_bytes),)

    def _tool(self, database: str, max_bytes: int) -> Tool:
        # Concurrent calls would lock each other out of a file that they write to.
        turn = asyncio.Lock() if max_bytes else nullcontext()

        async def query(sql: str, limit: TimeLimit) -> str:
            arguments = {
                "database": database,
                "sql": sql,
                "max_bytes": max_bytes,
                "max_rows": self._max_rows,
                "max_cell_chars": self._max_cell_chars,
                "timeout_s": limit.seconds,
            }
            try:
                async with turn:
                    return await run_isolated(self._in_process, json.dumps(arguments))
            except ToolError as error:
                if str(error) == INTERRUPTED:
                    raise TimedOut from None
                raise

        return Tool(query, name=self.name, description=self._description, timeout_s=self._timeout_s)


def _check_file(path: Path) -> None:
    try:
        with path.open("rb") as file:
            header = file.read(len(_HEADER))
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from None
    if header not in (_HEADER, b""):
        raise ValueError(f"{path} is no SQLite database")


def _copy(source: str | Path | None, target: Path) -> int:
    """Copied by SQLite itself, with what a write-ahead log holds; the size in bytes."""
    with closing(sqlite3.connect(target)) as copy:
        if source is not None:
            uri = f"{Path(source).resolve().as_uri()}?mode=ro"
            with closing(sqlite3.connect(uri, uri=True)) as original:
                original.backup(copy)
    return target.stat().st_size
