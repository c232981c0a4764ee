import json
import tomllib
from pathlib import Path

import pytest

from palestra.trainer.config import SFTConfig, load_config
from palestra.trainer.run_dir import RunDir


def test_a_runs_config_starts_the_same_run_again(tmp_path: Path) -> None:
    config = SFTConfig(model="m", out=tmp_path / "run", data=Path("d.jsonl"), learning_rate=3e-4)
    with RunDir.begin(config):
        pass
    assert load_config(SFTConfig, tmp_path / "run" / "config.toml") == config


def test_metrics_go_to_jsonl_and_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with RunDir(tmp_path / "run") as run:
        run.log("rl", 1, {"reward_mean": 0.5, "masked": {"engine": 2}})
        run.log("rl", 2, {"reward_mean": 0.75, "masked": {}})
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    first = {"stage": "rl", "step": 1, "reward_mean": 0.5, "masked": {"engine": 2}}
    assert json.loads(lines[0]) == first
    board = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    board.Reload()
    assert [(e.step, e.value) for e in board.Scalars("rl/reward_mean")] == [(1, 0.5), (2, 0.75)]


def test_an_existing_run_is_never_written_over(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="exists already; choose another folder"):
        RunDir(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_checkpoint_appears_complete_or_not_at_all(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")

    def save(text: str) -> Path:
        def write(folder: Path) -> None:
            (folder / "weights").write_text(text)

        return run.checkpoint("best", write)

    def fail(folder: Path) -> None:
        (folder / "weights").write_text("half")
        raise OSError(28, "No space left on device")

    save("one")
    assert (save("two") / "weights").read_text() == "two"
    with pytest.raises(OSError, match="No space left"):
        run.checkpoint("best", fail)
    assert (tmp_path / "run" / "checkpoints" / "best" / "weights").read_text() == "two"


def test_the_summary_is_plain_json(tmp_path: Path) -> None:
    RunDir(tmp_path / "run").write_summary({"heldout_after": 0.97, "control_gain": None})
    text = (tmp_path / "run" / "summary.json").read_text()
    assert json.loads(text) == {"heldout_after": 0.97, "control_gain": None}


def test_config_toml_holds_the_stages_of_a_longer_run(tmp_path: Path) -> None:
    RunDir(tmp_path / "run").write_config({"sft": {"steps": 3}, "rl": {"steps": 4}})
    text = (tmp_path / "run" / "config.toml").read_text()
    assert tomllib.loads(text) == {"sft": {"steps": 3}, "rl": {"steps": 4}}
