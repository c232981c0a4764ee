"""`ReplyCache`: replies on disk, a file for each request's hash, for several processes at once."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from palestra.endpoint.exchange import Reply

_FORMAT = 2  # of the files; a change makes all older ones misses
_VARYING = "\0varying\0"  # stands on disk for what is in no two requests; JSON writes no NUL


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

    def get(self, key: str, varying: str = "") -> Reply | None:
        """The reply stored under this key, marked as cached and for free; None if there is none."""
        try:
            stored = json.loads(self._path(key).read_bytes())
            if stored["format"] != _FORMAT:
                return None
            text = stored["text"].replace(_VARYING, varying)
            return Reply(
                text=text,
                finish_reason=stored["finish_reason"],
                model=stored["model"],
                tool_calls=tuple(stored["tool_calls"]),
                reasoning=stored["reasoning"],
                cost=0.0,
                cached=True,
            )
        except (OSError, ValueError, RecursionError, LookupError, TypeError, AttributeError):
            return None

    def put(self, key: str, reply: Reply, varying: str = "") -> None:
        """Store a reply under this key, `varying` taken out of its text."""
        if _VARYING in reply.text:
            return
        stored = {
            "format": _FORMAT,
            "text": reply.text.replace(varying, _VARYING) if varying else reply.text,
            "finish_reason": reply.finish_reason,
            "model": reply.model,
            "tool_calls": reply.tool_calls,
            "reasoning": reply.reasoning,
        }
        path = self._path(key)
        with contextlib.suppress(OSError):
            path.parent.mkdir(exist_ok=True)
            handle, unfinished = tempfile.mkstemp(dir=path.parent, suffix=".part")
            try:
                with os.fdopen(handle, "w") as file:
                    json.dump(stored, file)
                os.replace(unfinished, path)
            except OSError:
                os.unlink(unfinished)

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"


def request_key(fields: Any, varying: str = "") -> str:
    """A hash of what a request is made of, whatever is `varying` in it.

    Raises TypeError or ValueError for what is not JSON.
    """
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"), allow_nan=False)
    if varying:
        text = text.replace(varying, _VARYING)
    return hashlib.sha256(text.encode()).hexdigest()
