"""`WeightsFolder`: where a trainer puts its weights for an engine to load."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from pathlib import Path

_PREFIX = "palestra-weights-"
_LOCK = "lock"
_MEMORY = Path("/dev/shm")


class WeightsFolder:
    """A temporary folder, in memory where the system has a file system for that.

    It goes with `close`; what a process that was killed left behind, the next one removes. That the
    owner lives is told by a lock, which the system takes from the dead.

    Args:
        parent: where it is made.
    """

    def __init__(self, parent: Path | None = None) -> None:
        if parent is None:
            parent = _MEMORY if os.access(_MEMORY, os.W_OK) else Path(tempfile.gettempdir())
        _remove_abandoned(parent)
        self._folder = tempfile.TemporaryDirectory(prefix=_PREFIX, dir=parent)
        self.path = Path(self._folder.name)
        # Under its name it is locked from the first moment.
        unlocked = self.path / f"{_LOCK}.new"
        self._lock = unlocked.open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        unlocked.rename(self.path / _LOCK)

    def close(self) -> None:
        """Remove it and what is in it."""
        self._folder.cleanup()
        self._lock.close()


def _remove_abandoned(parent: Path) -> None:
    for lock in parent.glob(f"{_PREFIX}*/{_LOCK}"):
        try:
            with lock.open("r+") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(lock.parent, ignore_errors=True)
        except OSError:  # somebody's who lives, or another user's
            continue
