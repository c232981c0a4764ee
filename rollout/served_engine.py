"""`ServedEngine`: what the engines on a server share, from its start to its end."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from palestra.rollout.engine import KvAfterUpdate
from palestra.rollout.engine_errors import (
    BadAnswer,
    ConnectionLost,
    ContextOverflow,
    RequestFailed,
)
from palestra.rollout.server_process import ServerProcess
from palestra.rollout.server_supervisor import ServerSupervisor
from palestra.rollout.token_client import TokenClient
from palestra.types import VersionSpan

E = TypeVar("E", bound="ServedEngine")


class ServedEngine:
    """On one server; belongs to one event loop.

    `client` sends generations and `control` whatever must not wait behind them. A server that
    `start_server` started is started again when it dies: what was in progress raises ServerDied,
    later requests wait. It then serves the weights that it was started with, and says so in its
    version spans, unless `after_restart` puts others there.
    """

    name: str  # of the engine, as people write it

    def __init__(
        self,
        client: TokenClient,
        control: TokenClient,
        *,
        stop_ids: frozenset[int],
        context_length: int,
        version: int,
        timeout_s: float,
    ) -> None:
        self.client = client
        self.control = control
        self.context_length = context_length
        self.version = version
        self.after_restart: Callable[[], Awaitable[None]] = self._restore_weights
        self._first_version = version
        self._kv_after_update: dict[int, KvAfterUpdate] = {}  # by the version that was sent
        self._stop_ids = sorted(stop_ids)
        self._timeout_s = timeout_s
        self._supervisor: ServerSupervisor | None = None
        self._temporary: str | None = None

    @property
    def server(self) -> ServerProcess | None:
        """The process that was started, if it was."""
        return None if self._supervisor is None else self._supervisor.server

    @property
    def trouble(self) -> str:
        """Why a server that we started answers nothing at the moment, "" while it runs."""
        return "" if self._supervisor is None else self._supervisor.trouble

    async def aclose(self) -> None:
        """Close the connections and stop a server that we started. May be called more than once."""
        if self._supervisor is not None:
            await self._supervisor.aclose()
        await self.client.close()
        await self.control.close()
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)

    async def _restore_weights(self) -> None:
        """Give a server that was started again the weights that it had last."""
        raise NotImplementedError

    async def _restarted(self) -> None:
        assert self.server is not None
        self.client.base_url = self.control.base_url = self.server.base_url
        self.version = self._first_version
        await self.after_restart()

    async def _until_up(self) -> None:
        """Wait while a server that died is started again."""
        if self._supervisor is not None:
            await self._supervisor.until_up()

    def _note_completion(self) -> None:
        """The server works: deaths so far no longer count against it."""
        if self._supervisor is not None:
            self._supervisor.note_completion()

    async def _post(self, path: str, body: Mapping[str, Any]) -> Any:
        """What the server answers to a generation; its troubles by name."""
        async with self._naming_troubles():
            return await self.client.post(path, body, timeout_s=self._timeout_s)

    async def _post_stream(
        self, path: str, body: Mapping[str, Any]
    ) -> AsyncGenerator[list[dict[str, Any]], None]:
        """The same, as it comes: see `TokenClient.post_stream`. An event may be an error."""
        answer = self.client.post_stream(path, body, timeout_s=self._timeout_s)
        async with self._naming_troubles(), aclosing(answer):
            async for events in answer:
                for event in events:
                    if not isinstance(event, dict):
                        raise BadAnswer(f"{self.name} streams {event!r:.100}, which is no event")
                    if "error" in event:
                        raise _stream_error(event["error"], self.client.base_url + path)
                yield events

    @asynccontextmanager
    async def _naming_troubles(self) -> AsyncIterator[None]:
        """Tells a refusal or a lost connection that was the server's death as that."""
        try:
            yield
        except (RequestFailed, ConnectionLost) as error:
            refused = isinstance(error, RequestFailed) and error.status < 500
            if self._supervisor is not None and not refused:
                await self._supervisor.raise_if_dead(error)
            raise

    def _require_room(self, prompt_ids: Sequence[int]) -> int:
        """How many tokens may follow a prompt. Raises ContextOverflow if none, or it is empty."""
        if not 0 < len(prompt_ids) < self.context_length:
            raise ContextOverflow(
                f"a prompt of {len(prompt_ids)} tokens does not fit: it needs 1 to "
                f"{self.context_length - 1} (context_length {self.context_length})"
            )
        return self.context_length - len(prompt_ids)

    def _tell_kv(self, spans: Iterable[VersionSpan]) -> tuple[VersionSpan, ...]:
        """The spans with what became of older weights' keys, which the server does not tell."""
        told = self._kv_after_update
        return tuple(replace(span, kv_after_update=told.get(span.version)) for span in spans)

    def _version_of(self, told: str) -> int:
        """The version that the server's name for its weights stands for."""
        if told == "default":
            return self._first_version
        if not told.isdecimal():
            raise BadAnswer(f"{self.name} serves weights {told!r}, which palestra did not send")
        return int(told)


def _stream_error(told: Any, where: str) -> RequestFailed:
    """An error that came when the answer had already begun, with its HTTP status."""
    fields = told if isinstance(told, dict) else {"message": str(told)}
    status = fields.get("code")
    status = status if isinstance(status, int) else 500
    return RequestFailed(status, str(fields.get("message", fields)), where)


async def start_server(
    command: Callable[[int], Sequence[str]],
    attach: Callable[[str], Awaitable[E]],
    *,
    name: str,
    env: Mapping[str, str],
    log_folder: str | Path | None,
    start_timeout_s: float,
) -> E:
    """Start a server and keep it alive; the engine that `attach` makes on its address owns it.

    `log_folder` gets its log, by default a temporary folder that `aclose` removes. It stays when
    the start fails, since the error names it.

    Raises:
        ServerNotStarted: it does not start, with the reason.
    """
    temporary = None if log_folder else tempfile.mkdtemp(prefix=f"palestra-{name.lower()}-")
    server = ServerProcess(
        command,
        name=name,
        log_path=Path(log_folder or str(temporary)) / f"{name.lower()}.log",
        env=env,
        start_timeout_s=start_timeout_s,
    )
    await server.start()
    try:
        engine = await attach(server.base_url)
    except BaseException:
        await server.stop()
        raise
    engine._temporary = temporary
    engine._supervisor = ServerSupervisor(server, engine._restarted)
    return engine


def read_vocab_size(folder: Path) -> int | None:
    """That of the model in a folder; None where it cannot be read."""
    try:
        config = json.loads((folder / "config.json").read_text())
        return int(config.get("vocab_size") or config["text_config"]["vocab_size"])
    except (OSError, KeyError, ValueError):
        return None
