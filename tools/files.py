"""`files`: look at and edit text files of the sandbox, with the commands that agents know."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeVar

from palestra.tools.output import MAX_OUTPUT_CHARS, shortened
from palestra.tools.sandboxes.sandbox import FileInfo, FileRefused, Sandbox
from palestra.tools.tool import tool
from palestra.types import ToolError

# The sandbox opens nothing outside of its work folder, follows no link, and waits for no FIFO.
_ROOT = "."
MAX_FILE_BYTES = 1 << 20
MAX_ENTRIES = 200
_MAX_LINE_CHARS = 2000
_CONTEXT_LINES = 4

T = TypeVar("T")


@tool
async def files(
    command: Literal["view", "create", "str_replace", "insert"],
    path: str,
    sandbox: Sandbox,
    file_text: str | None = None,
    old_str: str | None = None,
    new_str: str | None = None,
    insert_line: int | None = None,
    insert_text: str | None = None,
    view_range: list[int] | None = None,
) -> str:
    """View and edit text files, relative to the work folder.

    `view` shows a file with line numbers, or a folder; `create` writes `file_text`, over what was
    there; `str_replace` puts `new_str` in the place of `old_str`, which must occur exactly once;
    `insert` puts `insert_text` after line `insert_line` (0: at the beginning).

    Args:
        view_range: First and last line to view, e.g. [10, 20]; -1 is the last line.
    """
    match command:
        case "view":
            return await _view(sandbox, path, view_range)
        case "create":
            await _write(sandbox, path, _needed(file_text, "file_text", command))
            return f"wrote {path}"
        case "str_replace":
            old = _needed(old_str, "old_str", command)
            return await _edit(sandbox, path, lambda text: _replace(text, old, new_str or ""))
        case _:
            line = _needed(insert_line, "insert_line", command)
            new = _needed(insert_text, "insert_text", command)
            return await _edit(sandbox, path, lambda text: _insert(text, line, new))


def _needed(value: T | None, name: str, command: str) -> T:
    if value is None:
        raise ToolError(f"{command} needs {name}")
    return value


async def _view(sandbox: Sandbox, path: str, view_range: list[int] | None) -> str:
    try:
        entries = await sandbox.list(path, within=_ROOT)
    except NotADirectoryError:
        text = await _read(sandbox, path)
        return _numbered(text, *_span(text, view_range))
    except OSError as error:
        raise ToolError(_complaint(error, path)) from None
    if view_range is not None:
        raise ToolError(f"{path} is a folder: view_range is for files")
    return await _tree(sandbox, path, entries)


async def _read(sandbox: Sandbox, path: str) -> str:
    try:
        data = await sandbox.read(path, within=_ROOT)
    except OSError as error:
        raise ToolError(_complaint(error, path)) from None
    if b"\0" in data:
        raise ToolError(f"{path} is a binary file of {len(data):,} bytes: not shown")
    if len(data) > MAX_FILE_BYTES:
        raise ToolError(
            f"{path} has {len(data):,} bytes, more than the {MAX_FILE_BYTES:,} that can be viewed "
            "or edited"
        )
    # What is not UTF-8 comes back as it was when the file is written again.
    return data.decode("utf-8", "surrogateescape")


async def _write(sandbox: Sandbox, path: str, text: str) -> None:
    try:
        await sandbox.write(path, text, within=_ROOT)
    except OSError as error:
        raise ToolError(_complaint(error, path)) from None


async def _edit(sandbox: Sandbox, path: str, edit: Callable[[str], tuple[str, int, int]]) -> str:
    """Write what `edit` makes of the text; show the lines it has changed (first, last)."""
    text, first, last = edit(await _read(sandbox, path))
    await _write(sandbox, path, text)
    count = len(text.split("\n"))
    first, last = max(1, first - _CONTEXT_LINES), min(count, last + _CONTEXT_LINES)
    return f"edited {path}:\n{_numbered(text, first, last)}"


def _replace(text: str, old: str, new: str) -> tuple[str, int, int]:
    if not old:
        raise ToolError("old_str is empty: give the text to replace")
    count = text.count(old)
    if count == 0:
        ending = " (its lines end in \\r\\n)" if "\r\n" in text and "\n" in old else ""
        raise ToolError(f"old_str does not occur in the file{ending}: nothing was changed")
    if count > 1:
        raise ToolError(
            f"old_str occurs {count} times: nothing was changed, add lines around it until it is "
            "unique"
        )
    before, _, after = text.partition(old)
    first = before.count("\n") + 1
    return before + new + after, first, first + new.count("\n")


def _insert(text: str, line: int, new: str) -> tuple[str, int, int]:
    lines = _lines(text)
    if not 0 <= line <= len(lines):
        raise ToolError(f"insert_line must be from 0 to {len(lines)}, got {line}")
    if line and not lines[line - 1].endswith("\n"):
        lines[line - 1] += "\n"
    new = new if new.endswith("\n") else new + "\n"
    return "".join((*lines[:line], new, *lines[line:])), line + 1, line + new.count("\n")


def _lines(text: str) -> list[str]:
    """Lines with their ends. (`splitlines` also splits at form feeds, U+2028 and others.)"""
    *lines, last = text.split("\n")
    return [line + "\n" for line in lines] + ([last] if last else [])


def _span(text: str, view_range: list[int] | None) -> tuple[int, int]:
    count = len(text.split("\n")) - text.endswith("\n")
    if view_range is None:
        return 1, count
    if len(view_range) != 2:
        raise ToolError("view_range is a first and a last line, e.g. [10, 20]")
    first, last = view_range
    last = count if last == -1 else last
    if not 1 <= first <= last <= max(1, count):
        raise ToolError(f"view_range must lie within the {count} lines, got {view_range}")
    return first, last


def _numbered(text: str, first: int, last: int) -> str:
    """Lines as `cat -n` prints them; the middle of too many is left out."""
    lines = text.split("\n")
    shown = _fitting(lines, range(first, last + 1))
    end = _fitting(lines, range(last, first + len(shown) - 1, -1))[::-1]
    skipped = (last - first + 1) - len(shown) - len(end)
    if skipped:
        start = first + len(shown)
        shown.append(f"[… lines {start} to {start + skipped - 1} left out: see view_range …]")
    return "\n".join((*shown, *end))


def _fitting(lines: list[str], numbers: range) -> list[str]:
    """As many of the numbered lines as half of an answer has room for."""
    shown: list[str] = []
    room = MAX_OUTPUT_CHARS // 2 - 100
    for number in numbers:
        line = f"{number:6}\t{shortened(lines[number - 1], _MAX_LINE_CHARS)}"
        room -= len(line) + 1
        if room < 0:
            break
        shown.append(line)
    return shown


async def _tree(sandbox: Sandbox, path: str, entries: tuple[FileInfo, ...]) -> str:
    """Two levels of a folder, hidden entries left out."""
    lines: list[str] = []
    for entry in _visible(entries):
        lines.append(_label(entry))
        if entry.kind == "folder" and len(lines) < MAX_ENTRIES:
            try:
                below = await sandbox.list(f"{path}/{entry.name}", within=_ROOT)
            except OSError:  # gone, or not ours to read
                continue
            lines += ["  " + _label(inner) for inner in _visible(below)]
        if len(lines) > MAX_ENTRIES:
            lines[MAX_ENTRIES:] = ["[… more entries left out …]"]
            break
    return "\n".join(lines) or "[an empty folder]"


def _visible(entries: tuple[FileInfo, ...]) -> list[FileInfo]:
    return [entry for entry in entries if not entry.name.startswith(".")]


def _label(entry: FileInfo) -> str:
    # A name may hold line breaks and worse.
    name = entry.name if entry.name.isprintable() else ascii(entry.name)
    match entry.kind:
        case "folder":
            return f"{name}/"
        case "file":
            return f"{name} ({entry.size_bytes:,} bytes)"
        case "link":
            return f"{name} (symbolic link)"
    return f"{name} (not a regular file)"


def _complaint(error: OSError, path: str) -> str:
    return str(error) if isinstance(error, FileRefused) else f"{path}: {error.strerror}"
