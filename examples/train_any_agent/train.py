"""An agent that somebody has written with openai-agents is improved by GRPO, in one command.

The agent (agent.py) is not changed: it gets another base URL. A tiny model, made on the spot, is
warm-started on what the agent does with a teacher, then trained on the episodes that the agent
plays through the training gateway, and measured before and after on the same held-out tasks.

    python examples/train_any_agent/train.py --out runs/train-any-agent
"""

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Threads that spin while they wait take ten times as long once anything else runs here.
os.environ.setdefault("OMP_NUM_THREADS", str(min(2, os.cpu_count() or 1)))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))  # also for the names in the TOML files

from problems import ENV_ID, Teacher, problems  # noqa: E402

from palestra.rollout import ChatFormat, TokenPolicy, read_episodes  # noqa: E402
from palestra.rollout.paired import paired_difference  # noqa: E402
from palestra.rollout.request import RolloutRequest, TaskIndex, play  # noqa: E402
from palestra.tools import parse_reply  # noqa: E402
from palestra.trainer import train_rl, train_sft  # noqa: E402
from palestra.trainer.config import RLConfig, SFTConfig, load_config  # noqa: E402
from palestra.trainer.demonstrations import write_demonstrations  # noqa: E402
from palestra.trainer.load import silence_transformers  # noqa: E402
from palestra.trainer.run_dir import RunDir  # noqa: E402
from palestra.trainer.session import Session  # noqa: E402
from palestra.trainer.tiny import train_tokenizer  # noqa: E402
from palestra.types import Sampling, Task  # noqa: E402
from palestra.view.progress import StageProgress  # noqa: E402
from palestra.view.report import write_report  # noqa: E402

DEMONSTRATIONS = 2000
HELDOUT_TASKS = 500


def demonstrate(path: Path, count: int) -> int:
    """Record what the agent does when a teacher answers it; returns how many episodes."""
    tasks = problems("train")[:count]
    # Any tokenizer can write down any text: the model's own is made from these demonstrations.
    sample = [{"role": "user", "content": "1 + 2"}, parse_reply("3")]
    tokenizer = train_tokenizer([sample], [], vocab_size=300)
    policy = TokenPolicy(Teacher(tokenizer, tasks), ChatFormat.from_tokenizer(tokenizer))
    request = RolloutRequest(
        env=ENV_ID,
        split="train",
        task_ids=tuple(task.id for task in tasks),
        agent="problems:play",
        max_concurrent=1,  # in the order of the tasks, so that a seed always trains the same
        sampling=Sampling(max_tokens=256),
    )
    return asyncio.run(write_demonstrations(path, play(request, policy, TaskIndex())))


def evaluate(run: RunDir, config: RLConfig, model: Path, tasks: Sequence[Task], label: str) -> Any:
    """The agent's episodes with a checkpoint on the held-out tasks, and their mean score."""
    session = Session.open(config.model_copy(update={"model": str(model)}))
    path = run.path / "episodes" / f"{label}.jsonl"
    try:
        evaluation = asyncio.run(
            session.evaluate(config, seed=config.seed + 1, tasks=tasks, record_to=path)
        )
    finally:
        session.close()
    return evaluation, read_episodes(path)


def main() -> None:
    """Train, measure and say what came out."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/train-any-agent"), metavar="DIR")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rehearsal", action="store_true", help="a few steps of everything")
    given = parser.parse_args()
    started = time.perf_counter()
    silence_transformers()
    shared = [f'out="{given.out}"', f"seed={given.seed}"]
    if given.rehearsal:
        shared += ["steps=2", "eval_every=2", "eval_tasks=8"]
    demonstrations = given.out / "demonstrations.jsonl"
    sft_config = load_config(SFTConfig, HERE / "sft.toml", [*shared, f'data="{demonstrations}"'])
    rl_overrides = [*shared, f'model="{given.out / "checkpoints" / "sft"}"']
    rl_config = load_config(RLConfig, HERE / "rl.toml", rl_overrides)
    heldout = problems("test")[rl_config.eval_tasks :][:HELDOUT_TASKS]
    if given.rehearsal:
        heldout = heldout[:16]
    with RunDir(given.out) as run:
        with StageProgress() as progress:
            shown = progress.stage("demonstrate", None)
            count = demonstrate(demonstrations, 32 if given.rehearsal else DEMONSTRATIONS)
            shown(count, {})
            sft = train_sft.train(
                sft_config, run=run, progress=progress.stage("imitate", sft_config.steps)
            )
            before = evaluate(run, rl_config, sft.checkpoint, heldout, "before")
            progress.stage("before", None)(0, {"heldout": before[0].mean})
            rl = train_rl.train(
                rl_config, run=run, progress=progress.stage("improve", rl_config.steps)
            )
            after = evaluate(run, rl_config, rl.checkpoint, heldout, "after")
            progress.stage("after", None)(0, {"heldout": after[0].mean})
        gain = paired_difference(before[1], after[1])
        summary = {
            "env_id": ENV_ID,
            "seed": given.seed,
            "heldout_before": round(before[0].mean, 4),
            "heldout_after": round(after[0].mean, 4),
            "gain": round(gain.mean, 4),
            "gain_low": round(gain.low, 4),
            "gain_high": round(gain.high, 4),
            "heldout_n": gain.n_tasks,
            "masked": sum(before[0].masked.values()) + sum(after[0].masked.values()),
            "demonstrations": count,
            "sft_steps": sft.steps,
            "rl_steps": rl.steps,
            "best_step": rl.best_step,
            "checkpoint": str(rl.checkpoint),
            "wall_s": round(time.perf_counter() - started, 1),
        }
        run.write_summary(summary)
    print(json.dumps(summary, indent=2))
    print(
        f"held-out success from {before[0].mean:.1%} to {after[0].mean:.1%}: "
        f"{gain.mean:+.1%} (95% interval {gain.low:+.1%} to {gain.high:+.1%}, "
        f"{gain.n_tasks} tasks)\nreport: {write_report(given.out)}"
    )


if __name__ == "__main__":
    main()
