"""`RoutedEngine`: several engines as one; a conversation stays where its prefix is cached.

A generation of which nothing was recorded can be issued again, so a server that dies costs none:
its generations go to another one, or wait until it is back.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from palestra.rollout.deadline import within
from palestra.rollout.engine import Engine, Piece
from palestra.rollout.engine_errors import ConnectionLost, RequestFailed, ServerDied
from palestra.rollout.served_engine import ServedEngine
from palestra.types import Completion, Sampling

T = TypeVar("T")

_log = logging.getLogger(__name__)

# A prefix is known by the last of its whole blocks of so many tokens.
_BLOCK_TOKENS = 64
_MAX_PREFIXES = 65_536
# The server of a prefix may have so many more generations than the idlest one, or half as many
# more, before a cold prefix costs less than its queue.
_MAX_LEAD = 8
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 10.0
_PROBE_TIMEOUT_S = 60.0


class NoServer(ConnectionLost):
    """No server was in service for as long as one is waited for."""


class RoutedEngine:
    """An `Engine` over several equal ones: the idlest generates, or the one that knows the prefix.

    A server that cannot be reached, dies, stalls or answers with an error of its own is out of
    service until it has taken the last weights again and generated a token. Meanwhile its
    generations are issued to others, each up to `max_reissues` times, since one may be what kills
    servers. With no server left they wait, `patience_s` seconds at most. Also worth its while for
    one engine.

    A server that fails an update is out of service too: nothing is sampled from weights that are
    not the trainer's. `out_of_service` has them by name, with the reason.

    It belongs to one event loop; `aclose` ends what it does in the background and its engines.

    Raises:
        ValueError: no engines.
    """

    def __init__(
        self, engines: Sequence[Engine], *, max_reissues: int = 3, patience_s: float = 300.0
    ) -> None:
        if not engines:
            raise ValueError("a RoutedEngine needs at least one engine, got none")
        self._servers = [_Server(engine, f"server {n}") for n, engine in enumerate(engines)]
        self._max_reissues = max_reissues
        self._patience_s = patience_s
        self._homes: OrderedDict[int, _Server] = OrderedDict()  # by prefix, oldest use first
        self._revivals: set[asyncio.Task[None]] = set()
        self._came_up = asyncio.Event()
        self._last_update: tuple[int, tuple[Any, ...], dict[str, Any]] | None = None
        self.context_length = min(engine.context_length for engine in engines)
        self.version = engines[0].version
        self.reissued = 0  # generations that were issued again, each time counted

    @property
    def out_of_service(self) -> Mapping[str, str]:
        """Why each server that is not used is not used, or answers nothing."""
        troubles = {}
        for server in self._servers:
            own = server.engine.trouble if isinstance(server.engine, ServedEngine) else ""
            if trouble := server.trouble or own:
                troubles[server.name] = trouble
        return troubles

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Completion:
        """See `Engine`. Raises what the last engine raised, or NoServer."""
        prompt = prompt_ids if isinstance(prompt_ids, tuple) else tuple(prompt_ids)
        blocks = self._blocks(prompt)
        reissues_left = self._max_reissues
        while True:
            completion = await self._issue(
                lambda engine: engine.generate(prompt, sampling), prompt, blocks
            )
            # An update of the weights may abort what it finds.
            if completion.stop_reason != "abort" or reissues_left == 0:
                return completion
            reissues_left -= 1
            self.reissued += 1

    async def stream(
        self, prompt_ids: Sequence[int], sampling: Sampling, *, top_logprobs: int = 0
    ) -> AsyncGenerator[Piece, None]:
        """See `Engine`. Raises as `generate`, and what an engine raised that had begun."""
        prompt = prompt_ids if isinstance(prompt_ids, tuple) else tuple(prompt_ids)
        blocks = self._blocks(prompt)
        reissues_left = self._max_reissues
        begun = False
        while True:
            await self._wait_for_any()
            server = self._choose(blocks)
            pieces = server.engine.stream(prompt, sampling, top_logprobs=top_logprobs)
            try:
                async with aclosing(pieces):
                    with self._busy(server, prompt):
                        async for piece in pieces:
                            begun = begun or bool(piece.ids)
                            aborted = piece.stop_reason == "abort" and not begun
                            if aborted and reissues_left > 0:
                                break  # an update of the weights may abort what it finds
                            yield piece
                        else:
                            return
            except Exception as error:
                if begun or reissues_left == 0 or not _is_outage(error):
                    raise
            reissues_left -= 1
            self.reissued += 1

    async def score(self, token_ids: Sequence[int]) -> tuple[float, ...]:
        """See `Engine`."""
        ids = tuple(token_ids)
        return await self._issue(lambda engine: engine.score(ids), ids, [])

    async def update_weights(self, version: int, *args: Any, **kwargs: Any) -> None:
        """Update every server; one that fails is out of service until it has taken this update.

        Raises:
            Exception: what an engine raised, if all of them refused.
            NoServer: none could be reached for `patience_s` seconds.
        """
        self._last_update = version, args, kwargs
        in_service = [server for server in self._servers if not server.trouble]
        results = await asyncio.gather(
            *(server.engine.update_weights(version, *args, **kwargs) for server in in_service),
            return_exceptions=True,
        )
        refusals = []
        for server, result in zip(in_service, results, strict=True):
            if isinstance(result, BaseException):
                if not isinstance(result, Exception):
                    raise result
                if not _is_outage(result):
                    refusals.append(result)
                token_id = 0 if server.known_token is None else server.known_token
                self._take_out(server, result, token_id)
        if refusals and all(server.trouble for server in self._servers):
            raise refusals[0]
        await self._wait_for_any()
        self.version = version

    async def aclose(self) -> None:
        """End the background work and close every engine. May be called more than once."""
        for revival in self._revivals:
            revival.cancel()
        await asyncio.gather(*self._revivals, return_exceptions=True)
        for server in self._servers:
            await server.engine.aclose()

    async def _issue(
        self,
        request: Callable[[Engine], Coroutine[Any, Any, T]],
        ids: tuple[int, ...],
        blocks: list[int],
    ) -> T:
        """What a server answers, whichever it takes."""
        for reissues_left in range(self._max_reissues, -1, -1):
            await self._wait_for_any()
            server = self._choose(blocks)
            try:
                with self._busy(server, ids):
                    return await request(server.engine)
            except Exception as error:
                if reissues_left == 0 or not _is_outage(error):
                    raise
            self.reissued += 1
        raise AssertionError("a request is answered or its last trouble raised")

    @contextmanager
    def _busy(self, server: _Server, ids: tuple[int, ...]) -> Iterator[None]:
        """Counts a request that a server answers; takes the server out if it cannot."""
        server.in_flight += 1
        server.issued += 1
        try:
            yield
        except Exception as error:
            if _is_outage(error):
                self._take_out(server, error, ids[0] if ids else 0)
            raise
        else:
            server.known_token = ids[0] if ids else None
        finally:
            server.in_flight -= 1

    def _blocks(self, prompt: tuple[int, ...]) -> list[int]:
        """By what the home of a prompt's prefix is found; with one server there is no choice."""
        return _hash_blocks(prompt) if len(self._servers) > 1 else []

    def _choose(self, blocks: list[int]) -> _Server:
        """The server for a prompt; the prompt's prefix then lives there."""
        up = [server for server in self._servers if not server.trouble]
        chosen = min(up, key=lambda server: (server.in_flight, server.issued))
        home = next((self._homes[key] for key in reversed(blocks) if key in self._homes), None)
        if home is not None and not home.trouble:
            lead = home.in_flight - chosen.in_flight
            if lead <= max(_MAX_LEAD, chosen.in_flight // 2):
                chosen = home
        if blocks:
            self._homes[blocks[-1]] = chosen
            self._homes.move_to_end(blocks[-1])
            if len(self._homes) > _MAX_PREFIXES:
                self._homes.popitem(last=False)
        return chosen

    async def _wait_for_any(self) -> None:
        """Until a server is in service."""
        try:
            async with asyncio.timeout(self._patience_s):
                while all(server.trouble for server in self._servers):
                    self._came_up.clear()
                    await self._came_up.wait()
        except TimeoutError:
            reasons = "; ".join(f"{name}: {why}" for name, why in self.out_of_service.items())
            raise NoServer(f"no server for {self._patience_s:g} s ({reasons})") from None

    def _take_out(self, server: _Server, error: Exception, token_id: int) -> None:
        """Use it no more until `_revive` finds it well; once, however many requests found out."""
        if server.trouble:
            return
        server.trouble = f"{type(error).__name__}: {error}"
        _log.warning("%s is out of service: %s", server.name, server.trouble)
        revival = asyncio.create_task(self._revive(server, token_id))
        self._revivals.add(revival)
        revival.add_done_callback(self._revivals.discard)

    async def _revive(self, server: _Server, token_id: int) -> None:
        """Put a server back into service once it has the last weights and generates."""
        pause_s = _FIRST_PAUSE_S
        while True:
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            update = self._last_update
            try:
                # It may have been started anew, with the weights of its first hour.
                if update is not None:
                    version, args, kwargs = update
                    await server.engine.update_weights(version, *args, **kwargs)
                probe = server.engine.generate((token_id,), Sampling(max_tokens=1))
                await within(_PROBE_TIMEOUT_S, probe, cause="engine")
            except Exception as error:
                server.trouble = f"{type(error).__name__}: {error}"
                continue
            if update is self._last_update:
                break
        server.trouble = ""
        self._came_up.set()
        _log.warning("%s is back in service", server.name)


@dataclass(slots=True, eq=False)
class _Server:
    engine: Engine
    name: str
    in_flight: int = 0
    issued: int = 0
    trouble: str = ""  # why it is out of service
    known_token: int | None = None  # one that it has taken


def _is_outage(error: Exception) -> bool:
    """Whether the server is at fault, so that another one may well answer the same request."""
    if isinstance(error, RequestFailed):
        return error.status >= 500
    return isinstance(error, (ConnectionLost, ServerDied, OSError, TimeoutError))


def _hash_blocks(ids: tuple[int, ...]) -> list[int]:
    """A hash for each prefix of whole blocks, shortest first."""
    hashes, known = [], 0
    for end in range(_BLOCK_TOKENS, len(ids) + 1, _BLOCK_TOKENS):
        known = hash((known, ids[end - _BLOCK_TOKENS : end]))
        hashes.append(known)
    return hashes
