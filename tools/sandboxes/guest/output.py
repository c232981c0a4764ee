"""`Output`: what a process writes, kept within bounds."""

from __future__ import annotations

import os

PIPE_BYTES = 1 << 16


class Output:
    """What a pipe brought: the beginning and the end, and how much was between them."""

    def __init__(self, limit_bytes: int) -> None:
        self.half = max(1, limit_bytes // 2)
        self.head = bytearray()
        self.tail = bytearray()
        self.count = 0

    def add(self, data: bytes) -> None:
        """Keep what there is room for."""
        self.count += len(data)
        room = self.half - len(self.head)
        if room > 0:
            self.head += data[:room]
            data = data[room:]
        self.tail += data
        if len(self.tail) > 4 * self.half:
            del self.tail[: -self.half]

    def read_from(self, fd: int) -> bool:
        """Take what the pipe holds now; False at its end."""
        try:
            data = os.read(fd, PIPE_BYTES)
        except BlockingIOError:
            return True
        self.add(data)
        return bool(data)

    def drain(self, fd: int) -> None:
        """What is in a pipe already, but no more than a writer that never stops has put there."""
        for _ in range(32):
            before = self.count
            if not self.read_from(fd) or self.count == before:
                return

    def parts(self) -> tuple[bytes, list[int]]:
        """What was kept, and [its bytes, how many of them are the beginning, bytes cut between]."""
        del self.tail[: max(0, len(self.tail) - self.half)]
        kept = bytes(self.head + self.tail)
        return kept, [len(kept), len(self.head), self.count - len(kept)]


def cut(text: str, limit_bytes: int) -> tuple[bytes, list[int]]:
    """The parts of a text that is there already."""
    output = Output(limit_bytes)
    output.add(text.encode("utf-8", "backslashreplace"))
    return output.parts()
