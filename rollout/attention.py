"""Packed attention: every linear layer sees one row of tokens without padding.

A Hugging Face model runs over a single packed row; its attention layers call back into a layout
that knows which tokens belong together: `Segments` (training: independent causal sequences) or
the engine's slots (generation: new tokens against a key-value cache).

Shapes: T packed tokens, N segments, L longest segment, H heads, K key-value heads, D head size.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

_NAME = "palestra_packed"


class Layout(Protocol):
    """Computes attention for one layer over packed queries, keys and values."""

    def attend(
        self, layer: int, query_HTD: Tensor, key_KTD: Tensor, value_KTD: Tensor, scale: float
    ) -> Tensor:
        """Return the attended values as (T, H, D)."""


class Segments:
    """Independent causal sequences laid end to end.

    Attention alone is padded, to the longest segment: causal masking keeps the padding, which
    comes last, from being seen by any real token.
    """

    def __init__(self, lengths: list[int], device: torch.device) -> None:
        lengths_N = torch.tensor(lengths, device=device)
        starts_N = lengths_N.cumsum(0) - lengths_N
        offsets_L = torch.arange(max(lengths), device=device)
        self._real_NL = offsets_L < lengths_N[:, None]
        self._padded_NL = torch.where(self._real_NL, starts_N[:, None] + offsets_L, 0)
        self.positions_T = offsets_L.expand(len(lengths), -1)[self._real_NL]
        self.last_N = starts_N + lengths_N - 1

    def attend(
        self, layer: int, query_HTD: Tensor, key_KTD: Tensor, value_KTD: Tensor, scale: float
    ) -> Tensor:
        """Causal attention within each segment; see `Layout.attend`."""
        groups = query_HTD.shape[0] // key_KTD.shape[0]
        query_NHLD = query_HTD[:, self._padded_NL].transpose(0, 1)
        key_NKLD = key_KTD[:, self._padded_NL].transpose(0, 1)
        value_NKLD = value_KTD[:, self._padded_NL].transpose(0, 1)
        attended_NHLD = scaled_dot_product_attention(
            query_NHLD,
            key_NKLD.repeat_interleave(groups, dim=1),
            value_NKLD.repeat_interleave(groups, dim=1),
            is_causal=True,
            scale=scale,
        )
        return attended_NHLD.transpose(1, 2)[self._real_NL]


def hidden_states(
    model: PreTrainedModel, token_ids_T: Tensor, positions_T: Tensor, layout: Layout
) -> Tensor:
    """Run the model's trunk over one packed row; returns the last hidden states as (T, hidden)."""
    with _packed(model):
        output = model.base_model(
            input_ids=token_ids_T[None],
            position_ids=positions_T[None],
            use_cache=False,
            palestra_layout=layout,
        )
    return output.last_hidden_state[0]  # type: ignore[no-any-return]


def require_packable(model: PreTrainedModel) -> None:
    """Refuse architectures whose state would cross the borders between packed sequences.

    Raises:
        ValueError: the model has sliding-window, recurrent or linear-attention layers.
    """
    config = trunk_config(model)
    default = ["sliding_attention"] if getattr(config, "sliding_window", None) else []
    others = set(getattr(config, "layer_types", None) or default) - {"full_attention"}
    if getattr(model, "_is_stateful", False):
        others.add("recurrent")
    if others:
        raise ValueError(
            f"{type(model).__name__} has {', '.join(sorted(others))} layers, which cannot be "
            "packed without mixing sequences; use a full-attention model"
        )


@contextmanager
def _packed(model: PreTrainedModel) -> Iterator[None]:
    """Route the model's attention through the layout for the length of one forward pass."""
    _register()
    config = trunk_config(model)
    before = config._attn_implementation
    config._attn_implementation = _NAME
    try:
        yield
    finally:
        config._attn_implementation = before


@cache
def _register() -> None:
    from transformers import AttentionInterface

    AttentionInterface.register(_NAME, _attend)


def trunk_config(model: PreTrainedModel) -> PreTrainedConfig:
    """The configuration of the layers themselves: in some models a part of the whole one."""
    trunk: Any = model.base_model
    config: PreTrainedConfig = trunk.config
    return config


def _attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    palestra_layout: Layout,
    **options: Any,
) -> tuple[Tensor, None]:
    """The attention interface of transformers: (1, heads, T, D) in, (1, T, heads, D) out."""
    for name in ("softcap", "s_aux", "position_bias"):
        if options.get(name) is not None:
            raise ValueError(f"{type(module).__name__} needs attention with {name}: not supported")
    attended = palestra_layout.attend(module.layer_idx, query[0], key[0], value[0], scaling)
    return attended[None], None
