"""Transcripts for the report: each token with its role, log-probabilities and advantage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from palestra.trainer.batch import Row, pack, rows_of
from palestra.trainer.logprobs import token_logprobs
from palestra.trainer.run_dir import RunDir
from palestra.types import Episode

if TYPE_CHECKING:
    from palestra.trainer.session import Session


def write_transcripts(
    run: RunDir,
    session: Session,
    episodes: Sequence[Episode],
    stage: str,
    step: int,
    label: str,
    advantages: Mapping[str, float] | None = None,
) -> None:
    """Append the episodes to `transcripts.jsonl`.

    The trainer's log-probabilities are those of its weights now, beside the engine's when it
    sampled.
    """
    for episode in episodes:
        advantage = (advantages or {}).get(episode.id)
        for row in rows_of(episode, 0.0 if advantage is None else advantage):
            score = episode.score
            run.append(
                "transcripts.jsonl",
                {
                    "step": step,
                    "stage": stage,
                    "label": label,
                    "episode_id": episode.id,
                    "task_id": episode.task.id,
                    "group": episode.task.id,
                    "answer": episode.task.answer,
                    "reply": episode.turns[-1].message.get("content") or "",
                    "reward": episode.reward,
                    "score": None if score is None else score.value,
                    "outcome": str(episode.outcome),
                    "stop_reason": episode.stop_reason,
                    "tokens": _tokens(session, row, advantage),
                },
            )


def _tokens(session: Session, row: Row, advantage: float | None) -> list[list[Any]]:
    """[text, role, engine's log-probability, trainer's, advantage] of each token of a row."""
    with torch.no_grad():
        trainer_S, _ = token_logprobs(session.model, pack([row], session.model.device))
    sampled = iter(zip(row.sampled_logprobs, trainer_S.tolist(), strict=True))
    tokens: list[list[Any]] = []
    seen_reply = False
    for token_id, trains in zip(row.token_ids, row.loss_mask, strict=True):
        text = session.tokenizer.decode([token_id], skip_special_tokens=False)
        seen_reply = seen_reply or trains
        if trains:
            engine_logprob, trainer_logprob = next(sampled)
            rounded = [round(engine_logprob, 6), round(trainer_logprob, 6)]
            tokens.append([text, "sampled", *rounded, advantage])
        else:
            tokens.append([text, "tool" if seen_reply else "prompt", None, None, None])
    return tokens
