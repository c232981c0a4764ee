"""Finds the program in a reply: a code block, the whole reply, or the rest of a function."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass

from palestra.verifiers.extract import without_thinking

_FENCES = ("```", "~~~")
_LANGUAGES = ("python", "py", "python3")
MAX_PROGRAM_CHARS = 200_000


@dataclass(frozen=True, kw_only=True, slots=True)
class _Block:
    language: str
    content: str


def program_in(reply: str, entry_point: str | None = None) -> str | None:
    """The program that a reply gives; None if it gives none, or too long a one.

    Without fences that is the whole reply. Of several blocks it is the last of those that are
    marked as Python, else of those that are not marked at all; with an entry point the last of
    these that defines it, so that an example of its use may follow. A reply that ends inside of a
    block was cut off and gives none.
    """
    reply = without_thinking(reply)
    blocks = _blocks(reply)
    if blocks is None:
        return None
    if not blocks:
        found = reply
    else:
        marked = [block for block in blocks if block.language in _LANGUAGES]
        usable = marked or [block for block in blocks if not block.language]
        if not usable:
            return None
        defining = [block for block in usable if _defines(block.content, entry_point)]
        found = (defining or usable)[-1].content
    if not found.strip() or len(found) > MAX_PROGRAM_CHARS:
        return None
    return found


def readings(program: str, prompt: str) -> list[str]:
    """Sources to try, the first that compiles is meant.

    With a prompt, code that it begins (imports, helpers, a function's head), the program may go on
    where the prompt ends, with or without the indentation of its first line or of all lines, or
    begin anew.
    """
    if not prompt.strip():
        return [program]
    if not prompt.endswith("\n"):
        prompt += "\n"
    first_indented = "    " + program.lstrip()
    ways = [program, first_indented, textwrap.indent(program, "    ")]
    return [*(prompt + way for way in ways), program]


def _blocks(reply: str) -> list[_Block] | None:
    """The fenced blocks of a reply; None if the last one does not end. Takes linear time."""
    blocks: list[_Block] = []
    fence, language, lines = "", "", list[str]()
    for line in reply.split("\n"):
        bare = line.strip()
        if fence:
            if bare.startswith(fence) and not bare.strip(fence[0]):
                blocks.append(_Block(language=language, content="\n".join(lines)))
                fence = ""
            else:
                lines.append(line)
        elif bare.startswith(_FENCES):
            fence = bare[: len(bare) - len(bare.lstrip(bare[0]))]
            words = bare[len(fence) :].strip().lower().split(maxsplit=1)
            language, lines = (words[0].strip("{}.") if words else ""), []
    return None if fence else blocks


def _defines(source: str, entry_point: str | None) -> bool:
    if not entry_point:
        return False
    name = re.escape(entry_point.partition(".")[0])
    definition = rf"^(?:async\s+)?(?:def|class)\s+{name}\b|^{name}\s*="
    return re.search(definition, source, re.MULTILINE) is not None
