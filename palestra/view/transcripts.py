"""Choose and pack the transcripts that a report carries.

All of a long run's episodes would make a page of gigabytes, so a report has a budget: the first
and last moments come first, then moments spread evenly between them, one episode of each at a
time.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from palestra.view.run_files import Row, finite, json_lines, parse_line
from palestra.view.visible import TOKEN_CHARS, visible_value

BUDGET_CHARS = 2_000_000  # of JSON
MAX_TOKENS = 20_000  # of one episode: what a browser lays out at once
ROLES = {"prompt": 0, "sampled": 1, "tool": 2}

Token = list[float | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Transcript:
    """One episode as the page shows it.

    A token is `[string, role, logprob, trainer_logprob, advantage]`: an index into the strings of
    all transcripts, an index into the roles and three numbers, None where there is none; trailing
    Nones are left off: `[17, 0]` is a prompt token.
    """

    moment: int
    task: str
    group: str
    answer: str
    reply: str
    reward: float | None
    score: float | None
    outcome: str
    stop_reason: str
    tokens: list[Token]
    tokens_left_out: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Transcripts:
    """`moments` names what episodes can be picked by: "before", "train, step 20"."""

    strings: list[str] = field(default_factory=list)
    roles: list[str] = field(default_factory=lambda: list(ROLES))
    moments: list[str] = field(default_factory=list)
    episodes: list[Transcript] = field(default_factory=list)
    advantage_scale: float = 0.0  # the largest absolute advantage, for colours
    notices: list[str] = field(default_factory=list)


def read_transcripts(path: Path, budget: int = BUDGET_CHARS) -> Transcripts:
    """Read `transcripts.jsonl`, or as much of it as the budget allows; empty without the file."""
    if not path.is_file():
        return Transcripts()
    offsets, unreadable = _moments(path)
    names = list(offsets)
    total = sum(len(ones) for ones in offsets.values())
    strings: dict[str, int] = {}
    chosen: list[tuple[int, Transcript]] = []
    with path.open("rb") as file:
        for moment, offset in _in_order_of_interest(list(offsets.values())):
            file.seek(offset)
            row = parse_line(file.readline())
            packed = _pack(row, moment, strings) if row else None
            if packed is None:
                unreadable += 1
                total -= 1
                continue
            transcript, new_strings, size = packed
            if size <= budget:
                budget -= size
                strings.update(new_strings)
                chosen.append((offset, transcript))
    chosen.sort(key=lambda pair: (pair[1].moment, pair[0]))
    episodes = [transcript for _, transcript in chosen]
    advantages = (abs(t[4] or 0.0) for e in episodes for t in e.tokens if len(t) > 4)
    notices = []
    if unreadable:
        notices.append(f"Unreadable lines of transcripts.jsonl left out: {unreadable}.")
    if len(episodes) < total:
        notices.append(f"{len(episodes):,} of {total:,} transcripts are shown, to keep this small.")
    return Transcripts(
        strings=list(strings),
        moments=names,
        episodes=episodes,
        advantage_scale=max(advantages, default=0.0),
        notices=notices,
    )


def _moments(path: Path) -> tuple[dict[str, list[int]], int]:
    """Where the episodes of each moment start in the file, and how many lines are unreadable."""
    offsets: dict[str, list[int]] = {}
    unreadable = 0
    for offset, row in json_lines(path):
        if row is None:
            unreadable += 1
        else:
            offsets.setdefault(_moment(row), []).append(offset)
    return offsets, unreadable


def _moment(row: Row) -> str:
    label = visible_value(row.get("label") or "", 60)
    step = finite(row.get("step"))
    stage = visible_value(row.get("stage") or "", 20)
    stage = stage.upper() if stage in ("sft", "rl") else stage
    where = " ".join(part for part in (stage, "" if step is None else f"step {step:,.0f}") if part)
    return ", ".join(part for part in (label, where) if part) or "episodes"


def _in_order_of_interest(moments: Sequence[Sequence[int]]) -> Iterator[tuple[int, int]]:
    """(moment, offset) pairs: the first episode of every moment, then the second, …"""
    order = _spread(len(moments))
    for nth in range(max(map(len, moments), default=0)):
        for moment in order:
            if nth < len(moments[moment]):
                yield moment, moments[moment][nth]


def _spread(count: int) -> list[int]:
    """0 … count-1 with the ends first, then the middle, then the quarters, …"""
    order = dict.fromkeys([0, count - 1][:count])
    gaps = [(0, count - 1)]
    for first, last in gaps:  # grows while we walk it
        if last - first > 1:
            middle = (first + last) // 2
            order[middle] = None
            gaps += [(first, middle), (middle, last)]
    return list(order)


def _pack(
    row: Row, moment: int, strings: dict[str, int]
) -> tuple[Transcript, dict[str, int], int] | None:
    """The transcript, the strings it adds and its size; None if it does not have the form."""
    tokens = row.get("tokens")
    if not isinstance(tokens, list):
        return None
    new: dict[str, int] = {}
    packed: list[Token] = []
    for token in tokens[:MAX_TOKENS]:
        if not isinstance(token, list) or len(token) < 2 or token[1] not in [*ROLES]:
            return None
        text = visible_value(token[0], TOKEN_CHARS)
        index = strings.get(text)
        if index is None:
            index = new.setdefault(text, len(strings) + len(new))
        packed.append(_without_trailing_nones([index, ROLES[token[1]], *map(_short, token[2:5])]))
    transcript = Transcript(
        moment=moment,
        task=visible_value(row.get("task_id"), 200),
        group=visible_value(row.get("group"), 200),
        answer=visible_value(row.get("answer")),
        reply=visible_value(row.get("reply")),
        reward=_short(row.get("reward")),
        score=_short(row.get("score")),
        outcome=visible_value(row.get("outcome"), 60),
        stop_reason=visible_value(row.get("stop_reason"), 60),
        tokens=packed,
        tokens_left_out=max(0, len(tokens) - MAX_TOKENS),
    )
    head = (transcript.task, transcript.group, transcript.answer, transcript.reply)
    return transcript, new, len(json.dumps([packed, head, list(new)])) + 200


def _without_trailing_nones(token: Token) -> Token:
    while token[-1] is None:
        token.pop()
    return token


def _short(value: Any) -> float | None:
    number = finite(value)
    return None if number is None else float(f"{number:.5g}")
