"""The embedded engine: tokens per second beside transformers' `generate` and `generate_batch`.

The tiny model in float32, one thread, every sequence of the same length, so that a static batch
wastes nothing: the hardest case for continuous batching to beat. A second workload draws lengths at
random, as real replies have them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import ContinuousBatchingConfig, GenerationConfig

from palestra.rollout.engine_hf import HFEngine
from palestra.trainer.tiny import build_model
from palestra.types import Sampling

RESULTS = Path(__file__).parent / "results" / "engine.json"
VOCABULARY = 384
PROMPT = list(range(1, 33))


def ours(model: Any, lengths: list[int]) -> None:
    """Sample a completion of each length."""
    engine = HFEngine(model, stop_ids=frozenset(), max_slots=len(lengths), context_length=256)

    async def all_of_them() -> None:
        await asyncio.gather(*(engine.generate(PROMPT, Sampling(max_tokens=n)) for n in lengths))

    asyncio.run(all_of_them())
    engine.close()


def static_batch(model: Any, lengths: list[int]) -> None:
    """`generate` runs until the longest is done; the shorter ones are computed and thrown away."""
    model.generate(
        torch.tensor([PROMPT] * len(lengths)),
        attention_mask=torch.ones(len(lengths), len(PROMPT), dtype=torch.long),
        do_sample=True,
        top_k=0,
        max_new_tokens=max(lengths),
        eos_token_id=VOCABULARY + 1,
        pad_token_id=0,
    )


def continuous_batch(model: Any, lengths: list[int]) -> None:
    """transformers' own continuous batching, one length for all (it takes no other)."""
    model.generate_batch(
        [PROMPT] * len(lengths),
        generation_config=GenerationConfig(
            do_sample=True, top_k=0, max_new_tokens=max(lengths), eos_token_id=-1, pad_token_id=0
        ),
        continuous_batching_config=ContinuousBatchingConfig(
            num_blocks=256, max_batch_tokens=512, use_cuda_graph=False
        ),
        progress_bar=False,
    )


def tokens_per_s(
    generate: Callable[[Any, list[int]], None], model: Any, lengths: list[int], repeats: int
) -> float:
    """Wanted tokens per second, the best of `repeats` runs after a short one to warm up."""
    generate(model, [4] * len(lengths))
    best = 0.0
    for _ in range(repeats):
        started = time.perf_counter()
        generate(model, lengths)
        best = max(best, sum(lengths) / (time.perf_counter() - started))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="1 repeat instead of 3")
    repeats = 1 if parser.parse_args().quick else 3
    torch.set_num_threads(1)
    model = build_model(VOCABULARY, eos_id=0).eval()
    draw = random.Random(0)
    workloads = {
        "32_equal": [128] * 32,
        "128_random": [draw.randrange(8, 129) for _ in range(128)],
    }
    engines: dict[str, Callable[[Any, list[int]], None]] = {
        "palestra": ours,
        "generate": static_batch,
        "generate_batch": continuous_batch,
    }
    figures: dict[str, float] = {}
    table = Table("workload", *(f"{name} tokens/s" for name in engines), "ours over the best peer")
    for workload, lengths in workloads.items():
        rates = {
            name: round(tokens_per_s(generate, model, lengths, repeats))
            for name, generate in engines.items()
        }
        ratio = round(rates["palestra"] / max(rates["generate"], rates["generate_batch"]), 2)
        table.add_row(workload, *map(str, rates.values()), f"{ratio:.2f}")
        figures |= {f"{workload}.{name}_tokens_per_s": rate for name, rate in rates.items()}
        figures[f"{workload}.ratio"] = ratio
    Console().print(table)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
