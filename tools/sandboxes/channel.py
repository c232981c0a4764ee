"""The host's end of the connection to a sandbox: frames, bounded and with a deadline."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from abc import ABC, abstractmethod
from typing import Any

HEADER = struct.Struct(">II")
MAX_OBJECT_BYTES = 1 << 20  # as in guest/frames.py
_READ_BYTES = 1 << 16


class Garbled(Exception):
    """What came is no frame: the sandbox, which is hostile, has broken its own connection."""


class Closed(Exception):
    """The other end has closed."""


class Channel(ABC):
    """A stream of bytes to a sandbox and back, usable on any event loop, by one call at a time."""

    def __init__(self) -> None:
        self._received = bytearray()

    @abstractmethod
    async def _write(self, data: bytes) -> None:
        """All of it. Raises OSError if the other end has closed."""

    @abstractmethod
    async def _read(self) -> bytes:
        """What has come, at least a byte; b"" at the end. Raises OSError."""

    @abstractmethod
    def shut_down(self) -> None:
        """Let whoever waits for it see its end."""

    @abstractmethod
    def close(self) -> None:
        """Let go of it. May be called more than once."""

    async def send(self, request: dict[str, Any], payload: bytes = b"") -> None:
        """Send one frame. Raises Closed."""
        text = json.dumps(request).encode()
        try:
            await self._write(HEADER.pack(len(text), len(payload)) + text + payload)
        except OSError as error:
            raise Closed(str(error)) from None

    async def receive(self, max_payload_bytes: int) -> tuple[dict[str, Any], bytes]:
        """One frame, whose payload is at most so long. Raises Closed or Garbled."""
        object_bytes, payload_bytes = HEADER.unpack(await self._exactly(HEADER.size))
        if object_bytes > MAX_OBJECT_BYTES or payload_bytes > max_payload_bytes:
            raise Garbled(f"a frame of {object_bytes} + {payload_bytes} bytes is too large")
        text = await self._exactly(object_bytes)
        try:
            answer = json.loads(text)
        except (ValueError, RecursionError):
            raise Garbled("a frame that is not JSON") from None
        if not isinstance(answer, dict):
            raise Garbled("a frame that is not a JSON object")
        return answer, await self._exactly(payload_bytes)

    async def _exactly(self, count: int) -> bytes:
        while len(self._received) < count:
            try:
                data = await self._read()
            except OSError as error:
                raise Closed(str(error)) from None
            if not data:
                raise Closed("it closed the connection")
            self._received += data
        data = bytes(self._received[:count])
        del self._received[:count]
        return data


class SocketChannel(Channel):
    """Over a connected socket, which it owns."""

    def __init__(self, connected: socket.socket) -> None:
        super().__init__()
        connected.setblocking(False)
        self._socket = connected

    async def _write(self, data: bytes) -> None:
        # Most frames fit at once: no trip through the event loop.
        try:
            sent = self._socket.send(data)
        except BlockingIOError:
            sent = 0
        if sent < len(data):
            await asyncio.get_running_loop().sock_sendall(self._socket, data[sent:])

    async def _read(self) -> bytes:
        return await asyncio.get_running_loop().sock_recv(self._socket, _READ_BYTES)

    def shut_down(self) -> None:
        with contextlib.suppress(OSError):  # the other end has closed before
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._socket.close()
