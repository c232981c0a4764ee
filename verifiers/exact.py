"""`exact`: the reply is the reference, character by character."""

from __future__ import annotations

from typing import Any

from palestra.types import Score, Unscorable
from palestra.verifiers.context import is_blank


def exact(reply: str, answer: Any) -> Score:
    """1 if reply and reference are equal but for space around them.

    Raises:
        Unscorable: the reference is not a string, or blank: an empty reply must never pass.
    """
    if not isinstance(answer, str) or is_blank(answer):
        raise Unscorable(f"exact needs a string as the task's answer, got {answer!r:.80}")
    if reply.strip() == answer.strip():
        return Score(value=1.0)
    return Score(value=0.0, explanation=f"the reply is not exactly {answer.strip()!r:.80}")
