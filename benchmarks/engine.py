"""The embedded engine: tokens per second beside transformers' `generate` and `generate_batch`.

One thread. Of the tiny model in float32, every sequence of the same length, so that a static batch
wastes nothing: the hardest case for continuous batching to beat; and lengths drawn at random, as
real replies have them. Of SmolLM2-135M in both precisions, 32 sequences of the same length, and a
group of 8 answers to one prompt of 300 tokens. The engines take turns, so that other work on the
machine hits all of them, and the best of their runs counts; beside time on the clock stands that of
the processor, which other work distorts less.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

from palestra.rollout.engine_hf import HFEngine
from palestra.trainer.smollm2 import smollm2_folder
from palestra.trainer.tiny import build_model
from palestra.types import Sampling

RESULTS = Path(__file__).parent / "results" / "engine.json"
VOCABULARY = 384


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """Completions of one prompt, each of a given length in tokens."""

    prompt_tokens: int = 32
    lengths: tuple[int, ...]

    @property
    def prompt(self) -> list[int]:
        """Any text will do."""
        return list(range(1, self.prompt_tokens + 1))


Generate = Callable[[Any, Workload], None]


def ours(model: Any, workload: Workload) -> None:
    """Sample a completion of each length."""
    lengths = workload.lengths
    engine = HFEngine(model, stop_ids=frozenset(), max_slots=len(lengths), context_length=512)

    async def all_of_them() -> None:
        await asyncio.gather(
            *(engine.generate(workload.prompt, Sampling(max_tokens=n)) for n in lengths)
        )

    asyncio.run(all_of_them())
    engine.close()


def static_batch(model: Any, workload: Workload) -> None:
    """`generate` runs until the longest is done; the shorter ones are computed and thrown away."""
    prompts_NT = torch.tensor([workload.prompt] * len(workload.lengths))
    model.generate(
        prompts_NT,
        attention_mask=torch.ones_like(prompts_NT),
        do_sample=True,
        top_k=0,
        max_new_tokens=max(workload.lengths),
        eos_token_id=model.config.vocab_size + 1,
        pad_token_id=0,
    )


def continuous_batch(model: Any, workload: Workload) -> None:
    """transformers' own continuous batching, one length for all (it takes no other)."""
    model.generate_batch(
        [workload.prompt] * len(workload.lengths),
        generation_config=GenerationConfig(
            do_sample=True,
            top_k=0,
            max_new_tokens=max(workload.lengths),
            eos_token_id=-1,
            pad_token_id=0,
        ),
        continuous_batching_config=ContinuousBatchingConfig(
            num_blocks=256, max_batch_tokens=512, use_cuda_graph=False
        ),
        progress_bar=False,
    )


@dataclass(slots=True)
class Rates:
    """Wanted tokens per second and per second of processor time: the best runs of an engine."""

    per_s: float = 0.0
    per_cpu_s: float = 0.0


def measure(
    engines: dict[str, Generate], model: Any, workload: Workload, repeats: int
) -> dict[str, Rates]:
    """The best of `repeats` runs of each, after a short one to warm up."""
    warm_up = Workload(prompt_tokens=workload.prompt_tokens, lengths=(2,) * len(workload.lengths))
    for generate in engines.values():
        generate(model, warm_up)
    best = {name: Rates() for name in engines}
    for _ in range(repeats):
        for name, generate in engines.items():
            started, cpu_started = time.perf_counter(), time.process_time()
            generate(model, workload)
            seconds, cpu_s = time.perf_counter() - started, time.process_time() - cpu_started
            tokens = sum(workload.lengths)
            best[name].per_s = max(best[name].per_s, tokens / seconds)
            best[name].per_cpu_s = max(best[name].per_cpu_s, tokens / cpu_s)
    return best


def figures_of(prefix: str, rates: dict[str, Rates]) -> dict[str, float]:
    """Rates by engine, and ours over the best peer's."""
    peers = [rate for name, rate in rates.items() if name != "palestra"]
    mine = rates["palestra"]
    return {
        **{f"{prefix}.{name}_tokens_per_s": round(rate.per_s, 1) for name, rate in rates.items()},
        f"{prefix}.ratio": round(mine.per_s / max(peer.per_s for peer in peers), 2),
        f"{prefix}.cpu_ratio": round(mine.per_cpu_s / max(p.per_cpu_s for p in peers), 2),
    }


def cases(quick: bool) -> Iterator[tuple[str, Any, Workload, dict[str, Generate], int]]:
    """Name, model, workload, engines and repeats, one model after the other."""
    draw = random.Random(0)
    two: dict[str, Generate] = {"palestra": ours, "generate": static_batch}
    three = {**two, "generate_batch": continuous_batch}
    tiny = build_model(VOCABULARY, eos_id=0).eval()
    unequal = tuple(draw.randrange(8, 129) for _ in range(128))
    yield "32_equal", tiny, Workload(lengths=(128,) * 32), three, 1 if quick else 3
    yield "128_random", tiny, Workload(lengths=unequal), three, 1 if quick else 3
    length = 8 if quick else 128
    for name, dtype in (("smollm2_bf16", torch.bfloat16), ("smollm2_fp32", torch.float32)):
        large = AutoModelForCausalLM.from_pretrained(smollm2_folder(), dtype=dtype).eval()
        yield f"{name}.32_equal", large, Workload(lengths=(length,) * 32), two, 1
        group = Workload(prompt_tokens=300, lengths=(length,) * 8)
        yield f"{name}.group_of_8", large, group, two, 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="1 repeat, and 8 tokens of SmolLM2")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    figures: dict[str, float] = {}
    table = Table("workload", "tokens/s", "ours over the best peer", "of processor time")
    for name, model, workload, engines, repeats in cases(quick):
        rates = measure(engines, model, workload, repeats)
        figures |= figures_of(name, rates)
        shown = ", ".join(f"{engine} {rate.per_s:.0f}" for engine, rate in rates.items())
        ratios = (f"{figures[f'{name}.{kind}']:.2f}" for kind in ("ratio", "cpu_ratio"))
        table.add_row(name, shown, *ratios)
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(figures, indent=2) + "\n")
    Console().print(table)


if __name__ == "__main__":
    main()
