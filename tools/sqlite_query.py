"""Run hostile SQL: what the process of `sqlite` does with one call."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from palestra.tools.output import shortened
from palestra.types import ToolError

INTERRUPTED = "the time is over"

_MAX_STATEMENTS = 100
_MAX_BLOB_SHOWN = 16
_OPERATIONS_BETWEEN_CHECKS = 10_000
# Single operations cannot be interrupted, so their operands have to be small.
_LIMITS = {
    sqlite3.SQLITE_LIMIT_LENGTH: 10_000_000,  # bytes of a value or a row
    sqlite3.SQLITE_LIMIT_SQL_LENGTH: 100_000,
    sqlite3.SQLITE_LIMIT_COLUMN: 2000,
    sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 200,
    sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: 100,
    sqlite3.SQLITE_LIMIT_VDBE_OP: 1_000_000,
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 1000,
    sqlite3.SQLITE_LIMIT_TRIGGER_DEPTH: 20,
    sqlite3.SQLITE_LIMIT_WORKER_THREADS: 0,
}
_READING = {
    sqlite3.SQLITE_SELECT,
    sqlite3.SQLITE_READ,
    sqlite3.SQLITE_FUNCTION,
    sqlite3.SQLITE_RECURSIVE,
    sqlite3.SQLITE_TRANSACTION,
    sqlite3.SQLITE_PRAGMA,
}
_NEVER = {
    sqlite3.SQLITE_ATTACH,  # VACUUM, too
    sqlite3.SQLITE_DETACH,
    # Whose inner tables hostile SQL could fill with what their code trusts.
    sqlite3.SQLITE_CREATE_VTABLE,
    sqlite3.SQLITE_DROP_VTABLE,
}
_PRAGMAS = {
    "data_version",  # asked for by full-text tables
    "foreign_key_check",
    "foreign_key_list",
    "index_info",
    "index_list",
    "index_xinfo",
    "table_info",
    "table_list",
    "table_xinfo",
}
_FORBIDDEN_FUNCTIONS = {"load_extension", "fts3_tokenizer"}
HOST_TROUBLE = {
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_NOTADB,
}


def run_sql(
    database: str, sql: str, *, max_bytes: int, max_rows: int, max_cell_chars: int, timeout_s: float
) -> str:
    """The rows that SQL gives, as text.

    The file is only read if `max_bytes`, the size up to which it may grow, is 0. Memory is for the
    process to limit, and so are single operations that take longer than `timeout_s`.

    Raises:
        ToolError: what SQLite complains of; `INTERRUPTED` when the time is over.
        MemoryError: from SQLite or Python.
        sqlite3.Error: a file to be read that cannot be.
    """
    with closing(connect(database, read_only=max_bytes == 0)) as connection:
        restrict(connection, max_bytes, time.monotonic() + timeout_s)
        shown: list[str] = []
        for number, statement in enumerate(statements(sql), start=1):
            try:
                if number > _MAX_STATEMENTS:
                    raise ToolError(f"at most {_MAX_STATEMENTS} statements are run in one call")
                shown.append(_run(connection, statement, max_rows, max_cell_chars))
            except sqlite3.Error as error:
                code = getattr(error, "sqlite_errorcode", 0)
                if code == sqlite3.SQLITE_INTERRUPT:
                    raise ToolError(INTERRUPTED) from None
                if max_bytes == 0 and code & 0xFF in HOST_TROUBLE:
                    raise
                where = f"statement {number}: " if number > 1 else ""
                raise ToolError("\n\n".join((*shown, f"{where}{error}"))) from None
        if connection.in_transaction:
            shown.append("[rolled back: the transaction was not committed in this call]")
    return "\n\n".join(shown) or "[no statement]"


def connect(database: str, *, read_only: bool) -> sqlite3.Connection:
    # One that nobody writes to needs no locks, nor the files that write-ahead logging keeps.
    unchanging = not any(Path(database + suffix).exists() for suffix in ("-wal", "-journal"))
    mode = f"mode=ro&immutable={int(unchanging)}" if read_only else "mode=rw"
    uri = f"{Path(database).resolve().as_uri()}?{mode}"
    connection = sqlite3.connect(uri, uri=True, isolation_level=None)
    connection.text_factory = lambda data: data.decode("utf-8", "replace")
    return connection


def restrict(connection: sqlite3.Connection, max_bytes: int, deadline: float) -> None:
    for category, limit in _LIMITS.items():
        connection.setlimit(category, limit)
    connection.execute("PRAGMA temp_store = MEMORY")
    connection.execute("PRAGMA trusted_schema = OFF")
    if max_bytes == 0:
        connection.execute("PRAGMA query_only = ON")
    else:
        page_bytes = connection.execute("PRAGMA page_size").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {max_bytes // page_bytes}")
    allowed = _READING if max_bytes == 0 else None

    def authorize(
        action: int, first: str | None, second: str | None, database: str | None, by: str | None
    ) -> int:
        # So virtual tables declare their columns; a real one is refused anyway.
        declared = action == sqlite3.SQLITE_UPDATE and first == "sqlite_master"
        if action in _NEVER or not (allowed is None or action in allowed or declared):
            return sqlite3.SQLITE_DENY
        if action == sqlite3.SQLITE_PRAGMA and (first or "").lower() not in _PRAGMAS:
            return sqlite3.SQLITE_DENY
        if action == sqlite3.SQLITE_FUNCTION and (second or "").lower() in _FORBIDDEN_FUNCTIONS:
            return sqlite3.SQLITE_DENY
        return sqlite3.SQLITE_OK

    connection.set_authorizer(authorize)
    connection.set_progress_handler(
        lambda: int(time.monotonic() > deadline), _OPERATIONS_BETWEEN_CHECKS
    )


def statements(sql: str) -> Iterator[str]:
    """The statements one by one, however their strings and triggers contain semicolons."""
    start = end = 0
    while (end := sql.find(";", end) + 1) > 0:
        if sqlite3.complete_statement(sql[start:end]):
            yield sql[start:end]
            start = end
    if sql[start:].strip():
        yield sql[start:]


def _run(connection: sqlite3.Connection, statement: str, max_rows: int, max_cell_chars: int) -> str:
    before = connection.total_changes
    with closing(connection.execute(statement)) as cursor:
        if cursor.description is None:
            changed = connection.total_changes - before
            return f"{changed} row{'s' * (changed != 1)} changed" if changed else "done"
        lines = [" | ".join(column[0] for column in cursor.description)]
        while (row := cursor.fetchone()) is not None:
            if len(lines) > max_rows:
                lines.append(f"[more rows: only the first {max_rows} are shown]")
                break
            lines.append(" | ".join(_cell(value, max_cell_chars) for value in row))
        return "\n".join(lines) if len(lines) > 1 else f"{lines[0]}\n[no rows]"


def _cell(value: object, max_chars: int) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, bytes):
        if len(value) > _MAX_BLOB_SHOWN:
            return f"[blob, {len(value):,} bytes]"
        return f"x'{value.hex()}'"
    if isinstance(value, str) and len(value) > max_chars:
        value = shortened(value, max_chars)
    return str(value).replace("\r", "\\r").replace("\n", "\\n")
