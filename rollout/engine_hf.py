"""The embedded engine: continuous batching over a transformers model in this process.

Every step runs one packed forward pass: one new token of each running sequence, and the prompts
that arrived since the last step. A sequence owns a slot of a static key-value cache and keeps it
after its turn, so that the next turn of the same conversation computes only what was added. What
several prompts begin with is computed once.

Shapes: T packed tokens, N sequences in a pass, E hidden size, V vocabulary.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from palestra.rollout.attention import Segments, hidden_states, require_packable
from palestra.rollout.engine import KvAfterUpdate, Piece
from palestra.rollout.engine_errors import BadLogprobs, ContextOverflow, UnknownToken
from palestra.rollout.generation import Generation, Listener
from palestra.rollout.grammar import Grammars
from palestra.rollout.prefix_index import BLOCK, PrefixIndex
from palestra.rollout.sampling import Sampler, draw_uniforms, likeliest
from palestra.rollout.slot_cache import Group, SlotCache, SlotLayout, similar_counts
from palestra.types import Completion, Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Prompts beyond so many tokens wait for the next pass: they take memory, and everybody's time.
_MAX_PROMPT_TOKENS = 8192

# How many positions are scored at once: each has a number for every token of the vocabulary.
_SCORED_AT_ONCE = 256


@dataclass(slots=True, eq=False)
class _Pass:
    """What a step computes; it serves the next one too while the same sequences go on."""

    order: list[Generation]
    ids_T: Tensor
    layout: SlotLayout
    sampler: Sampler
    shaped: list[int]  # which of them have a grammar
    watched: list[int]  # of which the likeliest tokens are wanted


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
        tokenizer: the model's, for structured replies.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        stop_ids: frozenset[int],
        max_slots: int = 256,
        context_length: int = 512,
        tokenizer: PreTrainedTokenizerBase | None = None,
    ) -> None:
        require_packable(model)
        self.context_length = context_length
        self.version = 0
        self._kv_after_update: KvAfterUpdate | None = None  # that of the last update
        self.prompt_tokens_computed = 0
        self._model = model
        embeddings: Any = model.get_input_embeddings()
        self._vocabulary = embeddings.weight.shape[0]
        self._stop_ids = stop_ids
        self._cache = SlotCache(model, max_slots, context_length)
        self._grammars = (
            None if tokenizer is None else Grammars(tokenizer, self._vocabulary, stop_ids)
        )
        self._listeners: dict[Listener, None] = {}  # in the order in which they came
        self._dead_ends: list[tuple[Generation, ValueError]] = []
        self._arrivals: list[Generation] = []
        self._running: list[Generation] = []
        self._next_pass: _Pass | None = None
        self._between_steps = asyncio.Lock()
        self._loop_task: asyncio.Task[None] | None = None
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Completion:
        """Sample one completion.

        Raises:
            ContextOverflow: an empty prompt, or one that leaves no room in the context.
            UnknownToken: an id that the model has no embedding for.
            ValueError: a structure that there is no grammar for, or no tokenizer.
            BadLogprobs: the weights give numbers that are none.
        """
        generation = await self._prepare(prompt_ids, sampling)
        self._submit(generation)
        return await generation.done

    async def stream(
        self, prompt_ids: Sequence[int], sampling: Sampling, *, top_logprobs: int = 0
    ) -> AsyncGenerator[Piece, None]:
        """The same, as it is sampled; what has come meanwhile makes one piece. Raises the same."""
        generation = await self._prepare(prompt_ids, sampling, top_logprobs)
        listener = Listener(generation)
        self._listeners[listener] = None
        self._submit(generation)
        try:
            while True:
                piece = await listener.next_piece()
                yield piece
                if piece.stop_reason is not None:
                    return
        finally:
            del self._listeners[listener]
            generation.done.cancel()

    async def _prepare(
        self, prompt_ids: Sequence[int], sampling: Sampling, top_logprobs: int = 0
    ) -> Generation:
        prompt = tuple(prompt_ids)
        room = self.context_length - len(prompt)
        if not prompt or room < 1:
            raise ContextOverflow(
                f"a prompt of {len(prompt)} tokens does not fit: it needs 1 to "
                f"{self.context_length - 1} (context_length {self.context_length})"
            )
        self._check_ids(prompt)
        grammar = None
        if sampling.structure is not None:
            if self._grammars is None:
                raise ValueError(
                    "the embedded engine has no grammar for sampling.structure: give HFEngine the "
                    "model's tokenizer (tokenizer=...)"
                )
            grammar = await asyncio.to_thread(self._grammars.compile, sampling.structure)
        return Generation(
            prompt_ids=prompt,
            sampling=sampling,
            done=asyncio.get_running_loop().create_future(),
            uniforms=draw_uniforms(sampling.seed, min(sampling.max_tokens, room)),
            top_logprobs=top_logprobs,
            grammar=grammar,
        )

    def _submit(self, generation: Generation) -> None:
        self._arrivals.append(generation)
        if self._loop_task is None or self._loop_task.done():
            self._loop_task = asyncio.create_task(self._run())

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
            self.version, self._kv_after_update = version, "recompute"
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
                    self._drop_ended()
                    self._admit()
                    if not self._running:
                        return
                    await loop.run_in_executor(self._worker, self._step)
                    self._finish_ended()
                    for listener in self._listeners:
                        listener.hear()
        except Exception as error:
            for sequence in (*self._arrivals, *self._running):
                if not sequence.done.done():
                    sequence.done.set_exception(error)
            self._arrivals, self._running, self._next_pass = [], [], None
            self._cache.forget()

    def _drop_ended(self) -> None:
        """Forget those that nobody waits for, or that failed alone."""
        running = [s for s in self._running if not s.done.done()]
        if len(running) < len(self._running):
            for sequence in self._running:
                if sequence.done.done():
                    self._cache.release(sequence.slot, sequence.tokens()[: sequence.cached])
            self._running, self._next_pass = running, None
        self._arrivals = [s for s in self._arrivals if not s.done.done()]

    def _admit(self) -> None:
        """Give slots to arrivals, in order, as long as there are any.

        One that begins as another that is admitted now waits a step, to copy what that computes.
        """
        if not self._arrivals:
            return
        begun = PrefixIndex()  # the texts that this pass computes, numbered
        admitted: list[Generation] = []
        waiting: list[Generation] = []
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
        for generation, error in self._dead_ends:
            if not generation.done.done():
                generation.done.set_exception(error)
        self._dead_ends.clear()
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
        if now.shaped:
            self._shape(logits_NV, now)
        uniforms = [s.uniforms[len(s.ids)] for s in order]
        tokens_N, logprobs_N, probs_NV = now.sampler.draw(logits_NV, uniforms)
        logprobs = logprobs_N.tolist()
        if any(logprob != logprob for logprob in logprobs):
            raise BadLogprobs("the model's logits are not numbers (NaN): its weights are broken")
        for sequence, token, logprob in zip(order, tokens_N.tolist(), logprobs, strict=True):
            if len(sequence.ids) + len(sequence.prompt_ids) - sequence.cached > 1:
                self._cache.hold(sequence.slot, sequence.tokens())
            sequence.record(token, logprob, self.version, self._kv_after_update)
        for row in now.shaped:
            grammar = order[row].grammar
            assert grammar is not None
            grammar.take(order[row].ids[-1])
        if now.watched:
            wanted = [order[row].top_logprobs for row in now.watched]
            for row, top in zip(now.watched, likeliest(probs_NV[now.watched], wanted), strict=True):
                order[row].tops.append(top)
        self._next_pass = None
        if now.layout.is_one_each:
            now.layout.advance()
            now.ids_T = tokens_N
            self._next_pass = now

    def _shape(self, logits_NV: Tensor, now: _Pass) -> None:
        """Leave each reply that has a structure the tokens that go on in it."""
        for row in now.shaped:
            generation = now.order[row]
            assert generation.grammar is not None
            try:
                allowed_V = generation.grammar.allowed_V().to(logits_NV.device)
            except ValueError as error:
                self._dead_ends.append((generation, error))
            else:
                logits_NV[row].masked_fill_(~allowed_V, -torch.inf)

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
            shaped=[row for row, s in enumerate(order) if s.grammar is not None],
            watched=[row for row, s in enumerate(order) if s.top_logprobs],
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
