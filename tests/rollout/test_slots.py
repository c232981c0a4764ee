"""Slots: rollouts that share an engine get its places in turn."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from palestra.envs import ToolEnv
from palestra.rollout import Slots, rollout
from palestra.rollout.slots import Lane
from palestra.types import Message, Sampling, Task, ToolSchema, Turn
from palestra.verifiers import number


def test_lanes_take_turns_however_many_wait_in_each() -> None:
    async def main() -> list[str]:
        slots = Slots(2)
        served: list[str] = []

        async def generate(name: str, lane: Lane) -> None:
            async with lane:
                served.append(name)
                await asyncio.sleep(0)

        many, few = slots.lane(), slots.lane()
        work = [asyncio.create_task(generate("many", many)) for _ in range(50)]
        await asyncio.sleep(0)
        work += [asyncio.create_task(generate("few", few)) for _ in range(5)]
        await asyncio.gather(*work)
        return served

    served = asyncio.run(main())
    assert len(served) == 55
    assert served[2:14].count("few") == 5


def test_no_more_than_there_are_places_run_at_once_and_all_places_come_back() -> None:
    async def main() -> None:
        slots = Slots(3)
        lane = slots.lane()
        running = most = 0

        async def generate(seconds: float) -> None:
            nonlocal running, most
            async with lane:
                running += 1
                most = max(most, running)
                try:
                    await asyncio.sleep(seconds)
                finally:
                    running -= 1

        stuck = [asyncio.create_task(generate(60)) for _ in range(10)]
        await asyncio.sleep(0.01)
        for task in stuck:  # some hold a place, some wait for one
            task.cancel()
        await asyncio.gather(*stuck, return_exceptions=True)
        await asyncio.gather(*(generate(0.001) for _ in range(30)))
        assert most == 3

    asyncio.run(asyncio.wait_for(main(), 30))


def test_a_place_that_is_given_to_a_cancelled_generation_goes_to_the_next() -> None:
    async def main() -> None:
        slots = Slots(1)
        lane = slots.lane()

        async def hold() -> None:
            async with lane:
                pass

        async with lane:
            first, second = asyncio.create_task(hold()), asyncio.create_task(hold())
            await asyncio.sleep(0)
        first.cancel()  # its place is granted, but it has not run since
        await asyncio.gather(first, second, return_exceptions=True)
        assert first.cancelled()
        assert not second.cancelled()

    asyncio.run(asyncio.wait_for(main(), 30))


class Engine:
    """Answers after a moment and notes whose turn it was."""

    def __init__(self) -> None:
        self.order: list[str] = []

    async def respond(
        self,
        messages: Sequence[Message],
        tools: Sequence[ToolSchema],
        *,
        history: Sequence[Turn] = (),
        task: Task,
        sampling: Sampling,
    ) -> Turn:
        self.order.append(task.id.partition("-")[0])
        await asyncio.sleep(0.001)
        return Turn(message={"role": "assistant", "content": "42"}, sampling=sampling)


def test_a_small_rollout_is_not_starved_by_a_large_one() -> None:
    async def main() -> None:
        engine, slots = Engine(), Slots(4)

        async def play(name: str, count: int) -> None:
            question: Message = {"role": "user", "content": "?"}
            tasks = [
                Task(id=f"{name}-{n}", messages=(question,), answer="42") for n in range(count)
            ]
            env = ToolEnv(tasks=tasks, verifier=number)
            episodes = rollout(lambda: ToolEnv(tasks=env.tasks, verifier=number), tasks, engine,
                               slots=slots, max_concurrent=500)  # fmt: skip
            assert len([episode async for episode in episodes]) == count

        large = asyncio.create_task(play("large", 400))
        while len(engine.order) < 40:  # noqa: ASYNC110 - nothing tells of it
            await asyncio.sleep(0.001)
        begun = len(engine.order)
        await play("small", 20)
        since = engine.order[begun:]
        last = len(since) - 1 - since[::-1].index("small")
        assert last < 60  # in turn it takes 40; behind the large one it would take 380
        await large

    asyncio.run(asyncio.wait_for(main(), 60))


def test_no_places_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 slot, got 0"):
        Slots(0)
