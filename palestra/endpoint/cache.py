"""`ReplyCache`: replies on disk, a file for each request's hash, for several processes at once."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_FORMAT = 1  # of the files; a change makes all older ones misses


class ReplyCache:
    """A folder of replies. A file appears whole or not at all, so no locks are needed.

    Nothing here raises for a disk that is full or a file that is damaged: a cache that fails is a
    cache that misses.

    Raises:
        ValueError: a folder that cannot be made.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder).expanduser()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"cannot keep a cache in {self.folder}: {error.strerror}") from None

    def get(self, key: str) -> dict[str, Any] | None:
        """What was stored under this key, or None."""
        try:
            stored = json.loads(self._path(key).read_bytes())
        except (OSError, ValueError, RecursionError):
            return None
        if not isinstance(stored, dict) or stored.get("format") != _FORMAT:
            return None
        reply = stored.get("reply")
        return reply if isinstance(reply, dict) else None

    def put(self, key: str, reply: Mapping[str, Any]) -> None:
        """Store a JSON object under this key."""
        path = self._path(key)
        with contextlib.suppress(OSError):
            path.parent.mkdir(exist_ok=True)
            handle, unfinished = tempfile.mkstemp(dir=path.parent, suffix=".part")
            try:
                with os.fdopen(handle, "w") as file:
                    json.dump({"format": _FORMAT, "reply": reply}, file)
                os.replace(unfinished, path)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(unfinished)
                raise

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"


def request_key(fields: Any) -> str:
    """A hash of what a request is made of; raises TypeError for what is not JSON."""
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
