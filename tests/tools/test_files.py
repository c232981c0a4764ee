"""The `files` tool in real sandboxes, against files that are hostile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from palestra.tools import bash, files
from palestra.types import ToolResult

Play = Callable[..., list[ToolResult]]


def edit(play: Play, *calls: dict[str, Any], before: str = "true") -> list[ToolResult]:
    """The results of the calls, after a shell command."""
    return play((bash, {"command": before}), *((files, call) for call in calls))[1:]


def view(path: str, **more: Any) -> dict[str, Any]:
    return {"command": "view", "path": path, **more}


def create(path: str, text: str) -> dict[str, Any]:
    return {"command": "create", "path": path, "file_text": text}


def replace(path: str, old: str, new: str) -> dict[str, Any]:
    return {"command": "str_replace", "path": path, "old_str": old, "new_str": new}


def insert(path: str, line: int, text: str) -> dict[str, Any]:
    return {"command": "insert", "path": path, "insert_line": line, "insert_text": text}


def test_a_file_is_made_with_its_folders_and_viewed_with_line_numbers(play: Play) -> None:
    made, whole, part, end = edit(
        play,
        create("a/b/c.txt", "one\ntwo\nthree\n"),
        view("a/b/c.txt"),
        view("a/b/c.txt", view_range=[2, 2]),
        view("a/b/c.txt", view_range=[2, -1]),
    )
    assert made.content == "wrote a/b/c.txt"
    assert whole.content == "     1\tone\n     2\ttwo\n     3\tthree"
    assert part.content == "     2\ttwo"
    assert end.content == "     2\ttwo\n     3\tthree"


def test_replacing_wants_exactly_one_match(play: Play) -> None:
    _, none, many, one, after = edit(
        play,
        create("f", "a\nb\na\n"),
        replace("f", "x", "y"),
        replace("f", "a", "y"),
        replace("f", "b\na", "c\nd\ne"),
        view("f"),
    )
    assert (none.error, many.error, one.error) == ("tool_error", "tool_error", None)
    assert "does not occur" in none.content
    assert "occurs 2 times" in many.content
    assert one.content == "edited f:\n     1\ta\n     2\tc\n     3\td\n     4\te\n     5\t"
    assert after.content == "     1\ta\n     2\tc\n     3\td\n     4\te"


def test_insertion_goes_after_the_line(play: Play) -> None:
    *_, first, last, after, beyond = edit(
        play,
        create("f", "b\nc"),
        insert("f", 0, "a"),
        insert("f", 3, "d\ne"),
        view("f"),
        insert("f", 9, "x"),
    )
    assert (first.error, last.error) == (None, None)
    assert after.content == "     1\ta\n     2\tb\n     3\tc\n     4\td\n     5\te"
    assert beyond.content == "insert_line must be from 0 to 5, got 9"


def test_bytes_that_are_no_text_survive_an_edit(play: Play) -> None:
    edited, shown = edit(
        play,
        replace("f", "old", "new"),
        view("f"),
        before=r"printf 'caf\xe9 old\r\n\f' > f",
    )
    assert edited.error is None
    assert shown.content.startswith("     1\tcaf� new\r")
    (dump,) = play((bash, {"command": r"printf 'caf\xe9 old\r\n' > g; od -An -tx1 g"}))
    assert "e9" in dump.content


def test_a_folder_is_listed_two_levels_deep_without_hidden_entries(play: Play) -> None:
    (result,) = edit(
        play,
        view("d"),
        before="mkdir -p d/a/b/c; echo hi > d/a/f; ln -s /etc d/link; mkfifo d/fifo; "
        "touch d/.hidden $'d/new\\nline'",
    )
    assert result.content == (
        "a/\n  b/\n  f (3 bytes)\nfifo (not a regular file)\nlink (symbolic link)\n"
        "'new\\nline' (0 bytes)"
    )


@pytest.mark.parametrize(
    ("path", "before", "complaint"),
    [
        ("../../etc/passwd", "true", "outside"),
        ("/etc/passwd", "true", "outside"),
        ("link", "ln -s /etc/passwd link", "symbolic link"),
        ("folder/passwd", "ln -s /etc folder", "symbolic link"),
        ("fifo", "mkfifo fifo", "not a regular file"),
        ("missing", "true", "No such file"),
        ("data", r"printf '\0\1' > data", "binary file of 2 bytes"),
        ("large", "head -c 2000000 /dev/zero | tr '\\0' a > large", "2,000,000 bytes"),
        ("f/g", "touch f", "Not a directory"),
        ("", "true", "needs at least one character"),
        ("a\0b", "true", "no NUL"),
    ],
)
@pytest.mark.timeout(60)
def test_what_is_no_file_of_the_work_folder_is_refused(
    play: Play, path: str, before: str, complaint: str
) -> None:
    viewed, replaced = edit(play, view(path), replace(path, "root", "toor"), before=before)
    assert (viewed.error, replaced.error) == ("tool_error", "tool_error")
    assert complaint in viewed.content
    assert complaint in replaced.content


def test_nothing_is_written_through_a_link(play: Play) -> None:
    made, seen = play(
        (bash, {"command": "mkdir d; echo safe > d/target; ln -s d/target link; ln -s d way"}),
        (files, create("link", "x")),
        (files, create("way/target", "x")),
        (bash, {"command": "cat d/target"}),
    )[1::2]
    assert made.error == "tool_error"
    assert seen.content == "safe"


def test_the_middle_of_a_long_file_is_left_out(play: Play) -> None:
    (result,) = edit(play, view("f"), before="seq 100000 > f")
    assert result.content.startswith("     1\t1\n     2\t2\n")
    assert "left out: see view_range" in result.content
    assert result.content.endswith("\n100000\t100000")
    assert len(result.content) < 17_000


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        ({"command": "create", "path": "f"}, "create needs file_text"),
        ({"command": "str_replace", "path": "f"}, "str_replace needs old_str"),
        ({"command": "insert", "path": "f", "insert_text": "x"}, "insert needs insert_line"),
        ({"command": "view", "path": "f", "view_range": [3, 2]}, "must lie within the 1 lines"),
        ({"command": "view", "path": "f", "view_range": [1]}, "a first and a last line"),
        ({"command": "view", "path": ".", "view_range": [1, 2]}, "is a folder"),
        ({"command": "str_replace", "path": "f", "old_str": ""}, "old_str is empty"),
    ],
)
def test_what_is_missing_in_a_call_is_named(
    play: Play, call: dict[str, Any], complaint: str
) -> None:
    (result,) = edit(play, call, before="echo x > f")
    assert result.error == "tool_error"
    assert complaint in result.content
