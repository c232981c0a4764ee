"""Live weight updates of a vLLM server: ours, cache handling and check included, beside its own.

Two sets of weights in turns, on an idle server, by vLLM's bare reload (`reload_weights` through
`/collective_rpc`: no pause, no cache handling, no check) and by `VLLMEngine.update_weights`, also
in turns. The tiny model, and SmolLM2-135M where its package is installed, in float32 on one thread;
with vLLM's block size on a CPU and a smaller one, of which the probe's length depends. Every update
of ours is checked: the probe is met, or the benchmark fails.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer

from palestra.rollout.engine import Probe
from palestra.rollout.engine_vllm import VLLMEngine
from palestra.trainer.model_folder import find_model_folder
from palestra.trainer.probe import make_probe
from palestra.trainer.tiny import build_model, train_tokenizer

RESULTS = Path(__file__).parent / "results" / "weight_update.json"
CONVERSATION = [{"role": "user", "content": "17+25?"}, {"role": "assistant", "content": "42"}]


def make_tiny(folder: Path) -> None:
    tokenizer = train_tokenizer([CONVERSATION], [])
    model = build_model(512, eos_id=tokenizer.eos_token_id, layers=4)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_variant(folder: Path, noise: float, target: Path) -> Probe:
    """Write the model of `folder`, its weights moved by noise, in float32; returns its probe."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(noise * parameter.std() * torch.randn_like(parameter))
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(folder).save_pretrained(target)
    return make_probe(model)


async def seconds(action: Awaitable[Any]) -> float:
    started = time.perf_counter()
    await action
    return time.perf_counter() - started


async def measure(folder: Path, scratch: Path, repeats: int, block_size: int) -> dict[str, float]:
    """Medians over `repeats` updates of each kind."""
    folders = [scratch / "even", scratch / "odd"]
    probes = [
        make_variant(folder, noise, target)
        for noise, target in zip((0.0, 0.05), folders, strict=True)
    ]
    engine = await VLLMEngine.launch(
        folders[0],
        stop_ids=frozenset(),
        context_length=512,
        extra_args=["--block-size", str(block_size)],
        env={"OMP_NUM_THREADS": "1"},
    )
    times: dict[str, list[float]] = {"bare": [], "ours": []}
    try:
        await engine.update_weights(0, folders[0], probe=probes[0])
        for n in range(1, 2 * repeats + 1):
            target, probe = folders[n % 2], probes[n % 2]
            reload = {"method": "reload_weights", "kwargs": {"weights_path": str(target)}}
            times["bare"].append(
                await seconds(engine.control.post("/collective_rpc", reload, timeout_s=300))
            )
            times["ours"].append(await seconds(engine.update_weights(n, target, probe=probe)))
    finally:
        await engine.aclose()
    bare, ours = (statistics.median(times[kind]) for kind in ("bare", "ours"))
    return {"bare_s": round(bare, 4), "ours_s": round(ours, 4), "ratio": round(ours / bare, 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="4 updates of each kind, not 20")
    repeats = 2 if parser.parse_args().quick else 10
    torch.set_num_threads(1)
    figures: dict[str, float] = {}
    table = Table("model", "cache block", "vLLM's bare reload, s", "ours, s", "ratio (aim 1.5)")
    with tempfile.TemporaryDirectory(prefix="palestra-weights-") as name:
        tiny = Path(name) / "tiny"
        make_tiny(tiny)
        models = {"tiny": tiny}
        try:
            models["smollm2"] = find_model_folder("smollm2")
        except (ValueError, ImportError) as error:
            print(f"without SmolLM2-135M: {error}")
        for model, folder in models.items():
            for block_size in (128, 32):
                scratch = Path(name) / f"{model}-weights"
                measured = asyncio.run(measure(folder, scratch, repeats, block_size))
                table.add_row(model, str(block_size), *(f"{it:g}" for it in measured.values()))
                figures |= {f"{model}_block{block_size}.{k}": v for k, v in measured.items()}
    Console().print(table)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
