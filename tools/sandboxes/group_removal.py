"""Removing control groups whose processes are ending. Bundled into wardens and keepers."""

from __future__ import annotations

import contextlib
import os
import time

END_S = 10.0


def remove_groups(folders: list[str]) -> None:
    """Remove control groups with those below them, as soon as their processes have gone."""
    deadline = time.monotonic() + END_S
    for folder in folders:
        while os.path.isdir(folder) and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                for name in os.listdir(folder):
                    if os.path.isdir(f"{folder}/{name}"):
                        os.rmdir(f"{folder}/{name}")
                os.rmdir(folder)
                break
            time.sleep(0.02)
