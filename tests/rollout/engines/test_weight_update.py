"""Live weight updates of the real vLLM server: what is served afterwards, and what is refused."""

import asyncio
import json
import shutil
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from palestra.rollout.engine import StaleWeights
from palestra.rollout.engine_errors import UnsupportedServer
from palestra.rollout.engine_vllm import VLLMEngine
from palestra.rollout.token_client import TokenClient
from palestra.rollout.vllm_features import ServerFeatures, detect_features
from palestra.rollout.weight_check import ProbeCheck
from palestra.rollout.weight_probe import score
from palestra.rollout.weight_update import WeightUpdater
from palestra.trainer.probe import make_probe
from palestra.types import Completion, Sampling, VersionSpan

PROMPT = tuple(range(5, 45))
# Long enough that no generation ends while a busy machine keeps the update waiting.
LENGTH = 900


class Weights:
    """A model's folder, the model as transformers runs it, and its probe."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        self.probe = make_probe(self.model)

    @torch.no_grad()
    def greedy(self, prompt: Sequence[int], n: int) -> tuple[int, ...]:
        ids = list(prompt)
        for _ in range(n):
            ids.append(int(self.model(torch.tensor([ids])).logits[0, -1].argmax()))
        return tuple(ids[len(prompt) :])

    @torch.no_grad()
    def logprobs(
        self, prompt: Sequence[int], ids: Sequence[int], temperature: float = 1.0
    ) -> torch.Tensor:
        logits_TV = self.model(torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
        logprobs_TV = torch.log_softmax(logits_TV / temperature, dim=-1)
        return logprobs_TV.gather(-1, torch.tensor(ids)[:, None])[:, 0]


@pytest.fixture(scope="module")
def old(tiny_model_folder: Path) -> Weights:
    """What the server was started with."""
    return Weights(tiny_model_folder)


@pytest.fixture(scope="module")
def new(old: Weights, tmp_path_factory: pytest.TempPathFactory) -> Weights:
    """Every weight of the old model, moved by noise."""
    folder = tmp_path_factory.mktemp("new")
    model: Any = AutoModelForCausalLM.from_pretrained(old.folder, dtype=torch.float32)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5 * parameter.std() * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return Weights(folder)


@pytest.fixture(scope="module", autouse=True)
def _leave_the_server_as_it_was(vllm_server: Any, old: Weights) -> Iterator[None]:
    yield

    async def put_back() -> None:
        client = TokenClient(vllm_server.base_url)  # an engine would refuse broken weights
        try:
            model = (await client.get("/v1/models", timeout_s=60))["data"][0]["id"]
            await WeightUpdater(client, model).update(0, old.folder, probe=old.probe)
        finally:
            await client.close()

    asyncio.run(put_back())


@asynccontextmanager
async def attached(server: Any) -> AsyncGenerator[VLLMEngine, None]:
    engine = await VLLMEngine.attach(server.base_url, stop_ids=frozenset())
    try:
        yield engine
    finally:
        await engine.aclose()


async def sample_greedily(engine: VLLMEngine, n: int = 24) -> Completion:
    return await engine.generate(PROMPT, Sampling(temperature=0.0, max_tokens=n))


def recomputed(version: int, start: int, end: int) -> VersionSpan:
    """Tokens of weights whose update threw older weights' keys away."""
    return VersionSpan(version=version, start=start, end=end, kv_after_update="recompute")


def test_greedy_output_is_that_of_the_new_weights_and_then_of_the_old_again(
    vllm_server: Any, old: Weights, new: Weights
) -> None:
    async def run() -> list[Completion]:
        async with attached(vllm_server) as engine:
            await engine.update_weights(1, new.folder, probe=new.probe)
            first = await sample_greedily(engine)
            assert engine.version == 1
            await engine.update_weights(2, old.folder, probe=old.probe)
            return [first, await sample_greedily(engine)]

    first, second = asyncio.run(run())
    assert first.ids == new.greedy(PROMPT, 24)
    assert first.version_spans == (recomputed(1, 0, 24),)
    assert second.ids == old.greedy(PROMPT, 24)
    assert second.version_spans == (recomputed(2, 0, 24),)
    assert first.ids != second.ids


async def update_in_the_middle(
    engine: VLLMEngine,
    version: int,
    old: Weights,
    new: Weights,
    temperature: float,
    **how: Any,
) -> list[Completion]:
    """Completions during which the weights became `new`, as `version`: all have first tokens then.

    On a busy machine they may have ended before the update arrives: it is then made again.
    """
    for _ in range(10):
        await engine.update_weights(version - 1, old.folder, probe=old.probe)
        completions, in_time = await _sample_and_update(engine, version, new, temperature, **how)
        if in_time:
            return completions
    raise AssertionError("ten updates came after the last token")


async def _sample_and_update(
    engine: VLLMEngine, version: int, weights: Weights, temperature: float, **how: Any
) -> tuple[list[Completion], bool]:
    begun = [asyncio.Event() for _ in range(3)]

    async def sample(n: int) -> Completion:
        sampling = Sampling(temperature=temperature, max_tokens=LENGTH, seed=n)
        pieces = []
        async for piece in engine.stream((*PROMPT, n), sampling):
            pieces.append(piece)
            begun[n].set()
        assert pieces[-1].stop_reason is not None
        return Completion(
            ids=tuple(token for piece in pieces for token in piece.ids),
            logprobs=tuple(logprob for piece in pieces for logprob in piece.logprobs),
            stop_reason=pieces[-1].stop_reason,
            version_spans=pieces[-1].version_spans,
        )

    generations = [asyncio.create_task(sample(n)) for n in range(3)]
    await asyncio.gather(*(event.wait() for event in begun))
    await engine.update_weights(version, weights.folder, probe=weights.probe, **how)
    completions = await asyncio.gather(*generations)
    if how.get("mode") == "keep":
        return completions, all(len(done.version_spans) == 2 for done in completions)
    if how.get("mode") == "abort":
        return completions, all(done.stop_reason == "abort" for done in completions)
    return completions, True


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_tokens_before_a_live_update_are_the_old_weights_and_those_after_it_the_new(
    vllm_server: Any, old: Weights, new: Weights, temperature: float
) -> None:
    async def run() -> list[Completion]:
        async with attached(vllm_server) as engine:
            return await update_in_the_middle(engine, 11, old, new, temperature, mode="keep")

    for n, completion in enumerate(asyncio.run(run())):
        before, after = completion.version_spans
        switch = before.end
        assert 0 < switch < LENGTH
        assert before == recomputed(10, 0, switch)
        assert after == recomputed(11, switch, LENGTH)
        found = torch.tensor(completion.logprobs)
        under_old = old.logprobs((*PROMPT, n), completion.ids, temperature)
        under_new = new.logprobs((*PROMPT, n), completion.ids, temperature)
        assert (found[:switch] - under_old[:switch]).abs().max() < 1e-3
        assert (found[switch:] - under_new[switch:]).abs().max() < 1e-3
        # The boundary is exact: the neighbours belong to the other side.
        assert (found - under_new)[max(0, switch - 8) : switch].abs().max() > 1e-2
        assert (found - under_old)[switch : switch + 8].abs().max() > 1e-2


def test_kept_keys_are_the_old_weights_and_the_new_ones_attend_to_them(
    vllm_server: Any, old: Weights, new: Weights
) -> None:
    async def run() -> list[Completion]:
        async with attached(vllm_server) as engine:
            how = {"mode": "keep", "kv_after_update": "keep"}
            return await update_in_the_middle(engine, 21, old, new, 1.0, **how)

    for n, completion in enumerate(asyncio.run(run())):
        before, after = completion.version_spans
        switch = before.end
        assert before == recomputed(20, 0, switch)
        assert after == VersionSpan(version=21, start=switch, end=LENGTH, kv_after_update="keep")
        # The last token of the old weights was sampled but not fed yet.
        fed = torch.tensor([[*PROMPT, n, *completion.ids[: switch - 1]]])
        rest = torch.tensor([completion.ids[switch - 1 :]])
        with torch.no_grad():
            keys = old.model(fed, use_cache=True).past_key_values
            logits_TV = new.model(rest, past_key_values=keys).logits[0, :-1]
        expected = torch.log_softmax(logits_TV, dim=-1).gather(-1, rest[0, 1:, None])[:, 0]
        found = torch.tensor(completion.logprobs)[switch:]
        assert (found - expected).abs().max() < 1e-3


def test_mode_wait_lets_generations_end_with_the_weights_they_began_with(
    vllm_server: Any, old: Weights, new: Weights
) -> None:
    async def run() -> list[Completion]:
        async with attached(vllm_server) as engine:
            return await update_in_the_middle(engine, 31, old, new, 1.0)

    for n, completion in enumerate(asyncio.run(run())):
        assert completion.version_spans == (recomputed(30, 0, LENGTH),)
        assert completion.stop_reason == "length"
        error = torch.tensor(completion.logprobs) - old.logprobs((*PROMPT, n), completion.ids)
        assert error.abs().max() < 1e-3


def test_mode_abort_ends_generations_with_what_they_have(
    vllm_server: Any, old: Weights, new: Weights
) -> None:
    async def run() -> list[Completion]:
        async with attached(vllm_server) as engine:
            return await update_in_the_middle(engine, 41, old, new, 1.0, mode="abort")

    for n, completion in enumerate(asyncio.run(run())):
        assert completion.stop_reason == "abort"
        assert 0 < len(completion.ids) < LENGTH
        (span,) = completion.version_spans
        assert span == recomputed(40, 0, len(completion.ids))
        error = torch.tensor(completion.logprobs) - old.logprobs((*PROMPT, n), completion.ids)
        assert error.abs().max() < 1e-3


def test_concurrent_updates_are_done_one_after_the_other(
    vllm_server: Any, old: Weights, new: Weights
) -> None:
    async def run() -> tuple[int, Completion]:
        async with attached(vllm_server) as engine:
            await asyncio.gather(
                *(
                    engine.update_weights(50 + n, weights.folder, probe=weights.probe)
                    for n, weights in enumerate((new, old, new, old, new))
                )
            )
            return engine.version, await sample_greedily(engine)

    version, completion = asyncio.run(run())
    assert version == 54
    assert completion.version_spans[0].version == 54
    assert completion.ids == new.greedy(PROMPT, 24)


def test_a_stale_output_head_is_detected_and_repaired_by_the_next_update(
    vllm_server: Any, old: Weights, new: Weights
) -> None:
    """vLLM's own reload, which a server without our worker extension is left with, does it."""

    async def run() -> Completion:
        async with attached(vllm_server) as engine:
            await engine.update_weights(60, old.folder, probe=old.probe)
            paths = (await detect_features(engine.control)).paths
            plain = WeightUpdater(
                engine.control,
                engine.model_name,
                features=ServerFeatures(paths=paths),
            )
            with pytest.raises(StaleWeights, match=r"version '61': its output head.* is stale"):
                await plain.update(61, new.folder, probe=new.probe)
            await engine.update_weights(62, new.folder, probe=new.probe)
            return await sample_greedily(engine)

    assert asyncio.run(run()).ids == new.greedy(PROMPT, 24)


def test_a_stale_prefix_cache_is_detected(vllm_server: Any, old: Weights, new: Weights) -> None:
    async def run() -> None:
        async with attached(vllm_server) as engine:
            control, model = engine.control, engine.model_name
            await engine.update_weights(70, old.folder, probe=old.probe)
            ids = new.probe.token_ids
            await score(control, model, ids, way="generate", fresh=False, timeout_s=60)
            load = {"method": "palestra_load", "args": [str(new.folder)]}
            await control.post("/collective_rpc", load, timeout_s=60)
            await control.post("/update_weight_version", {"new_version": "71"}, timeout_s=60)
            with pytest.raises(StaleWeights, match="prefix cache was not reset"):
                await ProbeCheck(control, model, new.probe).finish("71")
            with pytest.raises(StaleWeights, match="prefix cache was not reset"):
                await ProbeCheck(control, model, new.probe, way="completions").finish("71")
            await control.post("/reset_prefix_cache", timeout_s=60)
            await ProbeCheck(control, model, new.probe).finish("71")
            await ProbeCheck(control, model, new.probe, way="completions").finish("71")

    asyncio.run(run())


def test_a_server_of_another_version_is_detected(
    vllm_server: Any, old: Weights, new: Weights
) -> None:
    async def run() -> None:
        async with attached(vllm_server) as engine:
            control, model = engine.control, engine.model_name
            await engine.update_weights(80, new.folder, probe=new.probe)
            with pytest.raises(StaleWeights, match="serves version '80', it was sent '81'"):
                await ProbeCheck(control, model, new.probe).finish("81")
            with pytest.raises(StaleWeights, match=r"version '80': it computes with other weights"):
                await ProbeCheck(control, model, old.probe).finish("80")

    asyncio.run(run())


def wrong_shape(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"][:-1].clone()
    save_file(tensors, folder / "model.safetensors")


def tensor_missing(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors")


def tensor_unknown(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "extra.weight": torch.ones(1)}, folder / "model.safetensors")


def cut_short(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-100])


def cut_in_the_header(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:50])


def file_missing(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def folder_missing(folder: Path) -> None:
    shutil.rmtree(folder)


def write_shards(folder: Path) -> Path:
    """The model in two files and an index; returns the second."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    half = len(names) // 2
    weight_map: dict[str, str] = {}
    for number, part in enumerate((names[:half], names[half:]), start=1):
        shard = f"model-0000{number}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / shard)
        weight_map |= dict.fromkeys(part, shard)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder / "model-00002-of-00002.safetensors"


def shard_missing(folder: Path) -> None:
    write_shards(folder).unlink()


def fails_half_way(folder: Path) -> None:
    """A type of which safetensors knows nothing, in the second file: the first one loads."""
    shard = write_shards(folder)
    content = shard.read_bytes()
    assert b'"dtype":"F32"' in content
    shard.write_bytes(content.replace(b'"dtype":"F32"', b'"dtype":"X32"', 1))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (wrong_shape, r"model.norm.weight has shape \[\d+\], the served model's is \[\d+\]"),
        (tensor_missing, "it lacks model.norm.weight"),
        (tensor_unknown, "it has an unknown tensor, extra.weight"),
        (cut_short, r"model.safetensors is cut short: \d+ bytes of \d+"),
        (cut_in_the_header, "model.safetensors is cut short: 50 bytes"),
        (file_missing, "there is no safetensors file in"),
        (folder_missing, "there is no weight folder"),
        (shard_missing, r"model-00002-of-00002.safetensors is missing: its index names it"),
        (fails_half_way, "could not be loaded: .*"),
    ],
)
def test_a_source_that_does_not_fit_is_refused_and_the_old_weights_are_served_on(
    vllm_server: Any, old: Weights, new: Weights, tmp_path: Path, damage: Any, message: str
) -> None:
    folder = tmp_path / "weights"
    shutil.copytree(new.folder, folder)
    damage(folder)

    async def run() -> tuple[str, Completion]:
        async with attached(vllm_server) as engine:
            await engine.update_weights(90, old.folder, probe=old.probe)
            with pytest.raises(ValueError, match=message) as refused:
                await engine.update_weights(91, folder, probe=new.probe)
            assert engine.version == 90
            await ProbeCheck(engine.control, engine.model_name, old.probe).finish("90")
            return str(refused.value), await sample_greedily(engine)

    line, completion = asyncio.run(run())
    assert "\n" not in line
    assert completion.ids == old.greedy(PROMPT, 24)
    assert completion.version_spans == (recomputed(90, 0, 24),)


def test_weights_in_several_files_are_loaded(
    vllm_server: Any, new: Weights, tmp_path: Path
) -> None:
    shutil.copytree(new.folder, tmp_path / "weights")
    write_shards(tmp_path / "weights")

    async def run() -> None:
        async with attached(vllm_server) as engine:
            await engine.update_weights(95, tmp_path / "weights", probe=new.probe)

    asyncio.run(run())


def test_weights_that_are_no_numbers_are_detected(
    vllm_server: Any, old: Weights, new: Weights, tmp_path: Path
) -> None:
    shutil.copytree(new.folder, tmp_path / "weights")
    tensors = load_file(tmp_path / "weights" / "model.safetensors")
    tensors["model.norm.weight"].fill_(float("nan"))
    save_file(tensors, tmp_path / "weights" / "model.safetensors")

    async def run() -> Completion:
        async with attached(vllm_server) as engine:
            with pytest.raises(StaleWeights, match="not numbers"):
                await engine.update_weights(100, tmp_path / "weights", probe=new.probe)
            await engine.update_weights(101, old.folder, probe=old.probe)
            return await sample_greedily(engine)

    assert asyncio.run(run()).ids == old.greedy(PROMPT, 24)


def test_tensors_are_refused_by_a_server_on_a_cpu(vllm_server: Any, new: Weights) -> None:
    async def run() -> None:
        async with attached(vllm_server) as engine:
            with pytest.raises(UnsupportedServer, match="this server runs on a CPU"):
                await engine.update_weights(110, tensors=new.model.state_dict().items())

    asyncio.run(run())


def test_a_server_that_cannot_pause_is_refused(vllm_server: Any, new: Weights) -> None:
    async def run() -> None:
        async with attached(vllm_server) as engine:
            bare = ServerFeatures(paths=frozenset({"/v1/completions"}))
            updater = WeightUpdater(engine.control, engine.model_name, features=bare)
            with pytest.raises(UnsupportedServer, match="VLLM_SERVER_DEV_MODE=1"):
                await updater.update(120, new.folder)

    asyncio.run(run())


@pytest.mark.parametrize("sources", [{}, {"folder": "a", "lora": "b"}])
def test_an_update_has_one_source(vllm_server: Any, sources: dict[str, str]) -> None:
    async def run() -> None:
        async with attached(vllm_server) as engine:
            with pytest.raises(ValueError, match="an update has one source"):
                await engine.weights.update(130, **sources)  # type: ignore[arg-type]

    asyncio.run(run())
