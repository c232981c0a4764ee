"""Episodes on disk: one JSON line each, readable at any moment."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from types import TracebackType

from palestra.types import Episode

_log = logging.getLogger(__name__)


class Recorder:
    """Appends episodes to a JSONL file; what `append` returned from survives a crash of ours.

    Each line is written at once and without a buffer. When the disk is full the line that did not
    fit is taken back, and so is the torn line that a killed run left at the end of the file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self.path, "a+b", buffering=0)  # noqa: SIM115 (closed by `close`)
        self._end = _end_of_whole_lines(self._file.fileno())
        self._file.truncate(self._end)

    def append(self, *episodes: Episode) -> None:
        """Write episodes, all or none; those that were judged together belong together.

        Raises:
            OSError: the disk does not take them; it says what is safe.
        """
        # Half a character, which UTF-8 cannot encode, becomes its JSON escape.
        lines = memoryview(
            b"".join(e.to_json().encode("utf-8", "backslashreplace") + b"\n" for e in episodes)
        )
        try:
            written = 0
            while written < len(lines):
                written += self._file.write(lines[written:])
        except OSError as error:
            self._file.truncate(self._end)
            raise OSError(
                error.errno,
                f"cannot write episodes ({os.strerror(error.errno or 0)}); those recorded before "
                "are safe: make room and resume",
                str(self.path),
            ) from error
        self._end += len(lines)

    def close(self) -> None:
        """Close the file. May be called more than once."""
        self._file.close()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Recording(list[Episode]):
    """The episodes of a file, and how many lines at its end were torn and left out (0 or 1)."""

    torn: int = 0


def read_episodes(path: str | Path) -> Recording:
    """Read what a `Recorder` wrote, also while it still writes.

    Raises:
        ValueError: no such file, or a complete line that is no episode (file and line are named).
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"no recorded episodes at {path}")
    episodes = Recording()
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                episodes.torn = 1
                _log.warning("%s:%d: the last line is torn and left out", path, number)
                break
            try:
                episodes.append(Episode.from_json(line.decode()))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(f"{path}:{number}: not an episode: {error}") from None
    return episodes


def _end_of_whole_lines(descriptor: int) -> int:
    """Where the last newline is: what follows it was torn off by a crash."""
    end = os.fstat(descriptor).st_size
    while end > 0:
        start = max(0, end - 65_536)
        newline = os.pread(descriptor, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0
