"""Demonstrations: conversations to imitate, as JSONL and as training rows."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from palestra.rollout.chat_format import ChatFormat
from palestra.trainer.batch import Row
from palestra.types import Episode, Message, ToolSchema


async def write_demonstrations(path: Path, episodes: AsyncIterator[Episode]) -> int:
    """Write the conversations of solved episodes as JSONL; returns how many."""
    count = 0
    with open(path, "w", encoding="utf-8") as file:
        async for episode in episodes:
            if episode.score is None or episode.score.value < 1.0:
                continue
            record = {"messages": episode.messages, "tools": list(episode.tools)}
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
            count += 1
    return count


def read_demonstrations(path: Path) -> list[tuple[list[Message], list[ToolSchema]]]:
    """Read JSONL rows of {"messages": [...], "tools": [...]}.

    Raises:
        ValueError: no such file, an empty one, or a bad row; file and line are named.
    """
    if not path.is_file():
        raise ValueError(f"no demonstrations at {path}")
    conversations = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{number}: not JSON: {error}") from None
        messages = row.get("messages") if isinstance(row, dict) else None
        if not messages or not any(m.get("role") == "assistant" for m in messages):
            raise ValueError(f'{path}:{number}: no "messages" with an assistant\'s reply')
        conversations.append((messages, row.get("tools") or []))
    if not conversations:
        raise ValueError(f"{path} holds no demonstrations")
    return conversations


def demonstration_rows(
    messages: Sequence[Message], tools: Sequence[ToolSchema], chat_format: ChatFormat
) -> list[Row]:
    """Rows that train every assistant turn (multi-turn masking 2, RLHF Book chapter 4).

    Where the template rewrites earlier turns, a conversation becomes several rows, so that each
    reply is trained in the context in which it will be sampled.
    """
    rows: list[Row] = []
    ids: list[int] | None = None
    mask: list[bool] = []
    since = 0  # the first message that `ids` does not hold yet
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        if ids is not None:
            extended = chat_format.extend(
                ids, messages[: since - 1], messages[since - 1], messages[since:index], tools
            )
            if extended is None:
                rows.append(_row(ids, mask))
            ids = extended
        if ids is None:
            ids = chat_format.render(messages[:index], tools)
            mask = []
        mask += [False] * (len(ids) - len(mask))
        reply_ids = chat_format.encode_reply(messages[:index], message, tools)
        ids = [*ids, *reply_ids]
        mask += [True] * len(reply_ids)
        since = index + 1
    if ids is not None:
        rows.append(_row(ids, mask))
    return rows


def _row(ids: list[int], mask: list[bool]) -> Row:
    count = sum(mask)
    return Row(
        token_ids=tuple(ids),
        loss_mask=tuple(mask),
        sampled_logprobs=(0.0,) * count,
        advantages=(0.0,) * count,
        temperatures=(1.0,) * count,
    )
