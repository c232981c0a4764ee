"""The embedded engine's key-value cache: one slot per sequence, and attention against it.

A slot keeps its tokens' keys after its turn is over, so that the next turn of the same conversation
computes only what was added.

Shapes: T packed tokens, N sequences in a pass, Q new tokens of a sequence, S slots, C cached
positions, H heads, K key-value heads, G heads per key-value head, D head size.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from palestra.rollout.attention import trunk_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def similar_counts(ascending: list[int]) -> list[slice]:
    """Cut ascending counts into runs: the ones, then runs whose ends differ little."""
    cuts = [0]
    for index, count in enumerate(ascending):
        first = ascending[cuts[-1]]
        if count > first and (first == 1 or count > 1.5 * first + 4):
            cuts.append(index)
    cuts.append(len(ascending))
    return [slice(a, b) for a, b in pairwise(cuts)]


class Group:
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


class SlotCache:
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

    def layout(self, groups: list[Group]) -> SlotLayout:
        if not self._keys:
            # Allocated at first use; zeros, because masked garbage could still be NaN.
            self._keys = [self._like.new_zeros(self._shape) for _ in range(self._layers)]
            self._values = [self._like.new_zeros(self._shape) for _ in range(self._layers)]
        return SlotLayout(groups, self._keys, self._values)


class SlotLayout:
    """Attention of new tokens against the cache (a `Layout`)."""

    def __init__(self, groups: list[Group], keys: list[Tensor], values: list[Tensor]) -> None:
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
    group: Group, query_THD: Tensor, keys: Tensor, values: Tensor, scale: float
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
