"""Frames: two 4-byte big-endian lengths, a JSON object and a payload of bytes."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from typing import Any

HEADER = struct.Struct(">II")
MAX_OBJECT_BYTES = 1 << 20
MAX_PAYLOAD_BYTES = 1 << 28
READ_BYTES = 1 << 16


class Gone(Exception):
    """The other side has closed the connection, or broken it."""


def _encoder() -> Callable[[Any], str]:
    """`json.dumps`, which makes an encoder each time, of objects from all over the memory."""
    try:
        quote = json.encoder.encode_basestring_ascii
        parts = json.encoder.c_make_encoder(  # type: ignore[attr-defined]
            *(None, None, quote, None, ": ", ", ", False, False, True)
        )
    except (AttributeError, TypeError):  # an interpreter that has another
        return json.dumps
    return lambda value: "".join(parts(value, 0))


_encode = _encoder()
_decode = json.JSONDecoder().raw_decode


def pack(answer: dict[str, Any], payload: bytes = b"") -> bytes:
    """One frame."""
    text = _encode(answer).encode()
    return HEADER.pack(len(text), len(payload)) + text + payload


def send(fd: int, answer: dict[str, Any], payload: bytes = b"") -> None:
    """Write one frame, however long it takes."""
    data = memoryview(pack(answer, payload))
    while data:
        data = data[os.write(fd, data) :]


def receive(fd: int) -> tuple[dict[str, Any], bytes]:
    """Wait for one frame. Raises Gone."""
    frames = Frames()
    while True:
        # Never more than this frame has: what is left over would be lost.
        data = os.read(fd, min(frames.missing_bytes, 1 << 20))
        if not data:
            raise Gone
        frames.feed(data)
        frame = frames.take()
        if frame is not None:
            return frame


class Frames:
    """Takes bytes as they come and gives the frames in them."""

    def __init__(self) -> None:
        self.max_payload_bytes = MAX_PAYLOAD_BYTES
        self._data = bytearray()

    def feed(self, data: bytes) -> None:
        """Append what has come."""
        self._data += data

    @property
    def missing_bytes(self) -> int:
        """At least so many are to come before `take` gives something. Raises Gone."""
        if len(self._data) < HEADER.size:
            return HEADER.size - len(self._data)
        object_bytes, payload_bytes = HEADER.unpack_from(self._data)
        if object_bytes > MAX_OBJECT_BYTES or payload_bytes > self.max_payload_bytes:
            raise Gone
        whole_bytes: int = HEADER.size + object_bytes + payload_bytes
        return whole_bytes - len(self._data)

    def take(self) -> tuple[dict[str, Any], bytes] | None:
        """The next frame, if it is complete. Raises Gone for what is none."""
        if self.missing_bytes > 0:
            return None
        object_bytes, payload_bytes = HEADER.unpack_from(self._data)
        body, end = HEADER.size + object_bytes, HEADER.size + object_bytes + payload_bytes
        data, payload = bytes(self._data[HEADER.size : body]), bytes(self._data[body:end])
        del self._data[:end]
        try:
            text = data.decode()
            answer, text_end = _decode(text)
        except (ValueError, RecursionError):
            raise Gone from None
        if not isinstance(answer, dict) or text_end != len(text):
            raise Gone
        return answer, payload
