"""The embedded engine: continuous batching over a transformers model in this process.

Every step runs one packed forward pass: one new token of each running sequence, and the prompts
that arrived since the last step. A sequence owns a slot of a static key-value cache and keeps it
after its turn, so that the next turn of the same conversation computes only what was added.

Shapes: T packed tokens, N sequences in a pass, Q new tokens of a sequence, S slots, C cached
positions, H heads, K key-value heads, D head size, V vocabulary.
"""

from __future__ import annotations

import asyncio
import operator
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from palestra.rollout.attention import hidden_states, require_packable, trunk_config
from palestra.rollout.sampling import sample
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
        self._cache = _SlotCache(model, max_slots, context_length)
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
            _Group(
                [s.slot for s in order[chunk]],
                [s.cached for s in order[chunk]],
                counts[chunk],
                device,
            )
            for chunk in _similar(counts)
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


def _similar(ascending: list[int]) -> list[slice]:
    """Cut ascending counts into runs: the ones, then runs whose ends differ little."""
    cuts = [0]
    for index, count in enumerate(ascending):
        first = ascending[cuts[-1]]
        if count > first and (first == 1 or count > 1.5 * first + 4):
            cuts.append(index)
    cuts.append(len(ascending))
    return [slice(a, b) for a, b in pairwise(cuts)]


class _Group:
    """Sequences that attend together: `counts[i]` new tokens from position `starts[i]` on."""

    def __init__(
        self, slots: list[int], starts: list[int], counts: list[int], device: torch.device
    ) -> None:
        self.slots = slots
        self.slots_N = torch.tensor(slots, device=device)
        self.count = sum(counts)
        self.reach = max(map(operator.add, starts, counts))
        counts_N = torch.tensor(counts, device=device)
        offsets_Q = torch.arange(max(counts), device=device)
        self.real_NQ = offsets_Q < counts_N[:, None]
        self.positions_NQ = torch.tensor(starts, device=device)[:, None] + offsets_Q
        self.last_N = counts_N.cumsum(0) - 1
        reach_C = torch.arange(self.reach, device=device)
        self.mask_N1QC = (reach_C <= self.positions_NQ[:, :, None])[:, None]


class _SlotCache:
    """A static key-value cache of S slots, which remembers whose tokens each idle slot holds."""

    def __init__(self, model: PreTrainedModel, slots: int, context_length: int) -> None:
        config = trunk_config(model)
        heads = config.num_key_value_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        shape = (slots, heads, context_length, size)
        self._shape = shape
        self._like = torch.empty(0, dtype=model.dtype, device=model.device)
        self._layers = config.num_hidden_layers
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._free = list(range(slots - 1, -1, -1))  # popped from the end: lowest first
        self._held: dict[int, tuple[int, ...]] = {}  # idle slot -> its tokens, oldest first
        self._by_hash: dict[int, int] = {}  # hash of an idle slot's tokens -> slot

    def has_room(self) -> bool:
        return bool(self._free or self._held)

    def acquire(self, ids: tuple[int, ...]) -> tuple[int, int]:
        """Take the idle slot that holds the longest prefix of `ids`, else a free or the oldest one.

        Returns the slot and how many leading tokens it already holds; at least the last token is
        left to compute, because its logits are needed.
        """
        hashes = _prefix_hashes(ids[:-1]) if self._by_hash else []
        for length in range(len(hashes), 0, -1):
            slot = self._by_hash.get(hashes[length - 1])
            if slot is not None and self._held[slot] == ids[:length]:
                self._forget(slot)
                return slot, length
        if self._free:
            return self._free.pop(), 0
        slot = next(iter(self._held))
        self._forget(slot)
        return slot, 0

    def release(self, slot: int, ids: tuple[int, ...]) -> None:
        """Give a slot back, with the tokens whose keys it holds."""
        if not ids:
            self._free.append(slot)
            return
        self._held[slot] = ids
        self._by_hash[_prefix_hashes(ids)[-1]] = slot

    def forget(self) -> None:
        """Drop every slot's content: the weights changed."""
        slots = self._shape[0]
        self._free = list(range(slots - 1, -1, -1))
        self._held.clear()
        self._by_hash.clear()

    def _forget(self, slot: int) -> None:
        ids = self._held.pop(slot)
        key = _prefix_hashes(ids)[-1]
        if self._by_hash.get(key) == slot:
            del self._by_hash[key]

    def layout(self, groups: list[_Group]) -> _SlotLayout:
        if not self._keys:
            # Allocated at first use; zeros, because masked garbage could still be NaN.
            self._keys = [self._like.new_zeros(self._shape) for _ in range(self._layers)]
            self._values = [self._like.new_zeros(self._shape) for _ in range(self._layers)]
        return _SlotLayout(groups, self._keys, self._values)


class _SlotLayout:
    """Attention of new tokens against the cache (a `Layout`)."""

    def __init__(self, groups: list[_Group], keys: list[Tensor], values: list[Tensor]) -> None:
        self._groups = groups
        self._keys = keys
        self._values = values
        self.positions_T = torch.cat([g.positions_NQ[g.real_NQ] for g in groups])
        slots = [g.slots_N[:, None].expand_as(g.real_NQ)[g.real_NQ] for g in groups]
        self._slots_T = torch.cat(slots)
        offsets = [0, *accumulate(group.count for group in groups)]
        self.last_N = torch.cat([g.last_N + o for g, o in zip(groups, offsets, strict=False)])

    def attend(
        self, layer: int, query_HTD: Tensor, key_KTD: Tensor, value_KTD: Tensor, scale: float
    ) -> Tensor:
        """Store the new keys and values, then attend group by group."""
        keys, values = self._keys[layer], self._values[layer]
        keys[self._slots_T, :, self.positions_T] = key_KTD.transpose(0, 1)
        values[self._slots_T, :, self.positions_T] = value_KTD.transpose(0, 1)
        parts = query_HTD.transpose(0, 1).split([group.count for group in self._groups])
        return torch.cat(
            [
                _attend_group(group, part_THD, keys, values, scale)
                for group, part_THD in zip(self._groups, parts, strict=True)
            ]
        )


def _attend_group(
    group: _Group, query_THD: Tensor, keys: Tensor, values: Tensor, scale: float
) -> Tensor:
    heads, size = query_THD.shape[1:]
    kv_heads = keys.shape[1]
    count, width = group.real_NQ.shape
    if group.count == count * width:
        query_NQHD = query_THD.view(count, width, heads, size)
    else:
        query_NQHD = query_THD.new_zeros(count, width, heads, size)
        query_NQHD[group.real_NQ] = query_THD
    # Heads that share keys become more queries of one key-value head: no key is ever repeated.
    query = query_NQHD.view(count, width, kv_heads, heads // kv_heads, size)
    query = query.permute(0, 2, 3, 1, 4).reshape(count, kv_heads, -1, size)
    if group.slots == list(range(count)):
        key, value = keys[:count, :, : group.reach], values[:count, :, : group.reach]
    else:
        key = keys[:, :, : group.reach].index_select(0, group.slots_N)
        value = values[:, :, : group.reach].index_select(0, group.slots_N)
    if width == 1 and query.device.type == "cpu":
        attended = _attend_one(query, key, value, group.mask_N1QC, scale)
    else:
        mask = group.mask_N1QC.repeat(1, 1, heads // kv_heads, 1)
        attended = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
    attended = attended.view(count, kv_heads, heads // kv_heads, width, size)
    attended_NQHD = attended.permute(0, 3, 1, 2, 4).reshape(count, width, heads, size)
    return attended_NQHD[group.real_NQ]


def _attend_one(
    query_NKGD: Tensor, key_NKCD: Tensor, value_NKCD: Tensor, mask_N11C: Tensor, scale: float
) -> Tensor:
    """Attention of a single position, G heads to a key-value head.

    On CPUs two batched products take half the time of PyTorch's attention, which is made for many
    queries; the scores of one are small enough to exist.
    """
    count, kv_heads, groups, size = query_NKGD.shape
    bias = torch.zeros_like(mask_N11C, dtype=query_NKGD.dtype).masked_fill_(~mask_N11C, -torch.inf)
    scores = torch.baddbmm(
        bias.expand(-1, kv_heads, groups, -1).reshape(count * kv_heads, groups, -1),
        query_NKGD.reshape(count * kv_heads, groups, size),
        key_NKCD.reshape(count * kv_heads, -1, size).transpose(1, 2),
        alpha=scale,
    )
    return scores.softmax(-1).bmm(value_NKCD.reshape(count * kv_heads, -1, size))


def _prefix_hashes(ids: Sequence[int]) -> list[int]:
    """A rolling hash of every prefix of `ids`."""
    value, hashes = 0, []
    for token in ids:
        value = (value * 1_000_003 + token + 1) & 0xFFFFFFFFFFFFFFFF
        hashes.append(value)
    return hashes
