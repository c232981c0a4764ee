"""Run with the Python that has vLLM: `inprocess_check.py OLD NEW`. Fails where a claim is wrong."""

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from palestra.rollout.engine import StaleWeights
from palestra.rollout.engine_vllm_inprocess import InProcessVLLM
from palestra.trainer.probe import make_probe
from palestra.types import Completion, Sampling

PROMPT = tuple(range(5, 45))


@contextmanager
def expecting(kind: type[Exception], words: str) -> Iterator[None]:
    """As pytest.raises, which that Python does not have."""
    raised = "nothing"
    try:
        yield
    except kind as error:
        raised = str(error)
    assert words in raised, f"{raised} was raised; expected {words!r}"


def load(folder: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
def error(model: Any, completion: Completion, temperature: float = 1.0) -> torch.Tensor:
    """How far each sampled token's log-probability is from the model's."""
    ids = torch.tensor([[*PROMPT, *completion.ids]])
    logits_TV = model(ids).logits[0, len(PROMPT) - 1 : -1] / temperature
    logprobs_TV = torch.log_softmax(logits_TV, dim=-1)
    expected = logprobs_TV.gather(-1, ids[0, len(PROMPT) :, None])[:, 0]
    return (torch.tensor(completion.logprobs) - expected).abs()


async def main(old_folder: str, new_folder: str) -> None:
    old, new = load(old_folder), load(new_folder)
    engine = InProcessVLLM(
        old_folder,
        stop_ids=frozenset(),
        context_length=1024,
        max_concurrent=8,
        kv_cache_gib=1 / 16,
        enforce_eager=True,
    )
    completion = await engine.generate(PROMPT, Sampling(temperature=0.7, max_tokens=40, seed=1))
    assert completion.stop_reason == "length"
    assert error(old, completion, 0.7).max() < 1e-3

    # A stream is one piece, with the likeliest tokens.
    sampling = Sampling(temperature=0.7, max_tokens=40, seed=1)
    (piece,) = [piece async for piece in engine.stream(PROMPT, sampling, top_logprobs=3)]
    assert (piece.ids, piece.stop_reason) == (completion.ids, "length")
    ids = torch.tensor([[*PROMPT, *piece.ids]])
    with torch.no_grad():
        logits_TV = old(ids).logits[0, len(PROMPT) - 1 : -1] / 0.7
    likeliest_TV = logits_TV.log_softmax(-1).topk(3).values
    tops_TV = torch.tensor([[logprob for _, logprob in top] for top in piece.top_logprobs])
    assert (tops_TV - likeliest_TV).abs().max() < 1e-3

    # Weights from memory, in the middle of generations.
    running = [
        asyncio.create_task(engine.generate(PROMPT, Sampling(max_tokens=300, seed=n)))
        for n in range(3)
    ]
    cancelled = asyncio.create_task(engine.generate(PROMPT, Sampling(max_tokens=900)))
    await asyncio.sleep(0.2)
    cancelled.cancel()
    await engine.update_weights(1, tensors=new.state_dict().items(), probe=make_probe(new))
    for completion in await asyncio.gather(*running):
        before, after = completion.version_spans
        assert (before.version, after.version, after.end) == (0, 1, 300)
        assert (before.kv_after_update, after.kv_after_update) == (None, "recompute")
        assert error(old, completion)[: before.end].max() < 1e-3
        assert error(new, completion)[before.end :].max() < 1e-3

    # From a folder, back again; what does not fit is refused and changes nothing.
    await engine.update_weights(2, old_folder, probe=make_probe(old))
    wrong = [(name, tensor[..., :1]) for name, tensor in new.state_dict().items()]
    with expecting(ValueError, "do not fit the served model"):
        await engine.update_weights(3, tensors=wrong)
    completion = await engine.generate(PROMPT, Sampling(max_tokens=40, seed=1))
    assert error(old, completion).max() < 1e-3
    assert [span.version for span in completion.version_spans] == [2]
    with expecting(StaleWeights, "does not compute with version 4"):
        await engine.update_weights(4, old_folder, probe=make_probe(new))
    await engine.aclose()
    print("every claim holds")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
