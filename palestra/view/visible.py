"""Text of a run, made safe to look at: nothing in it is invisible, reorders its surroundings or
has no end.

Escaping for HTML is not done here: the page only ever sets text, never markup.
"""

from __future__ import annotations

import json
from typing import Any

TOKEN_CHARS = 400
FIELD_CHARS = 4000


def visible(text: str, limit: int = FIELD_CHARS) -> str:
    """The text with invisible characters spelled out and everything beyond `limit` left out.

    Newlines and tabs stay. Other control characters, bidirectional overrides, zero-width and
    unassigned characters and lone surrogates become their numbers:

    >>> visible("a\\x00b\\u202ec")
    'a⟨U+0000⟩b⟨U+202E⟩c'
    """
    cut = len(text) - limit
    if cut > 0:
        text = text[:limit]
    if not text.isprintable():
        text = "".join(c if c.isprintable() or c in "\n\t" else f"⟨U+{ord(c):04X}⟩" for c in text)
    return f"{text}⟨… {cut:,} more characters⟩" if cut > 0 else text


def visible_value(value: Any, limit: int = FIELD_CHARS) -> str:
    """Any JSON or TOML value as visible text."""
    if not isinstance(value, str):
        try:
            value = json.dumps(value, ensure_ascii=False, default=str)
        except RecursionError:
            value = "⟨nested too deeply to show⟩"
    return visible(value, limit)
