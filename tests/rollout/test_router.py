"""The router: prefixes stay where they are cached, and a server that dies costs no generation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from typing import Any

import pytest

from palestra.rollout import RoutedEngine
from palestra.rollout.engine import Piece, StaleWeights
from palestra.rollout.engine_errors import ConnectionLost, RequestFailed, ServerDied
from palestra.rollout.router import NoServer
from palestra.types import Completion, Sampling

PROMPT = tuple(range(300))
SAMPLING = Sampling(max_tokens=4)


class Server:
    """An engine that answers at once, or as its switches say; it notes what it was sent."""

    def __init__(self, context_length: int = 4096) -> None:
        self.context_length = context_length
        self.version = 0
        self.asked: list[tuple[int, ...]] = []
        self.updates: list[tuple[int, tuple[Any, ...]]] = []
        self.cancelled = 0
        self.trouble: Exception | None = None
        self.refuses_update: Exception | None = None
        self.aborts = 0
        self.hold: asyncio.Event | None = None
        self.closed = False
        self.begins = 0
        self.streams_ended = 0

    async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Completion:
        self.asked.append(tuple(prompt_ids))
        try:
            if self.hold is not None:
                await self.hold.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.trouble is not None:
            raise self.trouble
        reason = "stop"
        if self.aborts:
            self.aborts -= 1
            reason = "abort"
        return Completion(ids=(1,), logprobs=(-0.5,), stop_reason=reason)

    async def stream(
        self, prompt_ids: Sequence[int], sampling: Sampling, *, top_logprobs: int = 0
    ) -> AsyncGenerator[Piece, None]:
        """Three tokens; its trouble comes after the first `begins` ones."""
        self.asked.append(tuple(prompt_ids))
        if self.aborts:
            self.aborts -= 1
            yield Piece(ids=(), logprobs=(), stop_reason="abort")
            return
        try:
            for n in range(3):
                if self.trouble is not None and n == self.begins:
                    raise self.trouble
                if self.hold is not None:
                    await self.hold.wait()
                yield Piece(ids=(n,), logprobs=(-0.5,), stop_reason="stop" if n == 2 else None)
        finally:
            self.streams_ended += 1

    async def score(self, token_ids: Sequence[int]) -> tuple[float, ...]:
        if self.trouble is not None:
            raise self.trouble
        return (-1.0,) * (len(token_ids) - 1)

    async def update_weights(self, version: int, *args: Any, **kwargs: Any) -> None:
        if self.refuses_update is not None:
            raise self.refuses_update
        if self.trouble is not None:
            raise self.trouble
        self.updates.append((version, args))
        self.version = version

    async def aclose(self) -> None:
        self.closed = True


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, 30))


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - nothing tells of it
        await asyncio.sleep(0.01)


def test_turns_and_samples_go_where_their_prefix_is() -> None:
    async def main() -> None:
        servers = [Server(), Server(), Server()]
        router = RoutedEngine(servers)
        conversations = [tuple(range(n, n + 100)) for n in range(0, 900, 100)]
        for _ in range(3):
            for n, prompt in enumerate(conversations):
                await router.generate(prompt, SAMPLING)
                conversations[n] = (*prompt, *range(70))
        for n, conversation in enumerate(conversations):
            homes = [s for s in servers if any(conversation[:100] == a[:100] for a in s.asked)]
            assert len(homes) == 1, f"conversation {n} was on several servers"
        assert [len(server.asked) for server in servers] == [9, 9, 9]

    run(main())


def test_a_prefix_yields_to_load() -> None:
    async def main() -> None:
        servers = [Server(), Server()]
        hold = servers[0].hold = servers[1].hold = asyncio.Event()
        router = RoutedEngine(servers)
        group = [asyncio.create_task(router.generate(PROMPT, SAMPLING)) for _ in range(40)]
        await asyncio.sleep(0.05)
        counts = sorted(len(server.asked) for server in servers)
        assert sum(counts) == 40
        assert counts[0] >= 12  # neither all on one server nor scattered
        hold.set()
        await asyncio.gather(*group)

    run(main())


def test_unlike_prompts_are_spread_evenly() -> None:
    async def main() -> None:
        servers = [Server(), Server(), Server()]
        router = RoutedEngine(servers)
        await asyncio.gather(*(router.generate((n,) * 200, SAMPLING) for n in range(30)))
        assert [len(server.asked) for server in servers] == [10, 10, 10]

    run(main())


def test_a_dead_servers_generations_are_issued_again_and_it_returns() -> None:
    async def main() -> None:
        first, second = Server(), Server()
        router = RoutedEngine([first, second])
        await router.generate(PROMPT, SAMPLING)
        home = first if first.asked else second
        home.trouble = ConnectionLost("gone")
        completion = await router.generate(PROMPT, SAMPLING)
        assert completion.stop_reason == "stop"
        assert router.reissued == 1
        [reason] = router.out_of_service.values()
        assert "ConnectionLost: gone" in reason
        asked = len(home.asked)
        await router.generate(PROMPT, SAMPLING)
        assert len(home.asked) == asked  # nothing goes to a dead one
        home.trouble = None
        await until(lambda: not router.out_of_service)
        assert home.asked[-1] == PROMPT[:1]  # the token that showed it was well
        await router.aclose()

    run(main())


def test_with_no_server_left_generations_wait_until_one_is_back() -> None:
    async def main() -> None:
        server = Server()
        router = RoutedEngine([server])
        server.trouble = RequestFailed(500, "EngineDeadError", "it")
        waiting = [asyncio.create_task(router.generate(PROMPT, SAMPLING)) for _ in range(5)]
        await asyncio.sleep(0.3)
        assert not any(task.done() for task in waiting)
        server.trouble = None
        assert len(await asyncio.gather(*waiting)) == 5
        await router.aclose()

    run(main())


def test_no_server_for_too_long_is_an_error_that_says_why() -> None:
    async def main() -> None:
        server = Server()
        server.trouble = ConnectionLost("refused")
        router = RoutedEngine([server], patience_s=0.2)
        with pytest.raises(NoServer, match=r"no server for 0.2 s \(server 0: .*refused\)"):
            await router.generate(PROMPT, SAMPLING)
        await router.aclose()

    run(main())


def test_a_generation_that_every_server_dies_of_is_given_up() -> None:
    class Fragile(Server):
        async def generate(self, prompt_ids: Sequence[int], sampling: Sampling) -> Completion:
            self.asked.append(tuple(prompt_ids))
            if len(prompt_ids) > 1:
                raise ConnectionLost("it died")
            return Completion(ids=(1,), logprobs=(-0.5,), stop_reason="stop")

    async def main() -> None:
        servers = [Fragile(), Fragile()]
        router = RoutedEngine(servers, max_reissues=3)
        with pytest.raises(ConnectionLost, match="it died"):
            await router.generate(PROMPT, SAMPLING)
        assert sum(prompt == PROMPT for server in servers for prompt in server.asked) == 4
        await router.aclose()

    run(main())


def test_what_the_request_is_at_fault_for_is_not_issued_again() -> None:
    async def main() -> None:
        servers = [Server(), Server()]
        for server in servers:
            server.trouble = RequestFailed(400, "max_tokens is too large", "it")
        router = RoutedEngine(servers)
        with pytest.raises(RequestFailed, match="too large"):
            await router.generate(PROMPT, SAMPLING)
        assert sum(len(server.asked) for server in servers) == 1
        assert not router.out_of_service

    run(main())


def test_an_aborted_generation_is_issued_again_without_blame() -> None:
    async def main() -> None:
        server = Server()
        router = RoutedEngine([server], max_reissues=2)
        server.aborts = 2
        assert (await router.generate(PROMPT, SAMPLING)).stop_reason == "stop"
        server.aborts = 9
        assert (await router.generate(PROMPT, SAMPLING)).stop_reason == "abort"
        assert not router.out_of_service

    run(main())


def test_cancelling_reaches_the_server_and_frees_its_place() -> None:
    async def main() -> None:
        servers = [Server(), Server()]
        servers[0].hold = servers[1].hold = asyncio.Event()
        router = RoutedEngine(servers)
        tasks = [asyncio.create_task(router.generate((n,), SAMPLING)) for n in range(10)]
        await asyncio.sleep(0.05)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert [server.cancelled for server in servers] == [5, 5]
        servers[0].hold.set()
        await asyncio.gather(*(router.generate((n,), SAMPLING) for n in range(10)))
        assert [len(server.asked) for server in servers] == [10, 10]

    run(main())


def test_all_servers_are_updated_and_one_that_refuses_is_taken_out_until_it_has_taken_it() -> None:
    async def main() -> None:
        servers = [Server(), Server(), Server()]
        router = RoutedEngine(servers)
        servers[1].refuses_update = StaleWeights("it serves something else")
        await router.update_weights(1, "folder")
        assert router.version == 1
        assert [server.version for server in servers] == [1, 0, 1]
        assert list(router.out_of_service) == ["server 1"]
        assert "StaleWeights" in router.out_of_service["server 1"]
        await asyncio.gather(*(router.generate((n,), SAMPLING) for n in range(10)))
        assert not servers[1].asked
        await router.update_weights(2, "folder2")
        servers[1].refuses_update = None
        await until(lambda: not router.out_of_service)
        assert servers[1].updates == [(2, ("folder2",))]
        await router.aclose()

    run(main())


def test_a_server_that_comes_back_gets_the_last_weights_before_it_serves() -> None:
    async def main() -> None:
        servers = [Server(), Server()]
        router = RoutedEngine(servers)
        await router.update_weights(1, "folder")
        servers[0].trouble = ConnectionLost("gone")
        await asyncio.gather(*(router.generate((n,), SAMPLING) for n in range(4)))
        await router.update_weights(2, "folder2")
        servers[0].trouble, servers[0].version, servers[0].updates = None, 0, []
        servers[0].asked.clear()
        await until(lambda: not router.out_of_service)
        assert servers[0].updates == [(2, ("folder2",))]
        await router.aclose()

    run(main())


def test_an_update_that_no_server_takes_is_the_callers_to_hear() -> None:
    async def main() -> None:
        server = Server()
        router = RoutedEngine([server])
        server.refuses_update = StaleWeights("it serves something else")
        with pytest.raises(StaleWeights):
            await router.update_weights(1, "folder")
        assert router.version == 0
        await router.aclose()

    run(main())


def test_an_update_waits_for_a_server_that_was_just_killed() -> None:
    async def main() -> None:
        server = Server()
        router = RoutedEngine([server])
        server.trouble = ConnectionLost("gone")
        update = asyncio.create_task(router.update_weights(1, "folder"))
        await asyncio.sleep(0.2)
        assert not update.done()
        server.trouble = None
        await update
        assert (server.version, router.version) == (1, 1)
        await router.aclose()

    run(main())


def test_it_scores_where_it_can_and_has_the_smallest_context() -> None:
    async def main() -> None:
        servers = [Server(4096), Server(512)]
        servers[0].trouble = ConnectionLost("gone")
        router = RoutedEngine(servers)
        assert router.context_length == 512
        assert await router.score(PROMPT) == (-1.0,) * 299
        await router.aclose()
        assert servers[0].closed and servers[1].closed

    run(main())


def test_no_engines_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one engine"):
        RoutedEngine([])


# --- streams


async def collect(router: RoutedEngine) -> list[int]:
    pieces = [piece async for piece in router.stream(PROMPT, SAMPLING)]
    assert [piece.stop_reason is None for piece in pieces[:-1]] == [True] * (len(pieces) - 1)
    return [token for piece in pieces for token in piece.ids]


def test_a_stream_that_has_not_begun_is_issued_again() -> None:
    async def main() -> None:
        servers = [Server(), Server()]
        router = RoutedEngine(servers)
        assert await collect(router) == [0, 1, 2]
        home = next(server for server in servers if server.asked)
        home.trouble = ConnectionLost("gone")
        assert await collect(router) == [0, 1, 2]
        assert router.reissued == 1
        assert len(router.out_of_service) == 1
        await router.aclose()

    run(main())


def test_a_stream_that_breaks_off_is_an_error_and_the_server_is_taken_out() -> None:
    async def main() -> None:
        servers = [Server(), Server()]
        for server in servers:
            server.trouble, server.begins = ServerDied("killed"), 2
        router = RoutedEngine(servers)
        stream = router.stream(PROMPT, SAMPLING)
        assert [(await anext(stream)).ids for _ in range(2)] == [(0,), (1,)]
        with pytest.raises(ServerDied, match="killed"):
            await anext(stream)
        assert router.reissued == 0
        assert len(router.out_of_service) == 1
        await router.aclose()

    run(main())


def test_a_stream_that_is_aborted_before_it_begins_is_issued_again_without_blame() -> None:
    async def main() -> None:
        server = Server()
        router = RoutedEngine([server], max_reissues=2)
        server.aborts = 2
        assert await collect(router) == [0, 1, 2]
        server.aborts = 9
        assert await collect(router) == []
        assert not router.out_of_service

    run(main())


def test_closing_a_stream_reaches_the_server_and_frees_its_place() -> None:
    async def main() -> None:
        servers = [Server(), Server()]
        router = RoutedEngine(servers)
        streams = [router.stream((n,), SAMPLING) for n in range(10)]
        for stream in streams:
            assert (await anext(stream)).ids == (0,)
        assert [len(server.asked) for server in servers] == [5, 5]  # each counts while it goes on
        for stream in streams:
            await stream.aclose()
        assert [server.streams_ended for server in servers] == [5, 5]
        assert [server.in_flight for server in router._servers] == [0, 0]

    run(main())
