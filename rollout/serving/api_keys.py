"""`ApiKeys`: who may ask. Keys are compared in constant time and never printed."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from palestra.rollout.serving.api_error import ApiError

_MIN_KEY_CHARACTERS = 8

# Name and value of each header, as ASGI has them.
Headers = Iterable[tuple[bytes, bytes]]


class ApiKeys:
    """The keys that a server accepts; `accepts` may be set to what knows of more that come and go.

    Raises ValueError for keys that are too short to keep anybody out.
    """

    def __init__(self, keys: Sequence[str]) -> None:
        self.accepts: Callable[[str], bool] = lambda key: False
        self._digests = [_digest(key) for key in keys]
        if any(len(key) < _MIN_KEY_CHARACTERS for key in keys):
            raise ValueError(f"an API key needs at least {_MIN_KEY_CHARACTERS} characters")

    @staticmethod
    def read(path: Path) -> ApiKeys:
        """Those in a file, one a line; lines that begin with # are comments.

        Raises ValueError if there are none, OSError if it cannot be read.
        """
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        keys = [line for line in lines if line and not line.startswith("#")]
        if not keys:
            raise ValueError(f"{path} holds no API key: write one a line")
        return ApiKeys(keys)

    def identify(self, headers: Headers) -> str:
        """Whose request it is: the number of its key, or the key's digest where it comes and goes.

        Raises ApiError (401) without a key or with a wrong one.
        """
        key = find_key(headers)
        if key is None:
            raise ApiError(
                401,
                "no API key: send the header Authorization: Bearer YOUR_KEY",
                code="missing_api_key",
            )
        digest = _digest(key)
        # All of them are compared, so that the time tells nothing.
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        if any(matches):
            return str(matches.index(True))
        if self.accepts(key):
            return digest.hex()
        raise ApiError(401, "the API key is not valid here", code="invalid_api_key")


def find_key(headers: Headers) -> str | None:
    """The key that a request came with, as OpenAI's or as Anthropic's clients send it."""
    for name, value in headers:
        if name == b"authorization" and value[:7].lower() == b"bearer ":
            return value[7:].strip().decode("latin-1")
        if name == b"x-api-key":
            return value.strip().decode("latin-1")
    return None


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "replace")).digest()
