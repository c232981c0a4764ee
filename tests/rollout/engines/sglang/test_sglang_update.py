"""Live weight updates of the real SGLang server: what is served afterwards, what is refused."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import pytest
import torch
from safetensors.torch import load_file, save_file

from palestra.rollout.engine import Probe, StaleWeights
from palestra.rollout.engine_errors import BadLogprobs
from palestra.rollout.engine_sglang import SGLangEngine
from palestra.rollout.server_process import ServerProcess
from palestra.rollout.sglang_update import check_served, warm_cache
from palestra.types import Completion, Sampling, VersionSpan

from .conftest import Weights

T = TypeVar("T")

PROMPT = tuple(range(5, 45))

pytestmark = pytest.mark.slow


@asynccontextmanager
async def serving_old(server: ServerProcess, old: Weights) -> AsyncGenerator[SGLangEngine, None]:
    """An engine whose server has the old weights as version 1, before and after."""
    engine = await SGLangEngine.attach(server.base_url, stop_ids=frozenset(), timeout_s=120.0)
    try:
        await engine.update_weights(1, old.folder, probe=old.probe)
        yield engine
    finally:
        await engine.update_weights(1, old.folder, probe=old.probe)
        await engine.aclose()


def on(
    server: ServerProcess, old: Weights, work: Callable[[SGLangEngine], Coroutine[Any, Any, T]]
) -> T:
    async def run() -> T:
        async with serving_old(server, old) as engine:
            return await work(engine)

    return asyncio.run(run())


async def in_progress(engine: SGLangEngine, sampling: Sampling) -> asyncio.Task[Completion]:
    """A generation of which the server has sampled some tokens."""
    work = asyncio.create_task(engine.generate(PROMPT, sampling))
    for _ in range(3000):
        loads = (await engine.control.get("/v1/loads", timeout_s=10))["loads"]
        if sum(load["num_used_tokens"] for load in loads) > len(PROMPT) + 20:
            return work
        await asyncio.sleep(0.01)
    pytest.fail("the server never began")


def named_tensors(weights: Weights) -> list[tuple[str, torch.Tensor]]:
    return list(load_file(weights.folder / "model.safetensors").items())


def largest_error(one: Any, other: Any) -> float:
    return max(abs(float(a) - float(b)) for a, b in zip(one, other, strict=True))


def recomputed(version: int, start: int, end: int) -> VersionSpan:
    """Tokens of weights whose update threw older weights' keys away."""
    return VersionSpan(version=version, start=start, end=end, kv_after_update="recompute")


@pytest.mark.parametrize("source", ["folder", "tensor", "distributed"])
def test_new_weights_are_served_with_their_tied_head(
    sglang_server: ServerProcess, old: Weights, new: Weights, source: str
) -> None:
    """The check after the update would raise; sampling with transformers agrees with it."""

    async def update(engine: SGLangEngine) -> list[Completion]:
        completions = []
        sampling = Sampling(temperature=0.0, max_tokens=16)
        for version, weights in ((2, new), (3, old), (4, new)):
            if source == "folder":
                await engine.update_weights(version, weights.folder, probe=weights.probe)
            else:
                await engine.update_weights(
                    version,
                    tensors=named_tensors(weights),
                    transfer="tensor" if source == "tensor" else "distributed",
                    probe=weights.probe,
                )
            assert engine.version == version
            completions.append(await engine.generate(PROMPT, sampling))
        return completions

    completions = on(sglang_server, old, update)
    for completion, weights, version in zip(completions, (new, old, new), (2, 3, 4), strict=True):
        assert completion.ids == weights.greedy(PROMPT, 16)
        assert completion.version_spans == (recomputed(version, 0, 16),)
        assert largest_error(completion.logprobs, weights.logprobs(PROMPT, completion.ids)) < 1e-3


def test_after_a_retraction_each_token_is_of_the_weights_that_its_span_names(
    sglang_server: ServerProcess, old: Weights, new: Weights
) -> None:
    async def update(engine: SGLangEngine) -> list[Completion]:
        samplings = [Sampling(max_tokens=700, temperature=t) for t in (1.0, 0.7)]
        works = [await in_progress(engine, sampling) for sampling in samplings]
        await engine.update_weights(2, new.folder, probe=new.probe, mode="keep")
        return [await work for work in works]

    for completion, temperature in zip(on(sglang_server, old, update), (1.0, 0.7), strict=True):
        before, after = completion.version_spans
        switch = before.end
        assert before == recomputed(1, 0, switch)
        assert after == recomputed(2, switch, 700)
        assert 0 < switch < 700
        of_old = old.logprobs(PROMPT, completion.ids, temperature)
        of_new = new.logprobs(PROMPT, completion.ids, temperature)
        assert largest_error(completion.logprobs[:switch], of_old[:switch]) < 1e-3
        assert largest_error(completion.logprobs[switch:], of_new[switch:]) < 1e-3
        # The two would not be mistaken for each other.
        assert largest_error(of_old[:switch], of_new[:switch]) > 0.1
        assert largest_error(of_old[switch:], of_new[switch:]) > 0.1


def test_kept_keys_of_older_weights_are_attended_to(
    sglang_server: ServerProcess, old: Weights, new: Weights
) -> None:
    """`kv_after_update="keep"`: after the switch a mixture that neither model gives alone."""

    async def update(engine: SGLangEngine) -> Completion:
        work = await in_progress(engine, Sampling(max_tokens=400))
        await engine.update_weights(
            2, new.folder, probe=new.probe, mode="keep", kv_after_update="keep"
        )
        return await work

    completion = on(sglang_server, old, update)
    before, after = completion.version_spans
    start = after.start
    assert before == recomputed(1, 0, start)
    assert after == VersionSpan(version=2, start=start, end=400, kv_after_update="keep")
    of_old = old.logprobs(PROMPT, completion.ids)
    of_new = new.logprobs(PROMPT, completion.ids)
    assert largest_error(completion.logprobs[:start], of_old[:start]) < 1e-3
    assert largest_error(completion.logprobs[start:], of_new[start:]) > 1e-2
    assert largest_error(completion.logprobs[start:], of_old[start:]) > 1e-2


def test_waiting_lets_what_is_in_progress_end_and_holds_back_what_comes(
    sglang_server: ServerProcess, old: Weights, new: Weights
) -> None:
    async def update(engine: SGLangEngine) -> tuple[Completion, Completion, bool]:
        work = await in_progress(engine, Sampling(max_tokens=300))
        updating = asyncio.create_task(
            engine.update_weights(2, new.folder, probe=new.probe, mode="wait")
        )
        await asyncio.sleep(0.1)
        later = asyncio.create_task(engine.generate(PROMPT, Sampling(max_tokens=5)))
        await asyncio.sleep(0.1)
        held_back = not later.done()
        await updating
        return await work, await later, held_back

    earlier, later, held_back = on(sglang_server, old, update)
    assert held_back
    assert earlier.version_spans == (recomputed(1, 0, 300),)
    assert later.version_spans == (recomputed(2, 0, 5),)


def test_aborting_ends_generations_with_what_they_have(
    sglang_server: ServerProcess, old: Weights, new: Weights
) -> None:
    async def update(engine: SGLangEngine) -> Completion:
        work = await in_progress(engine, Sampling(max_tokens=900))
        await engine.update_weights(2, new.folder, probe=new.probe, mode="abort")
        return await work

    completion = on(sglang_server, old, update)
    assert completion.stop_reason == "abort"
    assert 0 < len(completion.ids) < 900
    assert completion.version_spans == (recomputed(1, 0, len(completion.ids)),)
    expected = old.logprobs(PROMPT, completion.ids)
    assert largest_error(completion.logprobs, expected) < 1e-3


async def reload_behind_its_back(
    engine: SGLangEngine, weights: Weights, version: str, *, flush: bool
) -> None:
    await engine.control.post(
        "/update_weights_from_disk",
        {"model_path": str(weights.folder), "weight_version": version, "flush_cache": flush},
        timeout_s=60,
    )


@pytest.mark.parametrize("flushed", [False, True])
def test_a_prefix_cache_that_was_not_flushed_is_found_out(
    sglang_server: ServerProcess, old: Weights, new: Weights, flushed: bool
) -> None:
    async def update(engine: SGLangEngine) -> None:
        await warm_cache(engine.control, old.probe, timeout_s=60)
        assert new.probe.token_ids == old.probe.token_ids
        await reload_behind_its_back(engine, new, "2", flush=flushed)
        if flushed:
            await check_served(engine.control, new.probe, "2")
            return
        with pytest.raises(StaleWeights, match="computes with keys of older weights"):
            await check_served(engine.control, new.probe, "2")
        await check_served(engine.control, new.probe, "2", cache_cleared=False)

    on(sglang_server, old, update)


def test_other_weights_and_other_versions_are_found_out(
    sglang_server: ServerProcess, old: Weights, new: Weights
) -> None:
    async def check(engine: SGLangEngine) -> None:
        with pytest.raises(StaleWeights, match="says that it serves version '1', it was sent '2'"):
            await check_served(engine.control, old.probe, "2")
        with pytest.raises(StaleWeights, match="computes with other weights"):
            await check_served(engine.control, new.probe, "1")
        with pytest.raises(StaleWeights, match="computes with other weights"):
            await engine.update_weights(2, new.folder, probe=old.probe)

    on(sglang_server, old, check)


def changed(
    folder: Path, weights: Weights, change: Callable[[dict[str, torch.Tensor]], Any]
) -> Path:
    """A copy of the weights with something wrong."""
    tensors = dict(named_tensors(weights))
    change(tensors)
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model.norm.weight"), r"lacks model\.norm\.weight"),
        (lambda t: t.update(extra=torch.ones(2)), "has an unknown tensor, extra"),
        (
            lambda t: t.update({"model.norm.weight": torch.ones(3)}),
            r"model\.norm\.weight has shape \[3\], the served model's is \[64\]",
        ),
    ],
    ids=["lacking", "extra", "shape"],
)
def test_weights_that_do_not_fit_are_refused_and_the_old_ones_served(
    sglang_server: ServerProcess, old: Weights, tmp_path: Path, change: Any, message: str
) -> None:
    folder = changed(tmp_path / "bad", old, change)
    tensors = list(load_file(folder / "model.safetensors").items())

    async def update(engine: SGLangEngine) -> Completion:
        with pytest.raises(ValueError, match=message):
            await engine.update_weights(2, folder, probe=old.probe)
        with pytest.raises(ValueError, match=message):
            await engine.update_weights(2, tensors=tensors, probe=old.probe)
        assert engine.version == 1
        await check_served(engine.control, old.probe, "1")
        return await engine.generate(PROMPT, Sampling(temperature=0.0, max_tokens=4))

    completion = on(sglang_server, old, update)
    assert completion.ids == old.greedy(PROMPT, 4)
    assert completion.version_spans == (recomputed(1, 0, 4),)


def test_weights_that_are_not_numbers_are_found_out(
    sglang_server: ServerProcess, old: Weights, tmp_path: Path
) -> None:
    broken = changed(tmp_path / "nan", old, lambda t: t["model.norm.weight"].fill_(float("nan")))

    async def update(engine: SGLangEngine) -> None:
        with pytest.raises(BadLogprobs, match="not a number"):
            await engine.update_weights(2, broken, probe=old.probe)
        with pytest.raises(BadLogprobs, match="not a number"):
            await engine.generate(PROMPT, Sampling(temperature=0.0, max_tokens=4))

    on(sglang_server, old, update)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "a folder or tensors, got neither"),
        ({"folder": "x", "tensors": []}, "a folder or tensors, got both"),
        ({"folder": "x", "mode": "now"}, "mode is one of wait, keep, abort, got 'now'"),
        ({"folder": "x", "kv_after_update": "drop"}, "recompute, keep, got 'drop'"),
        ({"folder": "x", "probe": Probe(token_ids=(1,), logprobs=())}, "a probe needs at least"),
        ({"folder": "/not/here"}, "there is no weight folder /not/here"),
    ],
)
def test_contradictory_updates_are_refused(
    sglang_server: ServerProcess, old: Weights, arguments: dict[str, Any], message: str
) -> None:
    async def update(engine: SGLangEngine) -> None:
        with pytest.raises(ValueError, match=message):
            await engine.update_weights(2, **arguments)
        await check_served(engine.control, old.probe, "1")

    on(sglang_server, old, update)


@pytest.mark.parametrize("mode", ["wait", "keep", "abort"])
def test_a_server_goes_on_after_an_update_that_failed(
    sglang_server: ServerProcess,
    old: Weights,
    tmp_path: Path,
    mode: Literal["wait", "keep", "abort"],
) -> None:
    """A folder that only the server finds missing, after it was halted."""

    async def update(engine: SGLangEngine) -> Completion:
        elsewhere = SGLangEngine(
            engine.client,
            engine.control,
            replace(engine.traits, model_folder=tmp_path / "unknown"),
            stop_ids=frozenset(),
            context_length=engine.context_length,
            version=1,
            timeout_s=60.0,
        )
        with pytest.raises(ValueError, match="missing could not be loaded: Failed to get weights"):
            await elsewhere.update_weights(2, tmp_path / "missing", mode=mode)
        return await elsewhere.generate(PROMPT, Sampling(max_tokens=4))

    completion = on(sglang_server, old, update)
    assert completion.version_spans == (VersionSpan(version=1, start=0, end=4),)
