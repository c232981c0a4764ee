"""Live weight updates of a server: ours, cache handling and check included, beside its own.

Two sets of weights in turns, on an idle server, by the engine's bare reload (no pause, no check;
vLLM's `reload_weights` through `/collective_rpc`, which leaves its cache, and SGLang's
`/update_weights_from_disk`) and by the engine's `update_weights`, also in turns. The tiny model,
and SmolLM2-135M where its package is installed, in float32 on one thread; of vLLM with its own
block size on a CPU and the one that palestra starts it with, on which the probe's length depends.
Every update of ours is checked: the probe is met, or the benchmark fails. SGLang is measured where
its environment is (`make sglang`).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer

from palestra.rollout.engine import Probe
from palestra.rollout.engine_errors import ServerNotStarted
from palestra.rollout.engine_python import find_python
from palestra.rollout.engine_sglang import SGLangEngine
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


async def launch_vllm(folder: Path, block_size: int) -> VLLMEngine:
    return await VLLMEngine.launch(
        folder,
        stop_ids=frozenset(),
        context_length=512,
        extra_args=["--block-size", str(block_size)],
        env={"OMP_NUM_THREADS": "1"},
    )


async def launch_sglang(folder: Path) -> SGLangEngine:
    return await SGLangEngine.launch(
        folder, stop_ids=frozenset(), context_length=512, env={"OMP_NUM_THREADS": "1"}
    )


def bare_reload(engine: VLLMEngine | SGLangEngine, folder: Path) -> Awaitable[Any]:
    if isinstance(engine, VLLMEngine):
        reload = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
        return engine.control.post("/collective_rpc", reload, timeout_s=300)
    return engine.control.post(
        "/update_weights_from_disk", {"model_path": str(folder)}, timeout_s=300
    )


async def measure(
    launch: Callable[[Path], Awaitable[VLLMEngine | SGLangEngine]],
    folder: Path,
    scratch: Path,
    repeats: int,
) -> dict[str, float]:
    """Medians over `repeats` updates of each kind."""
    folders = [scratch / "even", scratch / "odd"]
    probes = [
        make_variant(folder, noise, target)
        for noise, target in zip((0.0, 0.05), folders, strict=True)
    ]
    engine = await launch(folders[0])
    times: dict[str, list[float]] = {"bare": [], "ours": []}
    try:
        await engine.update_weights(0, folders[0], probe=probes[0])
        for n in range(1, 2 * repeats + 1):
            target, probe = folders[n % 2], probes[n % 2]
            times["bare"].append(await seconds(bare_reload(engine, target)))
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
    table = Table("model", "engine", "bare reload, s", "ours, s", "ratio (aim 1.5)")
    launches: dict[str, Callable[[Path], Awaitable[VLLMEngine | SGLangEngine]]] = {
        "vllm_block128": partial(launch_vllm, block_size=128),
        "vllm_block32": partial(launch_vllm, block_size=32),
    }
    try:
        find_python("sglang")
        launches["sglang"] = launch_sglang
    except ServerNotStarted as error:
        print(f"without SGLang: {error}")
    with tempfile.TemporaryDirectory(prefix="palestra-weights-") as name:
        tiny = Path(name) / "tiny"
        make_tiny(tiny)
        models = {"tiny": tiny}
        try:
            models["smollm2"] = find_model_folder("smollm2")
        except (ValueError, ImportError) as error:
            print(f"without SmolLM2-135M: {error}")
        for model, folder in models.items():
            for engine, launch in launches.items():
                scratch = Path(name) / f"{model}-weights"
                measured = asyncio.run(measure(launch, folder, scratch, repeats))
                table.add_row(model, engine, *(f"{it:g}" for it in measured.values()))
                figures |= {f"{model}.{engine}.{k}": v for k, v in measured.items()}
    Console().print(table)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
