"""The demo end to end, as a rehearsal: a few steps of everything, in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from palestra.demo import _demonstrate
from palestra.rollout.recorder import read_episodes
from palestra.trainer.config import RLConfig, SFTConfig, validate_config

COMMAND = str(Path(sys.executable).parent / "palestra")


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    run = tmp_path_factory.mktemp("demo") / "run"
    result = subprocess.run(
        [COMMAND, "demo", "--out", str(run), "--seed", "1", "--rehearsal", "--control"],
        capture_output=True,
        text=True,
        check=True,
    )
    return run, result.stdout


def test_the_summary_has_the_figures(rehearsal: tuple[Path, str]) -> None:
    run, _ = rehearsal
    summary = json.loads((run / "summary.json").read_text())
    for name in ("before", "after"):
        low, mean, high = (summary[f"heldout_{name}{end}"] for end in ("_low", "", "_high"))
        assert 0.0 <= low <= mean <= high <= 1.0
    assert summary["heldout_n"] == 16
    assert summary["control_gain"] == pytest.approx(
        summary["heldout_after"] - summary["heldout_before"]
    )
    assert summary["wall_s"] > 0
    assert 100 < summary["peak_memory_mb"] < 4096


def test_every_file_of_a_run_is_there_and_reads_back(rehearsal: tuple[Path, str]) -> None:
    import tomllib

    run, _ = rehearsal
    stages = [
        json.loads(line)["stage"] for line in (run / "metrics.jsonl").read_text().splitlines()
    ]
    assert stages == ["sft", "sft", "rl", "rl"]
    config = tomllib.loads((run / "config.toml").read_text())
    validate_config(SFTConfig, config["sft"], source="sft")
    validate_config(RLConfig, config["rl"], source="rl")
    for name in ("before", "after"):
        assert len(read_episodes(run / "episodes" / f"{name}.jsonl")) == 16
    labels = {
        json.loads(line)["label"] for line in (run / "transcripts.jsonl").read_text().splitlines()
    }
    assert {"before", "train", "after"} <= labels
    for name in ("sft", "best"):
        assert (run / "checkpoints" / name / "model.safetensors").is_file()
    assert "<title>" in (run / "report.html").read_text()


def test_a_seed_always_has_the_same_demonstrations(tmp_path: Path) -> None:
    for name in ("first", "again"):
        _demonstrate(tmp_path / name, seed=2, count=300)
    _demonstrate(tmp_path / "other", seed=3, count=300)
    first, again, other = ((tmp_path / name).read_bytes() for name in ("first", "again", "other"))
    assert first == again != other
    assert first.count(b"\n") == 300


def test_what_is_printed_is_a_table_and_where_things_are(rehearsal: tuple[Path, str]) -> None:
    run, printed = rehearsal
    assert "held-out success" in printed and "after GRPO" in printed
    assert f"report:     {run / 'report.html'}" in printed


def test_the_checkpoint_plays_in_palestra_eval(rehearsal: tuple[Path, str]) -> None:
    run, _ = rehearsal
    checkpoint = str(run / "checkpoints" / "best")
    options = ["--n", "4", "--json", "--max-tokens", "16", "--model", checkpoint]
    result = subprocess.run(
        [COMMAND, "eval", "palestra/Arithmetic-v0", *options],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(result.stdout)["n"] == 4


def test_an_existing_folder_is_refused_and_kept(rehearsal: tuple[Path, str]) -> None:
    run, _ = rehearsal
    before = (run / "summary.json").read_bytes()
    result = subprocess.run([COMMAND, "demo", "--out", str(run)], capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1 and "exists already" in result.stderr
    assert (run / "summary.json").read_bytes() == before
