"""A trained reward model is a verifier like any other: an asynchronous function with a range."""

import asyncio
import math
from collections.abc import Callable

import pytest

from palestra.endpoint import Endpoint, Request
from palestra.endpoint.scripted import ScriptedServer
from palestra.types import Failure, Score, Task
from palestra.verifiers import Part, Rubric, number, verifier

Run = Callable[..., Score]


async def score(prompt: str, reply: str) -> float:
    """What a reward model would say, on a server of its own."""
    with ScriptedServer(lambda body: str(len(body["messages"][-1]["content"]))) as server:
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": reply}]
        found = await Endpoint(server.base_url, "key").complete(
            Request(model="reward", messages=messages)
        )
    return float(found.text)


@verifier(name="reward_model", range=(-10, 10))
async def reward_model(task: Task, reply: str) -> float:
    return await score(task.messages[-1]["content"], reply)


def test_its_number_is_the_reward_and_its_place_in_the_range_the_value(judge: Run) -> None:
    found = judge(reward_model, "12345")
    assert (found.reward, found.value) == (5.0, 0.75)


def test_it_is_a_part_of_a_rubric(judge: Run) -> None:
    rubric = Rubric(Part(number), Part(reward_model, 0.1, shaping=True))
    assert judge(rubric, "42", "42").reward == pytest.approx(1.2)


@pytest.mark.parametrize("value", [math.nan, math.inf, 11.0])
def test_a_number_outside_its_range_is_its_own_fault(judge: Run, value: float) -> None:
    @verifier(name="reward_model", range=(-10, 10))
    async def broken(reply: str) -> float:
        await asyncio.sleep(0)
        return value

    with pytest.raises(Failure):
        judge(broken, "42")
