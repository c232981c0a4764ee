"""Read what a run has written, whatever state it is in."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from palestra.view.visible import visible, visible_value

Row = dict[str, Any]
LARGEST = 1e100  # sums and products of numbers below it stay finite


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFiles:
    """A run's files; `summary` is None while the run is unfinished.

    `metrics` has one row for each stage and step, in the order of steps: where a resumed run
    repeated a step, the last row counts.
    """

    name: str
    config: Mapping[str, Any]
    summary: Mapping[str, Any] | None
    metrics: Mapping[str, list[Row]]  # by stage
    notices: list[str]


def read_run(run_dir: Path) -> RunFiles:
    """Read the small files of a run (not its transcripts).

    Raises:
        ValueError: there is no such directory, or it holds no `metrics.jsonl`.
    """
    if not run_dir.is_dir():
        raise ValueError(f"no run directory at {run_dir}: name one that palestra wrote")
    metrics_path = run_dir / "metrics.jsonl"
    if not metrics_path.is_file():
        raise ValueError(f"no metrics.jsonl in {run_dir}: is it the directory of a run?")
    notices: list[str] = []
    return RunFiles(
        name=visible(run_dir.resolve().name, 200),
        config=_config(run_dir / "config.toml", notices) or {},
        summary=_summary(run_dir / "summary.json", notices),
        metrics=_metrics(metrics_path, notices),
        notices=notices,
    )


def json_lines(path: Path) -> Iterator[tuple[int, Row | None]]:
    """Each line's offset in the file and its object, None for a line that is not one.

    A last line without its newline is being written, or was torn by a crash: if it cannot be read
    it is left out.
    """
    with path.open("rb") as file:
        offset = 0
        for line in file:
            row = parse_line(line)
            if line.strip() and (row is not None or line.endswith(b"\n")):
                yield offset, row
            offset += len(line)


def parse_line(line: bytes) -> Row | None:
    """The JSON object on a line, or None."""
    try:
        value = json.loads(line.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def finite(value: Any) -> float | None:
    """A number that can be drawn, or None: not NaN, boolean, absurdly large or anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if -LARGEST < value < LARGEST else None  # also None for NaN


def flat_rows(table: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested tables as rows of dotted key and text: `{"rl": {"steps": 60}}` → `rl.steps`, `60`."""
    rows: list[tuple[str, str]] = []
    for key, value in table.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value and prefix.count(".") < 8:
            rows += flat_rows(value, f"{name}.")
        else:
            rows.append((visible(name, 200), visible_value(value)))
    return rows


def _config(path: Path, notices: list[str]) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        notices.append("config.toml could not be read.")
        return None


def _summary(path: Path, notices: list[str]) -> Row | None:
    if not path.is_file():
        return None
    summary = parse_line(path.read_bytes())
    if summary is None:
        notices.append("summary.json could not be read.")
    return summary


def _metrics(path: Path, notices: list[str]) -> dict[str, list[Row]]:
    by_step: dict[str, dict[float, Row]] = {}
    unreadable = 0
    for _, row in json_lines(path):
        step = finite(row.get("step")) if row else None
        if row is None or step is None:
            unreadable += 1
            continue
        by_step.setdefault(str(row.get("stage", "rl")), {})[step] = row
    if unreadable:
        notices.append(f"Unreadable lines of metrics.jsonl left out: {unreadable}.")
    return {stage: [rows[step] for step in sorted(rows)] for stage, rows in by_step.items()}
