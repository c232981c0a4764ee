"""`palestra demo`: one command trains a tool agent, end to end, on a laptop.

A tiny model imitates a few demonstrations, then improves by GRPO in palestra/Arithmetic-v0, and is
evaluated before and after on tasks that no stage has seen.
"""

from __future__ import annotations

import asyncio
import os
import resource
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from palestra.rollout.evaluate import Evaluation
    from palestra.trainer.config import EngineName, RLConfig, SFTConfig
    from palestra.trainer.run_dir import RunDir
    from palestra.types import Task
    from palestra.view.progress import StageProgress

ENV_ID = "palestra/Arithmetic-v0"
DEMONSTRATIONS = 3000
# The first tasks of the test split decide when a stage ends and which checkpoint is best; the next
# ones take part in no decision and give the figures that are reported.
SELECTION_TASKS = 250
HELDOUT_TASKS = 1000
SHOWN_EPISODES = 8
# Training explores at temperature 1; every evaluation, before as after, samples at this one, as
# published evaluations do (DeepSeek-R1, arXiv 2501.12948). At 1 most failures of so small a model
# are tokens of probability below 0.001, not mistakes.
EVAL_TEMPERATURE = 0.6


def run_demo(
    out: Path | None = None,
    *,
    seed: int = 0,
    engine: EngineName = "hf",
    control: bool = False,
    rehearsal: bool = False,
) -> dict[str, Any]:
    """Train the tiny model and return the summary, which is also written to `summary.json`.

    Without `out` the run goes to a fresh dated folder under `runs/`. `control` deals the rewards
    out at random: a policy that still improved would betray a leak. `rehearsal` takes a few steps
    of everything, in seconds: all files are written, nothing is learned. `engine` is what samples
    for GRPO: "hf" in this process, or "vllm" or "sglang", which must be installed.

    Raises:
        ValueError: `out` exists and is not empty.
    """
    started, started_cpu = time.perf_counter(), time.process_time()
    # Two threads on two cores: more would wait for one another on matrices this small.
    os.environ.setdefault("OMP_NUM_THREADS", str(min(2, os.cpu_count() or 1)))
    # Threads that spin while they wait take ten times as long once anything else runs here.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from palestra.trainer.load import silence_transformers
    from palestra.trainer.run_dir import RunDir
    from palestra.view.progress import StageProgress
    from palestra.view.report import write_report

    silence_transformers()

    path = out or Path("runs") / f"demo-{datetime.now():%Y%m%d-%H%M%S}"
    with RunDir(path) as run:
        with StageProgress() as progress:
            summary = _train(run, seed, engine, control, rehearsal, progress)
        summary["wall_s"] = round(time.perf_counter() - started, 1)
        summary["cpu_s"] = round(time.process_time() - started_cpu, 1)
        summary["peak_memory_mb"] = _peak_memory_mb()
        summary["run"] = str(path)
        run.write_summary(summary)
    summary["report"] = str(write_report(path))
    return summary


def _train(
    run: RunDir,
    seed: int,
    engine: EngineName,
    control: bool,
    rehearsal: bool,
    progress: StageProgress,
) -> dict[str, Any]:
    from palestra.envs.arithmetic import arithmetic_tasks
    from palestra.trainer import train_rl, train_sft

    heldout = arithmetic_tasks("test")[SELECTION_TASKS : SELECTION_TASKS + HELDOUT_TASKS]
    sft_config, rl_config = stage_configs(run.path, seed, control, engine)
    demonstrations = DEMONSTRATIONS
    if rehearsal:
        few = {"steps": 2, "eval_every": 2, "eval_tasks": 8, "stop_at_success": None}
        sft_config = sft_config.model_copy(update={**few, "eval_below_loss": None})
        rl_config = rl_config.model_copy(update={**few, "tasks_per_step": 4})
        heldout, demonstrations = heldout[:16], 64
    count = _demonstrate(sft_config.data, seed, demonstrations)
    run.write_config({"sft": _plain(sft_config), "rl": _plain(rl_config)})

    sft = train_sft.train(sft_config, run=run, progress=progress.stage("imitate", sft_config.steps))
    before = _evaluate(run, rl_config, sft.checkpoint, heldout, "before", 0)
    progress.stage("before", None)(0, {"heldout": before.mean})
    rl = train_rl.train(rl_config, run=run, progress=progress.stage("improve", rl_config.steps))
    after = _evaluate(run, rl_config, rl.checkpoint, heldout, "after", rl.best_step)
    progress.stage("after", None)(0, {"heldout": after.mean})

    summary: dict[str, Any] = {"env_id": ENV_ID, "seed": seed, "engine": engine}
    for name, evaluation in {"before": before, "after": after}.items():
        summary[f"heldout_{name}"] = round(evaluation.mean, 4)
        summary[f"heldout_{name}_low"] = round(evaluation.low, 4)
        summary[f"heldout_{name}_high"] = round(evaluation.high, 4)
    gain = round(after.mean - before.mean, 4)
    return {
        **summary,
        "heldout_n": after.n,
        "eval_temperature": EVAL_TEMPERATURE,
        # Measured by a run with shuffled rewards only (benchmarks/demo.py).
        "control_gain": gain if control else None,
        "demonstrations": count,
        "sft_steps": sft.steps,
        "rl_steps": rl.steps,
        "best_step": rl.best_step,
        "checkpoint": str(rl.checkpoint),
    }


def stage_configs(
    out: Path, seed: int, control: bool, engine: EngineName = "hf"
) -> tuple[SFTConfig, RLConfig]:
    """The demo's two stages; `palestra train` runs the same from TOML."""
    from palestra.trainer.config import RLConfig, SFTConfig

    shared: dict[str, Any] = {
        "out": out,
        "seed": seed,
        "env": ENV_ID,
        "context_length": 256,
        # The longest reply that is called for has 10 tokens.
        "max_tokens": 16,
        "max_turns": 6,
        "eval_tasks": SELECTION_TASKS,
        "eval_temperature": EVAL_TEMPERATURE,
        # Activations of this size stay in a CPU's cache.
        "micro_batch_tokens": 4096,
    }
    sft = SFTConfig(
        **shared,
        model="tiny",
        data=out / "demonstrations.jsonl",
        steps=600,
        batch_rows=64,
        learning_rate=2e-3,
        warmup_steps=20,
        # Success appears suddenly, at a step that depends on the seed, and rises by up to 0.04 a
        # step; at this loss it is still below a half.
        eval_every=2,
        eval_below_loss=0.15,
        # Enough to be rewarded often, and clearly imperfect.
        stop_at_success=0.66,
    )
    rl = RLConfig(
        **shared,
        engine=engine,
        model=str(out / "checkpoints" / "sft"),
        steps=95,
        tasks_per_step=64,
        group_size=4,
        # Half of what the policy fails is a few kinds of numbers: they are worth coming back to.
        revisit=0.5,
        minibatches=3,
        learning_rate=4e-4,
        # The last steps bring most: the noise of large ones hides what was learned.
        learning_rate_end=0.05,
        warmup_steps=9,
        log_kl=True,
        eval_every=10,
        stop_at_success=0.985,
        shuffle_rewards=control,
    )
    return sft, rl


def _demonstrate(path: Path, seed: int, count: int) -> int:
    """Write demonstrations of an oracle, which knows each task's steps; returns how many."""
    from palestra import envs
    from palestra.envs.arithmetic import ArithmeticEnv, arithmetic_tasks
    from palestra.rollout.driver import rollout
    from palestra.rollout.policy import OraclePolicy
    from palestra.trainer.demonstrations import write_demonstrations

    tasks = arithmetic_tasks("train")
    first = seed * count % len(tasks)
    chosen = (*tasks, *tasks)[first : first + count]
    episodes = rollout(
        lambda: envs.make(ENV_ID),
        chosen,
        OraclePolicy(ArithmeticEnv.solve),
        max_concurrent=1,  # in the order of the tasks, so that a seed always trains the same
    )
    return asyncio.run(write_demonstrations(path, episodes))


def _evaluate(
    run: RunDir, config: RLConfig, model: Path, tasks: Sequence[Task], label: str, step: int
) -> Evaluation:
    """Success of a checkpoint on the held-out tasks, each tried once; shows a few transcripts."""
    from palestra.rollout.recorder import read_episodes
    from palestra.trainer.session import Session
    from palestra.trainer.transcripts import write_transcripts

    # One measure, whatever sampled for the training.
    session = Session.open(config.model_copy(update={"model": str(model), "engine": "hf"}))
    path = run.path / "episodes" / f"{label}.jsonl"
    try:
        evaluation = asyncio.run(
            session.evaluate(config, seed=config.seed + 1, tasks=tasks, record_to=path)
        )
        shown = read_episodes(path)[:SHOWN_EPISODES]
        write_transcripts(run, session, shown, "rl", step, label)
    finally:
        session.close()
    return evaluation


def _plain(config: SFTConfig | RLConfig) -> dict[str, Any]:
    return config.model_dump(mode="json", exclude_none=True)


def _peak_memory_mb() -> int:
    """The most resident memory this process has held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // 2**20 if sys.platform == "darwin" else peak // 2**10
