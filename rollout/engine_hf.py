"""The embedded engine: continuous batching over a transformers model in this process.

Every step runs one packed forward pass: one new token of each running sequence, and the prompts
that arrived since the last step. A sequence owns a slot of a static key-value cache and keeps it
after its turn, so that the next turn of the same conversation computes only what was added.

Shapes: T packed tokens, N sequences in a pass, Q new tokens of a sequence, S slots, C cached
positions, H heads, K key-value heads, D head size, V vocabulary.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from palestra.rollout.attention import hidden_states, require_packable
from palestra.rollout.sampling import sample
from palestra.rollout.slot_cache import Group, SlotCache, similar_counts
from palestra.types import Completion, Sampling, VersionSpan

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(slots=True, eq=False)
class _Sequence:
    """A generation in progress."""

    prompt_ids: tuple[int, ...]
    sampling: Sampling
    done: asyncio.Future[Completion]
    uniforms: list[float]  # one draw in [0, 1) per token to come
    slot: int = -1
    cached: int = 0  # how many leading tokens have their keys in the slot
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    spans: list[VersionSpan] = field(default_factory=list)

    def tokens(self) -> tuple[int, ...]:
        return (*self.prompt_ids, *self.ids)

    def record(self, token: int, logprob: float, version: int) -> None:
        self.cached = len(self.prompt_ids) + len(self.ids)
        self.ids.append(token)
        self.logprobs.append(logprob)
        end = len(self.ids)
        continues = bool(self.spans) and self.spans[-1].version == version
        start = self.spans.pop().start if continues else end - 1
        self.spans.append(VersionSpan(version=version, start=start, end=end))


class HFEngine:
    """Generates with a transformers causal language model, in float32 or as the model is.

    The model may be the trainer's own: call `update_weights` after each optimizer step, and no
    generation sees cached keys of older weights.

    Args:
        model: a full-attention causal language model; used in place, never copied.
        stop_ids: token ids that end a reply (included in the completion).
        max_slots: how many sequences run at once.
        context_length: most tokens of prompt + completion; a longer prompt raises ValueError.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        stop_ids: frozenset[int],
        max_slots: int = 256,
        context_length: int = 512,
    ) -> None:
        require_packable(model)
        self.context_length = context_length
        self.version = 0
        self._model = model
        self._stop_ids = stop_ids
        self._cache = SlotCache(model, max_slots, context_length)
        self._arrivals: list[_Sequence] = []
        self._running: list[_Sequence] = []
        self._between_steps = asyncio.Lock()
        self._loop_task: asyncio.Task[None] | None = None
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Completion:
        """Sample one completion.

        Raises:
            ValueError: an empty prompt, or one that leaves no room in the context.
        """
        prompt = tuple(prompt_ids)
        room = self.context_length - len(prompt)
        if not prompt or room < 1:
            raise ValueError(
                f"a prompt of {len(prompt)} tokens does not fit: it needs 1 to "
                f"{self.context_length - 1} (context_length {self.context_length})"
            )
        budget = min(sampling.max_tokens, room)
        sequence = _Sequence(
            prompt_ids=prompt,
            sampling=sampling,
            done=asyncio.get_running_loop().create_future(),
            uniforms=_uniforms(sampling.seed, budget),
        )
        self._arrivals.append(sequence)
        if self._loop_task is None or self._loop_task.done():
            self._loop_task = asyncio.create_task(self._run())
        return await sequence.done

    async def update_weights(self, version: int, load: Callable[[], None] = lambda: None) -> None:
        """Change the weights between two steps; later tokens carry `version`.

        `load` writes the new weights into the model; the default notes that the caller, who shares
        the model, has done so. Sequences in progress go on with the new weights, their keys
        computed afresh (`kv_after_update = "recompute"`).
        """
        async with self._between_steps:
            load()
            self.version = version
            self._cache.forget()
            self._arrivals = self._running + self._arrivals
            self._running = []

    def close(self) -> None:
        """Stop the engine's thread; unfinished generations are cancelled."""
        for sequence in (*self._arrivals, *self._running):
            sequence.done.cancel()
        self._worker.shutdown(wait=True)

    async def _run(self) -> None:
        """Step until nothing is left to do."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                # Let every coroutine that is ready submit its request before the next pass.
                await asyncio.sleep(0)
                async with self._between_steps:
                    self._drop_cancelled()
                    self._admit()
                    if not self._running:
                        return
                    await loop.run_in_executor(self._worker, self._step)
                    self._finish_ended()
        except Exception as error:
            for sequence in (*self._arrivals, *self._running):
                if not sequence.done.done():
                    sequence.done.set_exception(error)
            self._arrivals, self._running = [], []
            self._cache.forget()

    def _drop_cancelled(self) -> None:
        for sequence in self._running:
            if sequence.done.cancelled():
                self._cache.release(sequence.slot, ())
        self._running = [s for s in self._running if not s.done.cancelled()]
        self._arrivals = [s for s in self._arrivals if not s.done.cancelled()]

    def _admit(self) -> None:
        """Give slots to arrivals, in order, as long as there are any."""
        while self._arrivals and self._cache.has_room():
            sequence = self._arrivals.pop(0)
            sequence.slot, sequence.cached = self._cache.acquire(sequence.tokens())
            self._running.append(sequence)

    def _finish_ended(self) -> None:
        running = []
        for sequence in self._running:
            if sequence.ids[-1] in self._stop_ids:
                stop_reason = "stop"
            elif len(sequence.ids) == len(sequence.uniforms):
                stop_reason = "length"
            else:
                running.append(sequence)
                continue
            # The last token was sampled but never fed: its keys are not in the cache.
            self._cache.release(sequence.slot, sequence.tokens()[:-1])
            if not sequence.done.done():
                sequence.done.set_result(
                    Completion(
                        ids=tuple(sequence.ids),
                        logprobs=tuple(sequence.logprobs),
                        stop_reason=stop_reason,
                        version_spans=tuple(sequence.spans),
                    )
                )
        self._running = running

    @torch.inference_mode()
    def _step(self) -> None:
        """One forward pass and one sampled token per sequence."""
        device = self._model.device
        # One new token each, then prompts; those of similar length share an attention call.
        order = sorted(self._running, key=lambda s: len(s.prompt_ids) + len(s.ids) - s.cached)
        ids = [token for sequence in order for token in sequence.tokens()[sequence.cached :]]
        counts = [len(s.prompt_ids) + len(s.ids) - s.cached for s in order]
        groups = [
            Group(
                [s.slot for s in order[chunk]],
                [s.cached for s in order[chunk]],
                counts[chunk],
                device,
            )
            for chunk in similar_counts(counts)
        ]
        layout = self._cache.layout(groups)
        hidden_TE = hidden_states(
            self._model, torch.tensor(ids, device=device), layout.positions_T, layout
        )
        logits_NV = self._model.get_output_embeddings()(hidden_TE[layout.last_N])
        samplings = [s.sampling for s in order]
        uniforms = [s.uniforms[len(s.ids)] for s in order]
        tokens, logprobs = sample(logits_NV, samplings, uniforms)
        if any(logprob != logprob for logprob in logprobs):
            raise RuntimeError("the model's logits are not numbers (NaN): its weights are broken")
        for sequence, token, logprob in zip(order, tokens, logprobs, strict=True):
            sequence.record(token, logprob, self.version)


def _uniforms(seed: int | None, count: int) -> list[float]:
    """One uniform draw per token: what a seed samples does not depend on who shares the batch."""
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    draws: list[float] = torch.rand(count, generator=generator, dtype=torch.float64).tolist()
    return draws
