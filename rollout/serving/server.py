"""`serve`: an application on a socket until a signal ends it, and how it then goes down."""

from __future__ import annotations

import asyncio
import errno
import logging
import signal
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from palestra.rollout.serving.traffic import Traffic

_log = logging.getLogger(__name__)

_BACKLOG = 4096
_KEEP_ALIVE_S = 75
_GOODBYE_S = 2
_BUSY = {errno.EADDRINUSE: "is in use", errno.EACCES: "may not be used without privileges"}


def bind(host: str, port: int) -> socket.socket:
    """A socket that is not listening yet; port 0 takes a free one.

    Raises ValueError where it cannot be had, so that nobody loads a model in vain.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise ValueError(f"there is no address {host}: {error.strerror}") from None
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        why = _BUSY.get(error.errno or 0, (error.strerror or str(error)).lower())
        raise ValueError(f"port {port} of {host} {why}: choose another with --port") from None
    return bound


async def serve(
    app: ASGIApp,
    bound: socket.socket,
    traffic: Traffic,
    *,
    drain_timeout_s: float,
    on_ready: Callable[[], None],
) -> None:
    """Answer requests until SIGTERM or SIGINT.

    Then new requests are refused, while those in progress have `drain_timeout_s` seconds to end;
    what is left is cut off with an error. A second signal cuts them off at once.
    """
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="none",
        http="httptools",
        backlog=_BACKLOG,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_GOODBYE_S,
        server_header=False,
    )
    signalled = asyncio.Event()

    def on_signal() -> None:
        if signalled.is_set():
            traffic.hurry()
        signalled.set()

    server = _Server(config, on_ready=on_ready, on_signal=on_signal)
    serving = asyncio.create_task(server.serve(sockets=[bound]))
    ended = asyncio.create_task(signalled.wait())
    await asyncio.wait((serving, ended), return_when=asyncio.FIRST_COMPLETED)
    ended.cancel()
    if not serving.done():
        _log.warning("going down: %d requests in progress", traffic.in_flight)
        if not await traffic.drain(drain_timeout_s):
            _log.warning("requests were cut off: they did not end in %g s", drain_timeout_s)
        server.should_exit = True
    await serving


class _Server(uvicorn.Server):
    """Leaves open what a signal means: uvicorn would stop listening at once."""

    def __init__(
        self, config: uvicorn.Config, *, on_ready: Callable[[], None], on_signal: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._loop = asyncio.get_running_loop()
        self._on_ready = on_ready
        self._on_signal = on_signal

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so."""
        await super().startup(sockets)
        self._on_ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Tell the loop, which a signal interrupts anywhere."""
        self._loop.call_soon_threadsafe(self._on_signal)


def ignore_further_signals() -> None:
    """While the engine is closed: it is on its way, and nothing is gained by a traceback."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
