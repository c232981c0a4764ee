"""Interrupted stages that go on: the same weights, to the last bit, as if nothing had happened."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from palestra.trainer import train_rl, train_sft
from palestra.trainer.config import RLConfig, SFTConfig
from palestra.trainer.run_dir import RunDir, has_state
from palestra.trainer.saved_state import find_state

ENV = "palestra/Arithmetic-v0"
LIMITS: dict[str, Any] = {"context_length": 256, "max_tokens": 16, "eval_every": 2, "eval_tasks": 8}


def sft_config(out: Path, data: Path, **settings: Any) -> SFTConfig:
    defaults = {"steps": 7, "batch_rows": 60, "learning_rate": 2e-3, "save_every": 2, "env": ENV}
    return SFTConfig(out=out, data=data, model="tiny", **{**LIMITS, **defaults, **settings})


def rl_config(out: Path, model: Path, **settings: Any) -> RLConfig:
    defaults = {"steps": 5, "tasks_per_step": 4, "group_size": 4, "revisit": 0.5, "minibatches": 2}
    # A second turn meets other neighbours in the engine's batch each time: last digits differ.
    more = {
        "max_turns": 1,
        "learning_rate": 1e-3,
        "kl_coefficient": 0.01,
        "save_every": 2,
        **LIMITS,
    }
    return RLConfig(out=out, model=str(model), env=ENV, **{**defaults, **more, **settings})


def interrupt_after(steps: int) -> Callable[[int, Any], None]:
    def progress(step: int, _: Any) -> None:
        if step == steps:
            raise KeyboardInterrupt

    return progress


def metrics(run: Path) -> list[dict[str, Any]]:
    """The row of each step, without how long things took."""
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{name: v for name, v in row.items() if not name.startswith("seconds")} for row in rows]


def weights(run: Path, name: str) -> bytes:
    return (run / "checkpoints" / name / "model.safetensors").read_bytes()


def moments(run: Path) -> Any:
    return torch.load(run / "checkpoints" / "last" / "optimizer.pt", weights_only=True)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else bool(one == other)


def summary(run: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((run / "summary.json").read_text())
    values.pop("checkpoint")
    return values


@pytest.fixture(scope="module")
def whole_sft(tmp_path_factory: pytest.TempPathFactory, demonstrations: Path) -> Path:
    out = tmp_path_factory.mktemp("sft") / "whole"
    train_sft.train(sft_config(out, demonstrations))
    return out


@pytest.fixture(scope="module")
def whole_rl(tmp_path_factory: pytest.TempPathFactory, imitator: Path) -> Path:
    out = tmp_path_factory.mktemp("rl") / "whole"
    train_rl.train(rl_config(out, imitator))
    return out


@pytest.mark.parametrize("stopped_at", [3, 5])
def test_sft_resumed_is_bit_for_bit_the_uninterrupted_run(
    tmp_path: Path, demonstrations: Path, whole_sft: Path, stopped_at: int
) -> None:
    config = sft_config(tmp_path / "run", demonstrations)
    with pytest.raises(KeyboardInterrupt):
        train_sft.train(config, progress=interrupt_after(stopped_at))
    seen: list[int] = []
    result = train_sft.train(config, resume=True, progress=lambda step, _: seen.append(step))
    assert seen == list(range(stopped_at // 2 * 2, 8))  # from the last state, saved every two
    assert result.steps == 7
    assert weights(config.out, "sft") == weights(whole_sft, "sft")
    assert metrics(config.out) == metrics(whole_sft)
    assert summary(config.out) == summary(whole_sft)


@pytest.mark.parametrize("kept", ["all", "half", "none"])
def test_rl_of_single_turns_resumed_is_bit_for_bit_the_uninterrupted_run(
    tmp_path: Path, imitator: Path, whole_rl: Path, kept: str
) -> None:
    config = rl_config(tmp_path / "run", imitator)
    with pytest.raises(KeyboardInterrupt):
        train_rl.train(config, progress=interrupt_after(3))
    recorded = config.out / "episodes" / "step_00003.jsonl"
    before = recorded.read_text().splitlines(keepends=True)
    if kept == "half":  # it was being sampled
        recorded.write_text("".join(before[::2]))
    elif kept == "none":
        recorded.unlink()
    result = train_rl.train(config, resume=True)
    assert (result.steps, len(metrics(config.out))) == (5, 5)
    assert metrics(config.out) == metrics(whole_rl)
    for name in ("last", "best"):
        assert weights(config.out, name) == weights(whole_rl, name)
    assert same(moments(config.out), moments(whole_rl))
    assert summary(config.out) == summary(whole_rl)
    # What had been sampled already was trained on again, not sampled again.
    again = recorded.read_text().splitlines(keepends=True)
    assert len(again) == len(before) == 16
    if kept == "all":
        assert again == before
    elif kept == "half":
        assert again[:8] == before[::2]
    rows = map(json.loads, (config.out / "transcripts.jsonl").read_text().splitlines())
    shown = [(row["step"], row["episode_id"]) for row in rows]
    assert len(shown) == len(set(shown)) > 0


def test_rl_of_several_turns_goes_on_with_every_episode_once(
    tmp_path: Path, imitator: Path
) -> None:
    config = rl_config(tmp_path / "run", imitator, max_turns=3)
    with pytest.raises(KeyboardInterrupt):
        train_rl.train(config, progress=interrupt_after(3))
    train_rl.train(config, resume=True)
    assert [row["step"] for row in metrics(config.out)] == [1, 2, 3, 4, 5]
    for step in range(1, 6):
        lines = (config.out / "episodes" / f"step_{step:05d}.jsonl").read_text().splitlines()
        assert len({json.loads(line)["id"] for line in lines}) == len(lines) == 16


def test_a_run_interrupted_twice_goes_on_twice(
    tmp_path: Path, imitator: Path, whole_rl: Path
) -> None:
    config = rl_config(tmp_path / "run", imitator, save_every=1)
    with pytest.raises(KeyboardInterrupt):
        train_rl.train(config, progress=interrupt_after(2))
    with pytest.raises(KeyboardInterrupt):
        train_rl.train(config, resume=True, progress=interrupt_after(4))
    train_rl.train(config, resume=True)
    assert weights(config.out, "last") == weights(whole_rl, "last")
    assert weights(config.out, "best") == weights(whole_rl, "best")


def test_a_better_checkpoint_than_the_state_knew_of_keeps_its_score(
    tmp_path: Path, imitator: Path
) -> None:
    config = rl_config(tmp_path / "run", imitator, steps=3)
    with pytest.raises(KeyboardInterrupt):  # the last step is evaluated, but not saved
        train_rl.train(config, progress=interrupt_after(3))
    path = config.out / "checkpoints" / "best" / "evaluation.json"
    better = {**json.loads(path.read_text()), "step": 3, "mean": 1.0}
    path.write_text(json.dumps(better))
    kept = weights(config.out, "best")
    result = train_rl.train(config, resume=True)
    assert (result.best_step, result.best.mean) == (3, 1.0)
    assert weights(config.out, "best") == kept


def test_a_stage_of_a_larger_run_saves_no_state(tmp_path: Path, demonstrations: Path) -> None:
    with RunDir(tmp_path / "run") as run:
        train_sft.train(sft_config(run.path, demonstrations, steps=3), run=run)
    assert not has_state(run.path)


def test_speed_and_length_may_change_but_not_what_is_learned(
    tmp_path: Path, demonstrations: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = sft_config(tmp_path / "run", demonstrations, steps=3)
    train_sft.train(config)
    with pytest.raises(ValueError, match="is finished: raise steps to train on"):
        train_sft.train(config, resume=True)
    monkeypatch.chdir(tmp_path)
    near = Path(os.path.relpath(demonstrations))
    longer = {"steps": 4, "micro_batch_tokens": 4096, "data": near}
    assert train_sft.train(config.model_copy(update=longer), resume=True).steps == 4
    assert [row["step"] for row in metrics(config.out)] == [1, 2, 3, 4]
    assert "steps = 4" in (config.out / "config.toml").read_text()
    with pytest.raises(ValueError, match=r"begun with seed = 0, not 1: resume it with the same"):
        train_sft.train(config.model_copy(update={"seed": 1}), resume=True)


def test_steps_are_fixed_where_the_learning_rate_falls_towards_the_last(
    tmp_path: Path, demonstrations: Path
) -> None:
    config = sft_config(tmp_path / "run", demonstrations, steps=3, learning_rate_end=0.1)
    train_sft.train(config)
    with pytest.raises(ValueError, match="begun with steps = 3, not 4"):
        find_state(config.model_copy(update={"steps": 4}))


def test_what_cannot_be_resumed_is_told(tmp_path: Path, demonstrations: Path) -> None:
    config = sft_config(tmp_path / "run", demonstrations, steps=3)
    with pytest.raises(ValueError, match=r"there is no run to resume in .*: start one without"):
        find_state(config)
    with pytest.raises(KeyboardInterrupt):
        train_sft.train(config, progress=interrupt_after(1))
    with pytest.raises(ValueError, match=r"has saved no state \(save_every = 2\): move it away"):
        find_state(config)
    shutil.rmtree(config.out)
    with pytest.raises(KeyboardInterrupt):
        train_sft.train(config, progress=interrupt_after(3))
    with pytest.raises(ValueError, match="has taken 2 steps of 2: raise steps to train on"):
        find_state(config.model_copy(update={"steps": 2}))


@pytest.mark.parametrize(
    ("file", "told"),
    [
        ("state.json", r"state.json cannot be read \(.*\): move the run away"),
        ("optimizer.pt", "optimizer.pt is missing or damaged: move the run away"),
        ("model.safetensors", "model.safetensors is missing or damaged: move the run away"),
    ],
)
def test_a_damaged_state_is_told_in_one_line(
    tmp_path: Path, demonstrations: Path, file: str, told: str
) -> None:
    config = sft_config(tmp_path / "run", demonstrations, steps=3)
    with pytest.raises(KeyboardInterrupt):
        train_sft.train(config, progress=interrupt_after(3))
    path = config.out / "checkpoints" / "last" / file
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(ValueError, match=told):
        train_sft.train(config, resume=True)


def test_demonstrations_that_changed_are_told(tmp_path: Path, demonstrations: Path) -> None:
    data = tmp_path / "data.jsonl"
    shutil.copy(demonstrations, data)
    config = sft_config(tmp_path / "run", data, steps=3)
    with pytest.raises(KeyboardInterrupt):
        train_sft.train(config, progress=interrupt_after(3))
    lines = data.read_text().splitlines(keepends=True)
    data.write_text("".join(reversed(lines)))
    with pytest.raises(ValueError, match="is not what the run was begun with: give the same"):
        train_sft.train(config, resume=True)


def test_a_crash_between_two_states_leaves_the_older(tmp_path: Path, demonstrations: Path) -> None:
    config = sft_config(tmp_path / "run", demonstrations, steps=3)
    with pytest.raises(KeyboardInterrupt):
        train_sft.train(config, progress=interrupt_after(3))
    last = config.out / "checkpoints" / "last"
    last.rename(last.with_name(".last.old"))
    last.with_name(".last.partial").mkdir()
    assert find_state(config).step == 2
    assert train_sft.train(config, resume=True).steps == 3


def test_a_step_of_which_nothing_is_scored_ends_the_run_and_is_sampled_again(
    tmp_path: Path, imitator: Path, whole_rl: Path
) -> None:
    config = rl_config(tmp_path / "run", imitator)
    recorded = config.out / "episodes" / "step_00003.jsonl"

    def spoil(step: int, _: Any) -> None:
        if step == 2:  # as if the engine had been away in step 3
            lines = (whole_rl / "episodes" / "step_00003.jsonl").read_text().splitlines()
            failed = [
                json.loads(line)
                | {"outcome": "failed", "cause": "engine", "attempt": attempt, "turns": []}
                for line in lines
                for attempt in (0, 1)
            ]
            recorded.write_text("".join(json.dumps(episode) + "\n" for episode in failed))

    told = r"none of the 32 episodes of step 3 was scored \({'engine': 32}\): see .*unscored"
    with pytest.raises(ValueError, match=told):
        train_rl.train(config, progress=spoil)
    assert (config.out / "episodes" / "step_00003.unscored.jsonl").exists()
    train_rl.train(config, resume=True)
    assert weights(config.out, "last") == weights(whole_rl, "last")


def test_a_run_has_one_writer(tmp_path: Path, demonstrations: Path) -> None:
    config = sft_config(tmp_path / "run", demonstrations, steps=4)
    told: list[str] = []

    def resume_too(step: int, _: Any) -> None:
        if step == 3:
            with pytest.raises(ValueError, match="another process writes to the run") as refused:
                train_sft.train(config, resume=True)
            told.append(str(refused.value))

    train_sft.train(config, progress=resume_too)
    assert told == [f"another process writes to the run in {config.out}: let it end first"]
    assert [row["step"] for row in metrics(config.out)] == [1, 2, 3, 4]


def test_a_run_that_could_go_on_says_so(tmp_path: Path, imitator: Path) -> None:
    config = rl_config(tmp_path / "run", imitator, steps=3)
    train_rl.train(config)
    with pytest.raises(ValueError, match=r"exists already; go on with it \(--resume\), choose"):
        train_rl.train(config)
    sft = sft_config(config.out, Path("d.jsonl"))
    with pytest.raises(
        ValueError, match=r"holds no run of this stage: .*config\.toml: \"data\" is missing"
    ):
        find_state(sft)


def test_what_a_resumed_run_writes_again_is_dropped(tmp_path: Path) -> None:
    config = SFTConfig(model="m", out=tmp_path / "run", data=Path("d.jsonl"))
    with RunDir.begin(config) as run:
        run.append("metrics.jsonl", {"step": 1, "said": "a\u2028b"})
        run.append("metrics.jsonl", {"step": 2})
        run.write_summary({"steps": 2})
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1}')  # cut off by a crash, at its very end
    with RunDir(run.path, exists=True) as run:
        run.go_on(config, 1)
        run.append("metrics.jsonl", {"step": 2, "loss": 0})
    lines = (run.path / "metrics.jsonl").read_text().split("\n")
    assert lines == ['{"step":1,"said":"a\u2028b"}', '{"step":2,"loss":0}', ""]
    assert not (run.path / "summary.json").exists()


@pytest.mark.slow
def test_a_killed_command_goes_on_with_resume(tmp_path: Path, demonstrations: Path) -> None:
    def command(name: str, *more: str) -> list[str]:
        palestra = "import sys; from palestra.cli import main; sys.exit(main())"
        config = tmp_path / f"{name}.toml"
        config.write_text(
            f'model = "tiny"\nout = "{tmp_path / name}"\ndata = "{demonstrations}"\nsteps = 60\n'
            "batch_rows = 16\nlearning_rate = 2e-3\ncontext_length = 256\nsave_every = 5\n"
        )
        return [sys.executable, "-c", palestra, "train", "sft", str(config), *more]

    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command("whole"), env=env, check=True, capture_output=True)
    child = subprocess.Popen(command("killed"), env=env, stderr=subprocess.DEVNULL)
    while not has_state(tmp_path / "killed"):
        assert child.poll() is None
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (tmp_path / "killed" / "summary.json").exists()
    refused = subprocess.run(command("killed"), env=env, capture_output=True, text=True)
    assert refused.returncode == 2 and "exists already" in refused.stderr
    subprocess.run(command("killed", "--resume"), env=env, check=True, capture_output=True)
    assert metrics(tmp_path / "killed") == metrics(tmp_path / "whole")
    assert weights(tmp_path / "killed", "sft") == weights(tmp_path / "whole", "sft")
