"""The embedded engine's key-value cache: one slot per sequence, and attention against it.

A slot keeps its tokens' keys after its turn is over, so that the next turn of the same conversation
computes only what was added. Where a sequence begins as another one does, keys are copied.

Shapes: T packed tokens, N sequences in a pass, Q new tokens of a sequence, S slots, C cached
positions, H heads, K key-value heads, G heads per key-value head, D head size, R rows of the cache.
"""

from __future__ import annotations

import operator
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from palestra.rollout.attention import trunk_config
from palestra.rollout.prefix_index import PrefixIndex

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Where at least this share of a slice's rows runs, the slice is read as it lies, with idle rows in
# it; below, the running rows are first copied together.
_DENSE_SHARE = 0.6


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
    """Sequences that attend together: `counts[i]` new tokens from position `starts[i]` on.

    They read R rows of the cache: a slice of it, or (sparse) their own slots picked out.
    """

    def __init__(
        self, slots: list[int], starts: list[int], counts: list[int], device: torch.device
    ) -> None:
        first, last = min(slots), max(slots) + 1
        self.slots_N = torch.tensor(slots, device=device)
        self.count = sum(counts)
        self.is_one_each = max(counts) == 1
        self.reach = max(map(operator.add, starts, counts))
        self.rows: slice | None = None
        self.rows_N: Tensor | None = None  # where in the slice each sequence is; None: in order
        if slots == list(range(first, last)):
            self.rows = slice(first, last)
        elif self.is_one_each and len(slots) >= _DENSE_SHARE * (last - first):
            self.rows = slice(first, last)
            self.rows_N = self.slots_N - first
        counts_N = torch.tensor(counts, device=device)
        offsets_Q = torch.arange(max(counts), device=device)
        self.real_NQ = offsets_Q < counts_N[:, None]
        self.positions_NQ = torch.tensor(starts, device=device)[:, None] + offsets_Q
        self.last_N = counts_N.cumsum(0) - 1
        self._bias: Tensor | None = None

    def advance(self) -> None:
        """One token later."""
        self.positions_NQ += 1
        self.reach += 1
        self._bias = None

    def mask_N1QC(self) -> Tensor:
        """Which cached positions each new token sees."""
        reach_C = torch.arange(self.reach, device=self.slots_N.device)
        return (reach_C <= self.positions_NQ[:, :, None])[:, None]

    def bias(self, like: Tensor, kv_heads: int, groups: int, *, transposed: bool) -> Tensor:
        """The same for one new token each, as what is added to scores: (R K, G, C), C first in
        a row when transposed. Made once for all layers.
        """
        if self._bias is None:
            mask_NC = self.mask_N1QC()[:, 0, 0]
            bias_NC = like.new_zeros(mask_NC.shape).masked_fill_(~mask_NC, -torch.inf)
            if self.rows_N is not None:
                assert self.rows is not None
                bias_RC = like.new_zeros(self.rows.stop - self.rows.start, self.reach)
                bias_NC = bias_RC.index_copy_(0, self.rows_N, bias_NC)
            bias = bias_NC[:, None, None].expand(-1, kv_heads, groups, -1).flatten(0, 1)
            self._bias = bias.transpose(1, 2).contiguous() if transposed else bias
        return self._bias


class SlotCache:
    """A static key-value cache of S slots, which remembers whose tokens each slot holds."""

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
        self._index = PrefixIndex()
        self._copies: list[tuple[int, int, int]] = []  # source, destination, tokens
        self._free = list(range(slots - 1, -1, -1))  # popped from the end: lowest first
        self._idle: dict[int, None] = {}  # not in use, but with tokens; oldest first

    def has_room(self) -> bool:
        return bool(self._free or self._idle)

    def held(self, ids: tuple[int, ...]) -> int:
        """How many leading tokens of `ids` some slot holds, the last one apart."""
        found = self._index.find(ids[:-1])
        return found[1] if found else 0

    def acquire(self, ids: tuple[int, ...]) -> tuple[int, int]:
        """Take an idle slot that holds a beginning of `ids` and nothing else, or a free or the
        oldest one, into which the longest beginning that any slot holds will be copied.

        Returns the slot and how many leading tokens it holds; at least the last token is left to
        compute, because its logits are needed.
        """
        found = self._index.find(ids[:-1])
        if found is None:
            return self._take(), 0
        source, length = found
        if source in self._idle and self._index.length(source) == length:
            del self._idle[source]
            return source, length
        slot = self._take(keep=source)
        if slot != source:
            self._copies.append((source, slot, length))
        self._index.put(slot, ids[:length])
        return slot, length

    def hold(self, slot: int, ids: tuple[int, ...]) -> None:
        """A slot in use now has these tokens' keys: others that begin so may copy them."""
        self._index.put(slot, ids)

    def release(self, slot: int, ids: tuple[int, ...]) -> None:
        """Give a slot back, with the tokens whose keys it holds."""
        self._index.put(slot, ids)
        if ids:
            self._idle[slot] = None
        else:
            self._free.append(slot)

    def forget(self) -> None:
        """Drop every slot's content: the weights changed."""
        self._free = list(range(self._shape[0] - 1, -1, -1))
        self._idle.clear()
        self._index.clear()
        self._copies.clear()

    def copy_shared(self) -> None:
        """Do the copies that `acquire` promised: before the next pass."""
        for source, slot, length in self._copies:
            for cached in (*self._keys, *self._values):
                cached[slot, :, :length] = cached[source, :, :length]
        self._copies.clear()

    def _take(self, keep: int = -1) -> int:
        """A free slot or the oldest idle one, `keep` only if there is no other."""
        if self._free:
            return self._free.pop()
        slot = next((slot for slot in self._idle if slot != keep), keep)
        del self._idle[slot]
        self._index.drop(slot)
        return slot

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
        self._counts = [group.count for group in groups]
        # Of a single group of one token each, so that it needs no padding and can advance.
        self.is_one_each = len(groups) == 1 and groups[0].is_one_each
        if self.is_one_each:
            self.positions_T = groups[0].positions_NQ[:, 0]
            self._slots_T = groups[0].slots_N
        else:
            self.positions_T = torch.cat([g.positions_NQ[g.real_NQ] for g in groups])
            slots = [g.slots_N[:, None].expand_as(g.real_NQ)[g.real_NQ] for g in groups]
            self._slots_T = torch.cat(slots)
        offsets = [0, *accumulate(self._counts)]
        self.last_N = torch.cat([g.last_N + o for g, o in zip(groups, offsets, strict=False)])

    def advance(self) -> None:
        """The same sequences, one token later (only if `is_one_each`)."""
        self._groups[0].advance()  # positions_T is a view of the group's

    def attend(
        self, layer: int, query_HTD: Tensor, key_KTD: Tensor, value_KTD: Tensor, scale: float
    ) -> Tensor:
        """Store the new keys and values, then attend group by group."""
        keys, values = self._keys[layer], self._values[layer]
        keys[self._slots_T, :, self.positions_T] = key_KTD.transpose(0, 1)
        values[self._slots_T, :, self.positions_T] = value_KTD.transpose(0, 1)
        query_THD = query_HTD.transpose(0, 1)
        if len(self._groups) == 1:
            return _attend_group(self._groups[0], query_THD, keys, values, scale)
        parts = query_THD.split(self._counts)
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
    if group.rows is None:
        key = keys[:, :, : group.reach].index_select(0, group.slots_N)
        value = values[:, :, : group.reach].index_select(0, group.slots_N)
    else:
        key, value = keys[group.rows, :, : group.reach], values[group.rows, :, : group.reach]
    if group.is_one_each and query_THD.device.type == "cpu":
        return _attend_one(group, query_THD, key, value, scale)
    if group.rows_N is not None:
        key, value = key.index_select(0, group.rows_N), value.index_select(0, group.rows_N)
    count, width = group.real_NQ.shape
    if group.count == count * width:
        query_NQHD = query_THD.reshape(count, width, heads, size)
    else:
        query_NQHD = query_THD.new_zeros(count, width, heads, size)
        query_NQHD[group.real_NQ] = query_THD
    # Heads that share keys become more queries of one key-value head: no key is ever repeated.
    query = query_NQHD.view(count, width, kv_heads, heads // kv_heads, size)
    query = query.permute(0, 2, 3, 1, 4).reshape(count, kv_heads, -1, size)
    mask = group.mask_N1QC().repeat(1, 1, heads // kv_heads, 1)
    attended = scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)
    attended = attended.view(count, kv_heads, heads // kv_heads, width, size)
    attended_NQHD = attended.permute(0, 3, 1, 2, 4).reshape(count, width, heads, size)
    return attended_NQHD[group.real_NQ]


def _attend_one(
    group: Group, query_NHD: Tensor, key_RKCD: Tensor, value_RKCD: Tensor, scale: float
) -> Tensor:
    """Attention of a single position of each sequence.

    On CPUs two batched products take half the time of PyTorch's attention, which is made for many
    queries; the scores of one are small enough to exist.
    """
    rows, kv_heads = key_RKCD.shape[:2]
    heads, size = query_NHD.shape[1:]
    groups = heads // kv_heads
    if group.rows_N is not None:
        query_NHD = query_NHD.new_zeros(rows, heads, size).index_copy_(0, group.rows_N, query_NHD)
    query = query_NHD.reshape(rows * kv_heads, groups, size)
    key = key_RKCD.reshape(rows * kv_heads, -1, size)
    value = value_RKCD.reshape(rows * kv_heads, -1, size)
    # Half precision is twice as fast with the many rows first.
    transposed = query.dtype != torch.float32
    bias = group.bias(query, kv_heads, groups, transposed=transposed)
    if transposed:
        scores = torch.baddbmm(bias, key, query.transpose(1, 2), alpha=scale).transpose(1, 2)
    else:
        scores = torch.baddbmm(bias, query, key.transpose(1, 2), alpha=scale)
    attended_RHD = scores.softmax(-1).bmm(value).view(rows, heads, size)
    return attended_RHD if group.rows_N is None else attended_RHD.index_select(0, group.rows_N)
