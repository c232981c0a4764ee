"""Find structured answers in a reply: a field of its last JSON object, its last code block."""

from __future__ import annotations

import json
from typing import Any

MAX_JSON_CHARS = 100_000
MAX_JSON_TRIES = 50


def last_code_block(reply: str, language: str | None = None) -> str | None:
    """The content of the last fenced block, of a language if one is named."""
    found = None
    lines = reply.split("\n")
    start: int | None = None
    for i, line in enumerate(lines):
        mark = line.strip()
        if not mark.startswith("```"):
            continue
        if start is None:
            start = i
        elif mark == "```":
            name = lines[start].strip().removeprefix("```").strip().lower()
            if language is None or name == language.lower():
                found = "\n".join(lines[start + 1 : i])
            start = None
    return found


def json_field(reply: str, field: str) -> Any:
    """A field of the last JSON object in a reply that has it; None if there is none."""
    tail = reply[-MAX_JSON_CHARS:]
    decoder = json.JSONDecoder()
    position, tries = len(tail), 0
    while tries < MAX_JSON_TRIES:
        position = tail.rfind("{", 0, position)
        if position < 0:
            return None
        tries += 1
        try:
            value, _ = decoder.raw_decode(tail, position)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict) and field in value:
            return value[field]
    return None
