"""Text that comes piece by piece: markers across the borders of pieces, and the space around it."""

from __future__ import annotations

from collections.abc import Sequence


class MarkerSearch:
    """Looks for a marker; what may be its beginning is held back until more text has come."""

    def __init__(self, marker: str) -> None:
        self._marker = marker
        self._held = ""

    def push(self, text: str) -> tuple[str, str | None]:
        """The text before the marker, and what has come behind it: None while there is none."""
        text = self._held + text
        at = text.find(self._marker)
        if at >= 0:
            self._held = ""
            return text[:at], text[at + len(self._marker) :]
        free = len(text) - _begun(text, self._marker)
        self._held = text[free:]
        return text[:free], None

    def flush(self) -> str:
        """What was held back, once nothing follows it."""
        held, self._held = self._held, ""
        return held


class StopSearch:
    """Looks for the first of several strings to be complete; of two that end together the longer.

    `found` is the one that was seen; nothing behind it is of interest.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = tuple(string for string in strings if string)
        self._held = ""
        self.found: str | None = None

    def push(self, text: str) -> str:
        """The text that none of the strings can hold any more."""
        if not self._strings:
            return text
        text = self._held + text
        ends = [
            (at + len(string), at, string)
            for string in self._strings
            if (at := text.find(string)) >= 0
        ]
        if ends:
            _, at, self.found = min(ends)
            self._held = ""
            return text[:at]
        free = len(text) - max(_begun(text, string) for string in self._strings)
        self._held = text[free:]
        return text[:free]

    def flush(self) -> str:
        """What was held back, once nothing follows it."""
        held, self._held = self._held, ""
        return held


class Trimmed:
    """Text without the white space around it, which is known only once more text has come."""

    def __init__(self) -> None:
        self._space: list[str] = []  # that may turn out to be inside
        self._pieces: list[str] = []
        self._taken = 0

    def push(self, text: str) -> None:
        """Add to it."""
        body = text.rstrip()
        if body:
            self._pieces += (*self._space, body) if self._pieces else (body.lstrip(),)
            self._space.clear()
        if len(body) < len(text):
            self._space.append(text[len(body) :])

    def take(self) -> str:
        """What was added since the last time."""
        new = "".join(self._pieces[self._taken :])
        self._taken = len(self._pieces)
        return new

    @property
    def text(self) -> str:
        """All of it so far."""
        return "".join(self._pieces)


def _begun(text: str, marker: str) -> int:
    """How many characters at the end of the text begin the marker."""
    longest = min(len(marker) - 1, len(text))
    start = text.find(marker[0], len(text) - longest) if longest else -1
    while start >= 0:
        if marker.startswith(text[start:]):
            return len(text) - start
        start = text.find(marker[0], start + 1)
    return 0
