"""Vector environments: asynchronous ones give, value by value, what synchronous ones give."""

from __future__ import annotations

import itertools
import json
from typing import Any

import gymnasium
import numpy as np
import pytest

import palestra
from palestra.envs import Chat, ToolEnv
from palestra.tools import calculator, tool
from palestra.types import Outcome
from palestra.verifiers import number

# Python 3.12 warns of forks in processes with threads, and Gymnasium forks its workers.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


@tool
def write(length: int) -> str:
    """Write a text of this length."""
    return "é" * length


class Small(ToolEnv):
    """Hardly anything fits its observations."""

    observation_space = Chat(max_bytes=500)


ROWS = [{"prompt": f"How much is {i} + {i}?", "answer": str(2 * i)} for i in range(50)]
palestra.register("TestVector-v0", ToolEnv, tasks=ROWS, tools=[calculator, write], verifier=number)
palestra.register("TestSmall-v0", Small, tasks=ROWS, tools=[write], verifier=number)


def add(a: int, b: int) -> str:
    arguments = {"a": a, "operator": "+", "b": b}
    return f"<tool_call>{json.dumps({'name': 'calculator', 'arguments': arguments})}</tool_call>"


# Content that changes with every step, in every environment; ends and restarts; bad calls.
STEPS = [
    (add(1, 1), add(2, 2), "<tool_call>oops"),
    (add(10, 1), "12", add(99, 99) + add(5, 5)),
    ("no", add(7, 7), {"role": "assistant", "content": "it is 4"}),
    (add(3, 4), add(0, 0), add(8, 8)),
    ("é\ud800", add(1, 0), add(-8, 8)),
]


def run(id: str, mode: str, **vector_kwargs: Any) -> list[Any]:
    envs = gymnasium.make_vec(id, num_envs=3, vectorization_mode=mode, vector_kwargs=vector_kwargs)
    try:
        results: list[Any] = [envs.reset(seed=11)]
        results += [envs.step(actions) for actions in STEPS]
    finally:
        envs.close()
    return results


def plain(value: Any) -> Any:
    """Arrays as lists, so that == compares values."""
    if isinstance(value, np.ndarray):
        return [plain(item) for item in value.tolist()]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(plain(item) for item in value)
    return value


@pytest.mark.parametrize("id", ["palestra/TestVector-v0", "palestra/Arithmetic-v0"])
@pytest.mark.parametrize("autoreset", ["NextStep", "SameStep"])
@pytest.mark.parametrize("shared_memory", [True, False])
def test_asynchronous_vectors_equal_synchronous_ones(
    id: str, autoreset: str, shared_memory: bool
) -> None:
    expected = run(id, "sync", autoreset_mode=autoreset)
    observations = [result[0] for result in expected]
    assert all(one != other for one, other in itertools.pairwise(observations))
    assert plain(run(id, "async", shared_memory=shared_memory, autoreset_mode=autoreset)) == plain(
        expected
    )


def test_observations_keep_their_value_when_later_ones_arrive() -> None:
    envs = gymnasium.make_vec("palestra/TestVector-v0", num_envs=2, vectorization_mode="async")
    try:
        first, _ = envs.reset(seed=0)
        before = repr(first)
        second = envs.step((add(1, 2), add(3, 4)))[0]
        assert [chat[0]["content"] for chat in second] == ["3", "7"]
        assert repr(first) == before
        assert second in envs.observation_space
    finally:
        envs.close()


def test_without_copying_the_view_shows_the_present() -> None:
    envs = gymnasium.make_vec(
        "palestra/TestVector-v0",
        num_envs=2,
        vectorization_mode="async",
        vector_kwargs={"copy": False},
    )
    try:
        view, _ = envs.reset(seed=0)
        envs.step((add(1, 2), add(3, 4)))
        assert [chat[0]["content"] for chat in view] == ["3", "7"]
    finally:
        envs.close()


def test_random_actions_play_whole_episodes() -> None:
    envs = gymnasium.make_vec("palestra/Arithmetic-v0", num_envs=4, vectorization_mode="async")
    try:
        envs.reset(seed=0)
        envs.action_space.seed(0)
        *_, terminated, truncated, info = envs.step(envs.action_space.sample())
        assert terminated.all()
        assert not truncated.any()
        assert list(info["outcome"]) == [Outcome.SCORED] * 4
    finally:
        envs.close()


def test_spawned_workers_find_the_built_in_environments() -> None:
    envs = gymnasium.make_vec(
        "palestra/Arithmetic-v0",
        num_envs=1,
        vectorization_mode="async",
        vector_kwargs={"context": "spawn"},
    )
    try:
        (chat,), info = envs.reset(seed=0)
        assert info["task"][0].messages == chat
        assert envs.step((info["task"][0].answer,))[1].tolist() == [1.0]
    finally:
        envs.close()


def test_an_observation_that_does_not_fit_gives_one_error_with_the_remedy() -> None:
    envs = gymnasium.make_vec("palestra/TestSmall-v0", num_envs=1, vectorization_mode="async")
    try:
        envs.reset(seed=0)
        action = '<tool_call>{"name": "write", "arguments": {"length": 600}}</tool_call>'
        with (
            pytest.warns(UserWarning, match="."),  # Gymnasium tells of errors by warnings
            pytest.raises(ValueError, match=r"observation_space = Chat\(max_bytes=\d+\)"),
        ):
            envs.step((action,))
    finally:
        envs.close()
