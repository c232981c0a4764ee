"""A small run's files, and a real browser to look at its report with."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
    "--virtual-time-budget=3000",
    "--dump-dom",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """The DOM after the scripts ran, and what the browser's console said."""

    dom: str
    console: list[str]


Browse = Callable[..., Seen]


@pytest.fixture
def browse(tmp_path: Path) -> Browse:
    """Open a page in headless Chromium with a profile of its own."""
    if CHROMIUM is None:
        pytest.skip("chromium is not installed (Debian: apt-get install chromium)")

    def open_page(page: Path, *flags: str) -> Seen:
        profile = tmp_path / "profile"
        command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", *flags, page.as_uri()]
        done = subprocess.run(command, capture_output=True, timeout=120, check=True)
        shutil.rmtree(profile, ignore_errors=True)
        lines = done.stderr.decode("utf-8", "replace").splitlines()
        return Seen(
            dom=done.stdout.decode("utf-8", "replace"),
            console=[line for line in lines if ":CONSOLE" in line],
        )

    return open_page


SUMMARY = {
    "env_id": "palestra/Add-v0",
    "heldout_before": 0.70,
    "heldout_before_low": 0.66,
    "heldout_before_high": 0.74,
    "heldout_after": 0.96,
    "heldout_after_low": 0.94,
    "heldout_after_high": 0.98,
    "heldout_n": 500,
    "control_gain": None,
    "wall_s": 171.3,
    "peak_memory_mb": 912.4,
    "seed": 0,
}
CONFIG = 'env_id = "palestra/Add-v0"\n[rl]\ngroup_size = 8\n'
EPISODE = {
    "step": 1,
    "stage": "rl",
    "label": "train",
    "episode_id": "e1",
    "task_id": "add-1",
    "group": "g1",
    "answer": "42",
    "reply": "42",
    "reward": 1.0,
    "score": 1.0,
    "outcome": "scored",
    "stop_reason": "answer",
    "tokens": [
        ["17+25?\n", "prompt", None, None, None],
        ["<tool_call>", "sampled", -0.25, -0.2501, 0.75],
        ["42", "tool", None, None, None],
        ["42", "sampled", -2.0, -2.0001, 0.75],
    ],
}
RL_ROW = {
    "stage": "rl",
    "reward_mean": 0.5,
    "score_mean": 0.5,
    "turns_mean": 3.1,
    "tool_errors": {"bad_json": 5, "cut": 1},
    "masked": {},
    "logprob_diff_mean": 1e-7,
    "logprob_diff_max": 1e-5,
    "entropy": 0.1,
    "loss": 0.01,
    "groups_kept": 3,
    "groups_dropped": 1,
    "seconds_sample": 0.5,
    "seconds_train": 0.25,
}
Rows = list[dict[str, Any]]
WriteRun = Callable[..., Path]


@pytest.fixture
def episode() -> dict[str, Any]:
    """A line of transcripts.jsonl: one tool call's worth of tokens."""
    return dict(EPISODE)


@pytest.fixture
def rl_row() -> dict[str, Any]:
    """A line of metrics.jsonl, but for its step."""
    return dict(RL_ROW)


@pytest.fixture
def write_run(tmp_path: Path) -> WriteRun:
    """Write a run's files; a finished run of five steps where nothing else is asked for."""
    heldout = {"heldout": 0.9, "heldout_low": 0.87, "heldout_high": 0.92}
    five = [{**RL_ROW, "step": step, **(heldout if step % 2 else {})} for step in range(1, 6)]
    sft = [{"stage": "sft", "step": step, "loss": 1 / step} for step in range(1, 4)]

    def write(
        *,
        metrics: Rows | None = None,
        transcripts: Rows | None = None,
        summary: dict[str, Any] | None = None,
        config: str = CONFIG,
    ) -> Path:
        run = tmp_path / "run"
        run.mkdir()
        (run / "config.toml").write_text(config, encoding="utf-8")
        (run / "summary.json").write_text(json.dumps(SUMMARY if summary is None else summary))
        for name, rows in {
            "metrics": [*sft, *five] if metrics is None else metrics,
            "transcripts": [EPISODE | {"label": "before", "step": 0}, EPISODE]
            if transcripts is None
            else transcripts,
        }.items():
            (run / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return run

    return write
