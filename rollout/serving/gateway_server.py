"""The gateway on the loopback interface, for agents that run on this machine during a rollout."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import AsyncGenerator, Iterator

import uvicorn

from palestra.rollout.serving.app import Served, build_app
from palestra.rollout.serving.gateway import Gateway
from palestra.rollout.serving.limits import ServerLimits

_BACKLOG = 4096
_GOODBYE_S = 1


class _Server(uvicorn.Server):
    """Runs beside other work: the process's signals are not its to handle."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.asynccontextmanager
async def run_gateway(gateway: Gateway) -> AsyncGenerator[None, None]:
    """Serve `gateway` in this event loop, on a free port; sets its `url`."""
    served = Served(
        find_replier=gateway.find_replier,
        find_session=gateway.find_replier,
        models=(),
        context_length=gateway.context_length,
        limits=ServerLimits(max_concurrent=sys.maxsize),  # the rollout bounds them
    )
    config = uvicorn.Config(
        build_app(served),
        log_config=None,
        access_log=False,
        lifespan="off",
        ws="none",
        timeout_graceful_shutdown=_GOODBYE_S,
    )
    with socket.create_server(("127.0.0.1", 0), backlog=_BACKLOG) as listening:
        gateway.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        server = _Server(config)
        serving = asyncio.create_task(server.serve(sockets=[listening]))
        try:
            yield
        finally:
            server.should_exit = True
            await serving
