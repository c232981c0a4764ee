"""The last fenced code block of a reply."""

from __future__ import annotations

_FENCES = ("```", "~~~")


def last_block(text: str, languages: tuple[str, ...]) -> str | None:
    """The content of the last fenced block in one of these languages, or in none named.

    None if there is no such block, or if the reply ends inside of one: a block that was cut off is
    no answer, and neither is the one before it. Takes linear time.
    """
    found: str | None = None
    fence, lines, wanted = "", list[str](), False
    for line in text.split("\n"):
        bare = line.strip()
        if fence:
            if bare.startswith(fence) and not bare.strip(fence[0]):
                found = "\n".join(lines) if wanted else found
                fence = ""
            else:
                lines.append(line)
        elif bare.startswith(_FENCES):
            fence = bare[:3]
            language = bare.lstrip(fence[0]).strip().lower()
            lines, wanted = [], not language or language in languages
    return None if fence and wanted else found
