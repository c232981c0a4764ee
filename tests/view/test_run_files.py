"""Reading what a run wrote: torn lines, repeated steps, numbers that are none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from palestra.view.run_files import finite, flat_rows, json_lines, read_run
from palestra.view.visible import visible

WriteRun = Callable[..., Path]


def test_a_torn_last_line_is_left_out_silently(write_run: WriteRun) -> None:
    run = write_run()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "rl", "step": 6, "reward_me')
    files = read_run(run)
    assert [row["step"] for row in files.metrics["rl"]] == [1, 2, 3, 4, 5]
    assert files.notices == []


def test_an_unreadable_line_in_the_middle_is_told(write_run: WriteRun) -> None:
    run = write_run()
    text = (run / "metrics.jsonl").read_text()
    deep = "[" * 200_000
    (run / "metrics.jsonl").write_text(f'{{"torn": \n[1]\n{{"step": "one"}}\n{deep}\n' + text)
    files = read_run(run)
    assert len(files.metrics["rl"]) == 5
    assert files.notices == ["Unreadable lines of metrics.jsonl left out: 4."]


def test_a_repeated_step_counts_once_and_its_last_row_holds(write_run: WriteRun) -> None:
    rows = [{"stage": "rl", "step": step, "loss": loss} for step, loss in [(1, 1), (2, 2), (1, 3)]]
    files = read_run(write_run(metrics=rows))
    assert [(row["step"], row["loss"]) for row in files.metrics["rl"]] == [(1, 3), (2, 2)]


def test_malformed_config_and_summary_are_told(write_run: WriteRun) -> None:
    run = write_run(config="= 1")
    (run / "summary.json").write_text("{")
    files = read_run(run)
    assert files.summary is None
    assert files.config == {}
    assert files.notices == ["config.toml could not be read.", "summary.json could not be read."]


def test_offsets_lead_back_to_the_lines(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text('{"a": "é"}\n\n{"b": 2}\n', encoding="utf-8")
    content = path.read_bytes()
    for offset, row in json_lines(path):
        assert json.loads(content[offset:].splitlines()[0]) == row


@pytest.mark.parametrize(
    ("value", "number"),
    [(1, 1.0), (0.5, 0.5), (True, None), ("1", None), (None, None), (10**400, None)],
)
def test_finite_takes_only_numbers_that_can_be_drawn(value: Any, number: float | None) -> None:
    assert finite(value) == number


def test_finite_refuses_infinity_and_nan() -> None:
    assert finite(float("inf")) is finite(float("nan")) is None


def test_nested_tables_become_dotted_rows() -> None:
    table = {"seed": 0, "rl": {"steps": 60, "clip": {"low": 0.2}}, "names": ["a"], "empty": {}}
    assert flat_rows(table) == [
        ("seed", "0"),
        ("rl.steps", "60"),
        ("rl.clip.low", "0.2"),
        ("names", '["a"]'),
        ("empty", "{}"),
    ]


def test_what_cannot_be_seen_is_spelled_out() -> None:
    assert visible("a\x00b\x1b\r\x7f") == "a⟨U+0000⟩b⟨U+001B⟩⟨U+000D⟩⟨U+007F⟩"
    assert visible("\u202eevil\u2066\u200b\ufeff") == "⟨U+202E⟩evil⟨U+2066⟩⟨U+200B⟩⟨U+FEFF⟩"
    assert visible("\ud800\u2028\U000e0041") == "⟨U+D800⟩⟨U+2028⟩⟨U+E0041⟩"
    assert visible("naïve 数\n\t😀") == "naïve 数\n\t😀"


def test_long_text_is_cut_and_says_so() -> None:
    assert visible("x" * 1_000_000, 3) == "xxx⟨… 999,997 more characters⟩"
