"""The demo: does one command train a tool agent, on every seed, and does a control learn nothing?

Runs `palestra demo` for the seeds 0, 1 and 2, once with shuffled rewards and once with rollouts on
vLLM, each in a fresh process. The peer is TRL's SFTTrainer: seconds per optimizer step on the same
tiny model, the same demonstrations and the same batch as our SFT stage. `--quick` rehearses the
demo (a few steps of everything) and measures the peer.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results" / "demo.json"
BATCH_ROWS = 64


def run_demo(folder: Path, *options: str) -> dict[str, Any]:
    """The summary of one run of the command."""
    command = [str(Path(sys.executable).parent / "palestra"), "demo", "--out", str(folder)]
    subprocess.run([*command, *options], check=True, stdout=subprocess.DEVNULL)
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return summary


def ours_s_per_step(data: Path, steps: int) -> float:
    """Seconds of an optimizer step of our SFT stage."""
    from palestra.trainer import train_sft
    from palestra.trainer.config import SFTConfig

    times: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        config = SFTConfig(
            model="tiny",
            data=data,
            out=Path(folder) / "run",
            steps=steps,
            batch_rows=BATCH_ROWS,
            learning_rate=2e-3,
            micro_batch_tokens=4096,
        )
        train_sft.train(config, progress=lambda step, metrics: times.append(metrics["seconds"]))
    return sorted(times[2:])[len(times[2:]) // 2]


def trl_s_per_step(data: Path, steps: int) -> float:
    """Seconds of an optimizer step of TRL's SFTTrainer, padding-free where it can be."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from palestra.rollout.chat_format import ChatFormat
    from palestra.trainer.demonstrations import demonstration_rows, read_demonstrations
    from palestra.trainer.tiny import build_policy

    conversations = read_demonstrations(data)
    model, tokenizer = build_policy(conversations)
    chat_format = ChatFormat.from_tokenizer(tokenizer)
    rows = [r for m, tools in conversations for r in demonstration_rows(m, tools, chat_format)]
    # The same ids and the same mask, so that only the trainers differ.
    dataset = Dataset.from_list(
        [
            {
                "input_ids": list(row.token_ids),
                "labels": [
                    token if trains else -100
                    for token, trains in zip(row.token_ids, row.loss_mask, strict=True)
                ],
            }
            for row in rows
        ]
    )
    times: list[float] = []

    class Clock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.started = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            times.append(time.perf_counter() - self.started)

    with tempfile.TemporaryDirectory() as folder:
        SFTTrainer(
            model=model,
            processing_class=tokenizer,
            train_dataset=dataset,
            callbacks=[Clock()],
            args=SFTConfig(
                output_dir=folder,
                max_steps=steps,
                per_device_train_batch_size=BATCH_ROWS,
                gradient_checkpointing=False,
                learning_rate=2e-3,
                bf16=False,
                use_cpu=True,
                report_to="none",
                disable_tqdm=True,
                save_strategy="no",
                logging_strategy="no",
            ),
        ).train()
    return sorted(times[2:])[len(times[2:]) // 2]


def write_data(path: Path, count: int) -> None:
    """Demonstrations of the demo's oracle."""
    from palestra import envs
    from palestra.envs.arithmetic import ArithmeticEnv, arithmetic_tasks
    from palestra.rollout.driver import rollout
    from palestra.rollout.policy import OraclePolicy
    from palestra.trainer.demonstrations import write_demonstrations

    episodes = rollout(
        lambda: envs.make("palestra/Arithmetic-v0"),
        arithmetic_tasks("train")[:count],
        OraclePolicy(ArithmeticEnv.solve),
    )
    asyncio.run(write_demonstrations(path, episodes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="rehearse, learn nothing")
    quick = parser.parse_args().quick
    os.environ.setdefault("OMP_NUM_THREADS", str(min(2, os.cpu_count() or 1)))
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as `palestra demo` itself
    figures: dict[str, float] = {}
    columns = ("before", "after", "lower 95%", "n", "seconds", "processor seconds", "MiB")
    table = Table("run", *columns)
    with tempfile.TemporaryDirectory() as folder:
        runs = {f"seed{seed}": ["--seed", str(seed)] for seed in ([0] if quick else [0, 1, 2])}
        if not quick:
            runs["control"] = ["--seed", "0", "--control"]
            runs["vllm"] = ["--seed", "0", "--engine", "vllm"]
        for name, options in runs.items():
            extra = ["--rehearsal"] if quick else []
            summary = run_demo(Path(folder) / name, *options, *extra)
            keys = ("heldout_before", "heldout_after", "heldout_after_low", "heldout_n")
            costs = ("wall_s", "cpu_s", "peak_memory_mb")
            for key in (*keys, *costs, "sft_steps", "rl_steps"):
                figures[f"{name}.{key}"] = summary[key]
            if summary["control_gain"] is not None:
                figures["control_gain"] = summary["control_gain"]
            shown = [summary[key] for key in (*keys, *costs)]
            table.add_row(name, *map(str, shown))
        data = Path(folder) / "demonstrations.jsonl"
        write_data(data, 512)
        steps = 12 if quick else 40
        ours, theirs = ours_s_per_step(data, steps), trl_s_per_step(data, steps)
    figures |= {
        "sft_step_s.palestra": round(ours, 4),
        "sft_step_s.trl": round(theirs, 4),
        "sft_step.speedup_over_trl": round(theirs / ours, 2),
    }
    console = Console()
    console.print(table)
    console.print(
        f"an SFT step of {BATCH_ROWS} demonstrations: palestra {ours:.3f} s, TRL {theirs:.3f} s, "
        f"{theirs / ours:.2f} times ours"
    )
    if quick:
        console.print("a rehearsal: the figures are not kept")
        return
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
