"""Training rows from episodes, and their packing into batches.

A row is one root-to-leaf path of an episode's turns: all its tokens, with the sampled ones marked.
Shapes: T packed tokens, S sampled (trained) tokens, R rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from palestra.rollout.attention import Segments
from palestra.types import Episode


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One sequence to train on.

    `loss_mask[i]` says that token i was sampled by the policy (or demonstrated to it) and trains;
    prompts and tool output never do. The other lists have a value for each such token, in order.
    Example: ids [5, 6, 7, 8], loss_mask [False, False, True, True], sampled_logprobs [-0.1, -2.3].
    """

    token_ids: tuple[int, ...]
    loss_mask: tuple[bool, ...]
    sampled_logprobs: tuple[float, ...]
    advantages: tuple[float, ...]
    temperatures: tuple[float, ...]
    episode_id: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Rows packed end to end, without padding.

    `targets_S` are the positions of the trained tokens in the packed row; everything with suffix S
    is aligned with them. `old_logprobs_S` are what the ratio is taken against.
    """

    token_ids_T: Tensor
    lengths: tuple[int, ...]
    targets_S: Tensor
    sampled_logprobs_S: Tensor
    old_logprobs_S: Tensor
    advantages_S: Tensor
    temperatures_S: Tensor
    ref_logprobs_S: Tensor | None = None

    def segments(self) -> Segments:
        """The layout that keeps the rows apart in attention."""
        return Segments(list(self.lengths), self.token_ids_T.device)

    @property
    def target_ids_S(self) -> Tensor:
        """The trained tokens themselves."""
        return self.token_ids_T[self.targets_S]


def rows_of(episode: Episode, advantage: float) -> list[Row]:
    """The training rows of an episode, each sampled token in exactly one of them.

    Paths share their beginnings where an episode forked; a shared turn trains in the first.

    Raises:
        ValueError: a turn without token ids, which cannot be trained on.
    """
    turns = episode.turns
    parents = {turn.parent for turn in turns}
    trained: set[int] = set()
    rows = []
    for leaf in range(len(turns)):
        if leaf in parents:
            continue
        path: list[int] = []
        index: int | None = leaf
        while index is not None:
            path.insert(0, index)
            index = turns[index].parent
        token_ids = turns[leaf].prompt_ids + turns[leaf].completion_ids
        mask = [False] * len(token_ids)
        logprobs: list[float] = []
        temperatures: list[float] = []
        for index in path:
            turn = turns[index]
            if not turn.prompt_ids or turn.sampling is None:
                raise ValueError(
                    f"episode {episode.id} has no token ids: only episodes of a policy that "
                    "reports them (TokenPolicy) can be trained on"
                )
            # What a grammar forced was not the policy's choice.
            if index in trained or turn.sampling.structure is not None:
                continue
            trained.add(index)
            start, count = len(turn.prompt_ids), len(turn.completion_ids)
            # Tool output is context, not action: only what was sampled trains.
            mask[start : start + count] = [True] * count
            logprobs += turn.logprobs
            temperatures += [turn.sampling.temperature] * count
        if any(mask):
            rows.append(
                Row(
                    token_ids=token_ids,
                    loss_mask=tuple(mask),
                    sampled_logprobs=tuple(logprobs),
                    advantages=(advantage,) * len(logprobs),
                    temperatures=tuple(temperatures),
                    episode_id=episode.id,
                )
            )
    return rows


def pack(rows: Sequence[Row], device: torch.device | str = "cpu") -> Batch:
    """Lay rows end to end. Raises ValueError if there are none."""
    if not rows:
        raise ValueError("there are no rows to pack")
    mask = torch.tensor([trains for row in rows for trains in row.loss_mask])
    sampled_S = _flat((row.sampled_logprobs for row in rows), device)
    return Batch(
        token_ids_T=torch.tensor([i for row in rows for i in row.token_ids], device=device),
        lengths=tuple(len(row.token_ids) for row in rows),
        targets_S=mask.nonzero()[:, 0].to(device),
        sampled_logprobs_S=sampled_S,
        old_logprobs_S=sampled_S,
        advantages_S=_flat((row.advantages for row in rows), device),
        temperatures_S=_flat((row.temperatures for row in rows), device),
    )


def micro_batches(rows: Sequence[Row], max_tokens: int) -> Iterator[list[Row]]:
    """Group rows of similar length into lists of at most `max_tokens` tokens.

    A row longer than that comes alone: nothing is ever cut or dropped.
    """
    chunk: list[Row] = []
    size = 0
    for row in sorted(rows, key=lambda row: len(row.token_ids)):
        if chunk and size + len(row.token_ids) > max_tokens:
            yield chunk
            chunk, size = [], 0
        chunk.append(row)
        size += len(row.token_ids)
    if chunk:
        yield chunk


def _flat(values: Iterable[tuple[float, ...]], device: torch.device | str) -> Tensor:
    return torch.tensor([v for group in values for v in group], dtype=torch.float32, device=device)
