"""The `python` tool in real sandboxes: what a REPL shows."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from palestra.tools import python
from palestra.types import ToolResult

Play = Callable[..., list[ToolResult]]

quick = python.with_options(timeout_s=0.5)


def test_the_model_sees_only_the_code() -> None:
    assert python.parameters == {
        "type": "object",
        "properties": {"code": {"type": "string"}},
        "required": ["code"],
    }


@pytest.mark.parametrize(
    ("code", "shown"),
    [
        ("x = 1", "[no output]"),
        ("1 + 1", "2"),
        ("print('a'); 'b'", "a\n'b'"),
        ("import sys; print('e', file=sys.stderr)", "e"),
        ("None", "[no output]"),
        ("print('a\\0b')", "[binary output, 4 bytes, not shown]"),
    ],
)
def test_output_and_the_last_value_are_shown(play: Play, code: str, shown: str) -> None:
    (result,) = play((python, {"code": code}))
    assert (result.error, result.content) == (None, shown)


def test_variables_live_on_and_a_traceback_is_an_answer(play: Play) -> None:
    _, raised, value = play(
        (python, {"code": "x = 41"}),
        (python, {"code": "print('before')\n1 / 0"}),
        (python, {"code": "x + 1"}),
    )
    assert raised.error is None
    assert raised.content.startswith("before\nTraceback (most recent call last):\n")
    assert raised.content.endswith("ZeroDivisionError: division by zero")
    assert value.content == "42"


def test_a_call_past_its_deadline_answers_with_what_it_has(play: Play) -> None:
    _, late, after = play(
        (python, {"code": "x = 5"}),
        (quick, {"code": "print('partial', flush=True)\nwhile True: pass"}),
        (python, {"code": "x"}),
    )
    assert late.error == "timeout"
    assert late.content.startswith("partial\n")
    assert late.content.endswith("[timed out after 0.5 s]")
    assert after.content == "5"  # it was interrupted, not killed


def test_lost_variables_are_told_twice(play: Play) -> None:
    _, killed, after = play(
        (python, {"code": "x = 5"}),
        (python, {"code": "import os; os.kill(os.getpid(), 11)"}),
        (python, {"code": "'x' in globals()"}),
    )
    assert killed.error == "resources"
    assert "the session ended, killed by SIGSEGV: its variables are gone" in killed.content
    assert after.error is None
    assert after.content.startswith("[the session had ended: a new one begins")
    assert after.content.endswith("\nFalse")


def test_long_output_loses_its_middle_with_a_note(play: Play) -> None:
    (result,) = play((python, {"code": "print('a' * 50_000 + 'end')"}))
    assert len(result.content) < 20_000
    assert result.content.startswith("aaa")
    assert "characters cut" in result.content
    assert result.content.endswith("aend")
