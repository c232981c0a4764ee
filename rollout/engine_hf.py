"""The embedded engine: continuous batching over a transformers model in this process.

Every step runs one packed forward pass: one new token of each running sequence, and the prompts
that arrived since the last step. A sequence owns a slot of a static key-value cache and keeps it
after its turn, so that the next turn of the same conversation computes only what was added. What
several prompts begin with is computed once.

Shapes: T packed tokens, N sequences in a pass, E hidden size, V vocabulary.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from palestra.rollout.attention import Segments, hidden_states, require_packable
from palestra.rollout.engine_errors import BadLogprobs, ContextOverflow, UnknownToken
from palestra.rollout.prefix_index import BLOCK, PrefixIndex
from palestra.rollout.sampling import Sampler
from palestra.rollout.slot_cache import Group, SlotCache, SlotLayout, similar_counts
from palestra.types import Completion, Sampling, VersionSpan

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Prompts beyond so many tokens wait for the next pass: they take memory, and everybody's time.
_MAX_PROMPT_TOKENS = 8192

# How many positions are scored at once: each has a number for every token of the vocabulary.
_SCORED_AT_ONCE = 256


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
    switches: list[tuple[int, int]] = field(default_factory=list)  # version, its first token

    def tokens(self) -> tuple[int, ...]:
        return (*self.prompt_ids, *self.ids)

    def uncached(self) -> Sequence[int]:
        """The tokens to compute, at least one."""
        start = self.cached - len(self.prompt_ids)
        return self.ids[start:] if start >= 0 else self.tokens()[self.cached :]

    def record(self, token: int, logprob: float, version: int) -> None:
        if not self.switches or self.switches[-1][0] != version:
            self.switches.append((version, len(self.ids)))
        self.cached = len(self.prompt_ids) + len(self.ids)
        self.ids.append(token)
        self.logprobs.append(logprob)

    def completion(self, stop_reason: str) -> Completion:
        ends = [*(start for _, start in self.switches[1:]), len(self.ids)]
        return Completion(
            ids=tuple(self.ids),
            logprobs=tuple(self.logprobs),
            stop_reason=stop_reason,
            version_spans=tuple(
                VersionSpan(version=version, start=start, end=end)
                for (version, start), end in zip(self.switches, ends, strict=True)
            ),
        )


@dataclass(slots=True, eq=False)
class _Pass:
    """What a step computes; it serves the next one too while the same sequences go on."""

    order: list[_Sequence]
    ids_T: Tensor
    layout: SlotLayout
    sampler: Sampler


class HFEngine:
    """Generates with a transformers causal language model, in float32 or as the model is.

    The model may be the trainer's own: call `update_weights` after each optimizer step, and no
    generation sees cached keys of older weights.

    `prompt_tokens_computed` counts the tokens that went through the model before a first sampled
    one: fewer than the prompts have, where these continue or begin as others do.

    Args:
        model: a full-attention causal language model; used in place, never copied.
        stop_ids: token ids that end a reply (included in the completion).
        max_slots: how many sequences run at once.
        context_length: most tokens of prompt + completion; a longer prompt raises ContextOverflow.
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
        self.prompt_tokens_computed = 0
        self._model = model
        embeddings: Any = model.get_input_embeddings()
        self._vocabulary = embeddings.weight.shape[0]
        self._stop_ids = stop_ids
        self._cache = SlotCache(model, max_slots, context_length)
        self._arrivals: list[_Sequence] = []
        self._running: list[_Sequence] = []
        self._next_pass: _Pass | None = None
        self._between_steps = asyncio.Lock()
        self._loop_task: asyncio.Task[None] | None = None
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Completion:
        """Sample one completion.

        Raises:
            ContextOverflow: an empty prompt, or one that leaves no room in the context.
            UnknownToken: an id that the model has no embedding for.
            ValueError: a structure is asked for, which takes a grammar.
            BadLogprobs: the weights give numbers that are none.
        """
        prompt = tuple(prompt_ids)
        room = self.context_length - len(prompt)
        if not prompt or room < 1:
            raise ContextOverflow(
                f"a prompt of {len(prompt)} tokens does not fit: it needs 1 to "
                f"{self.context_length - 1} (context_length {self.context_length})"
            )
        if sampling.structure is not None:
            raise ValueError(
                "the embedded engine has no grammar for sampling.structure: use engine "
                '"vllm" or "sglang", or ask in the prompt and verify the reply'
            )
        self._check_ids(prompt)
        sequence = _Sequence(
            prompt_ids=prompt,
            sampling=sampling,
            done=asyncio.get_running_loop().create_future(),
            uniforms=_uniforms(sampling.seed, min(sampling.max_tokens, room)),
        )
        self._arrivals.append(sequence)
        if self._loop_task is None or self._loop_task.done():
            self._loop_task = asyncio.create_task(self._run())
        return await sequence.done

    async def score(self, token_ids: Sequence[int]) -> tuple[float, ...]:
        """The natural log-probability of each token but the first, at temperature 1.

        Runs between two steps of the generations in progress.

        Raises:
            ContextOverflow: no tokens, or more than the context holds.
            UnknownToken: an id that the model has no embedding for.
        """
        ids = tuple(token_ids)
        if not 0 < len(ids) <= self.context_length:
            raise ContextOverflow(
                f"a text of {len(ids)} tokens cannot be scored: it needs 1 to "
                f"{self.context_length} (context_length)"
            )
        self._check_ids(ids)
        async with self._between_steps:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._worker, self._score, ids)

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
            self._next_pass = None
            for sequence in self._running:
                sequence.cached = 0
            self._arrivals = self._running + self._arrivals
            self._running = []

    def close(self) -> None:
        """Stop the engine's thread; unfinished generations are cancelled."""
        self._cancel_all()
        self._worker.shutdown(wait=True)

    async def aclose(self) -> None:
        """The same; the pass in progress ends while the event loop goes on."""
        self._cancel_all()
        await asyncio.to_thread(self._worker.shutdown, wait=True)

    def _cancel_all(self) -> None:
        for sequence in (*self._arrivals, *self._running):
            sequence.done.cancel()

    def _check_ids(self, ids: Sequence[int]) -> None:
        if min(ids) < 0 or max(ids) >= self._vocabulary:
            unknown = next(i for i in ids if not 0 <= i < self._vocabulary)
            raise UnknownToken(
                f"token id {unknown} is not in the model's vocabulary of {self._vocabulary}: do "
                "tokenizer and model belong together?"
            )

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
            self._arrivals, self._running, self._next_pass = [], [], None
            self._cache.forget()

    def _drop_cancelled(self) -> None:
        running = [s for s in self._running if not s.done.cancelled()]
        if len(running) < len(self._running):
            for sequence in self._running:
                if sequence.done.cancelled():
                    self._cache.release(sequence.slot, sequence.tokens()[: sequence.cached])
            self._running, self._next_pass = running, None
        self._arrivals = [s for s in self._arrivals if not s.done.cancelled()]

    def _admit(self) -> None:
        """Give slots to arrivals, in order, as long as there are any.

        One that begins as another that is admitted now waits a step, to copy what that computes.
        """
        if not self._arrivals:
            return
        begun = PrefixIndex()  # the texts that this pass computes, numbered
        admitted: list[_Sequence] = []
        waiting: list[_Sequence] = []
        to_compute = 0
        for index, sequence in enumerate(self._arrivals):
            if not self._cache.has_room() or to_compute > _MAX_PROMPT_TOKENS:
                waiting += self._arrivals[index:]
                break
            ids = sequence.tokens()
            ahead = begun.find(ids[:-1])
            if ahead is not None and ahead[1] >= self._cache.held(ids) + BLOCK:
                waiting.append(sequence)
                continue
            sequence.slot, sequence.cached = self._cache.acquire(ids)
            begun.put(index, ids)
            admitted.append(sequence)
            to_compute += len(ids) - sequence.cached
        self._arrivals = waiting
        if admitted:
            self.prompt_tokens_computed += to_compute
            self._running += admitted
            self._next_pass = None

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
                sequence.done.set_result(sequence.completion(stop_reason))
        if len(running) < len(self._running):
            self._running, self._next_pass = running, None

    @torch.inference_mode()
    def _step(self) -> None:
        """One forward pass and one sampled token per sequence."""
        now = self._next_pass or self._plan()
        order = now.order
        hidden_TE = hidden_states(self._model, now.ids_T, now.layout.positions_T, now.layout)
        if not now.layout.is_one_each:
            hidden_TE = hidden_TE[now.layout.last_N]
        logits_NV = self._model.get_output_embeddings()(hidden_TE)
        tokens_N, logprobs_N = now.sampler.draw(logits_NV, [s.uniforms[len(s.ids)] for s in order])
        logprobs = logprobs_N.tolist()
        if any(logprob != logprob for logprob in logprobs):
            raise BadLogprobs("the model's logits are not numbers (NaN): its weights are broken")
        for sequence, token, logprob in zip(order, tokens_N.tolist(), logprobs, strict=True):
            if len(sequence.ids) + len(sequence.prompt_ids) - sequence.cached > 1:
                self._cache.hold(sequence.slot, sequence.tokens())
            sequence.record(token, logprob, self.version)
        self._next_pass = None
        if now.layout.is_one_each:
            now.layout.advance()
            now.ids_T = tokens_N
            self._next_pass = now

    def _plan(self) -> _Pass:
        """The next pass over what runs now."""
        device = self._model.device
        self._cache.copy_shared()
        # One new token each, then prompts; those of similar length share an attention call.
        counted = sorted(
            ((len(s.prompt_ids) + len(s.ids) - s.cached, s.slot, s) for s in self._running),
            key=lambda entry: entry[:2],
        )
        counts = [count for count, _, _ in counted]
        order = [sequence for _, _, sequence in counted]
        ids = [token for sequence in order for token in sequence.uncached()]
        groups = [
            Group(
                [s.slot for s in order[chunk]],
                [s.cached for s in order[chunk]],
                counts[chunk],
                device,
            )
            for chunk in similar_counts(counts)
        ]
        return _Pass(
            order=order,
            ids_T=torch.tensor(ids, device=device),
            layout=self._cache.layout(groups),
            sampler=Sampler([s.sampling for s in order], device),
        )

    @torch.inference_mode()
    def _score(self, ids: tuple[int, ...]) -> tuple[float, ...]:
        ids_T = torch.tensor(ids, device=self._model.device)
        segments = Segments([len(ids)], self._model.device)
        hidden_TE = hidden_states(self._model, ids_T, segments.positions_T, segments)
        logprobs: list[float] = []
        for start in range(0, len(ids) - 1, _SCORED_AT_ONCE):
            end = min(start + _SCORED_AT_ONCE, len(ids) - 1)
            logits_TV = self._model.get_output_embeddings()(hidden_TE[start:end]).float()
            scored_T1 = logits_TV.log_softmax(-1).gather(-1, ids_T[start + 1 : end + 1, None])
            logprobs += scored_T1[:, 0].tolist()
        return tuple(logprobs)


def _uniforms(seed: int | None, count: int) -> list[float]:
    """One uniform draw per token: what a seed samples does not depend on who shares the batch."""
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)
    draws: list[float] = torch.rand(count, generator=generator, dtype=torch.float64).tolist()
    return draws
