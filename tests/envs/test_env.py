"""The synchronous face of `Env`: Gymnasium's contract, in every surrounding."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from typing import Any

import pytest

from palestra.envs import Chat, Env, Step
from palestra.envs.spaces import Action, Observation
from palestra.types import Outcome, Score


class Echo(Env):
    """Says a random number, then repeats what it hears; "bye" ends it."""

    async def areset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        await super().areset(seed=seed, options=options)
        self.loop = asyncio.get_running_loop()
        self.heard: list[Action] = []
        return self._say(str(self.np_random.integers(10**9))), {}

    async def astep(self, action: Action) -> Step:
        await asyncio.sleep(0)
        assert asyncio.get_running_loop() is self.loop  # what reset opened is still usable
        self.heard.append(action)
        return self._say(str(action)), 0.25, action == "bye", False, {}

    async def ascore(self, stop_reason: str) -> Score:
        return Score(value=0.5, explanation=f"{stop_reason} after {len(self.heard)}")

    @staticmethod
    def _say(text: str) -> Observation:
        return ({"role": "user", "content": text},)


class Slow(Echo):
    """Takes ten seconds over each step."""

    cancelled = False

    async def astep(self, action: Action) -> Step:
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            self.cancelled = True
            raise
        return await super().astep(action)


class Nested(Echo):
    """Uses another environment's synchronous face inside its own coroutine."""

    async def astep(self, action: Action) -> Step:
        inner = Echo()
        inner.reset(seed=1)
        return inner.step(action)


def test_step_returns_gymnasiums_five_values() -> None:
    env = Echo()
    env.reset(seed=1)
    assert env.step("hello") == (
        ({"role": "user", "content": "hello"},),
        0.25,
        False,
        False,
        {},
    )
    env.close()
    env.close()  # closing twice is allowed


def test_an_env_that_only_ends_its_episode_is_scored_and_the_rewards_add_up() -> None:
    env = Echo()
    env.reset(seed=1)
    _, reward, terminated, truncated, info = env.step("bye")
    assert (reward, terminated, truncated) == (0.75, True, False)
    assert info == {
        "outcome": Outcome.SCORED,
        "score": Score(value=0.5, explanation="env after 1"),
        "stop_reason": "env",
    }


def test_resets_follow_the_seed_and_go_on_from_it() -> None:
    env = Echo()
    first, second = env.reset(seed=7), env.reset()
    assert first != second
    assert (env.reset(seed=7), env.reset()) == (first, second)
    assert env.np_random_seed == 7
    assert env.reset(seed=8) != first


def test_environments_do_not_share_spaces() -> None:
    one, other = Echo(), Echo()
    one.action_space.seed(0)
    expected = one.action_space.sample()
    one.action_space.seed(0)
    other.action_space.seed(1)
    other.action_space.sample()
    assert one.action_space.sample() == expected


def test_a_subclass_sets_the_size_of_its_observations() -> None:
    class Large(Echo):
        observation_space = Chat(max_bytes=1_000_000)

    assert Large().observation_space == Chat(max_bytes=1_000_000)


def test_reset_and_step_work_inside_a_running_event_loop() -> None:
    async def notebook_cell() -> float:
        env = Echo()
        env.reset(seed=1)
        return env.step("bye")[1]

    assert asyncio.run(notebook_cell()) == 0.75


def test_an_environment_may_use_anothers_synchronous_face() -> None:
    env = Nested()
    env.reset(seed=1)
    assert env.step("hello")[0] == ({"role": "user", "content": "hello"},)


def test_threads_step_their_environments_at_the_same_time() -> None:
    class Nap(Echo):
        async def astep(self, action: Action) -> Step:
            await asyncio.sleep(0.2)
            return await super().astep(action)

    rewards: list[float] = []

    def episode(action: str) -> None:
        env = Nap()
        env.reset()
        rewards.append(env.step(action)[1])

    threads = [threading.Thread(target=episode, args=("bye",)) for _ in range(8)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert rewards == [0.75] * 8
    assert time.perf_counter() - started < 1.0


def test_an_environment_goes_on_in_a_forked_child_and_in_the_parent() -> None:
    env = Echo()
    env.reset(seed=1)
    parent_end, child_end = os.pipe()
    with warnings.catch_warnings():  # Python 3.12 warns of forks in processes with threads
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        answer = b"failed"
        signal.alarm(20)  # rather than hang
        try:
            env.reset(seed=1)
            answer = str(env.step("bye")[1]).encode()
        finally:
            os.write(child_end, answer)
            os._exit(0)
    os.close(child_end)
    with open(parent_end, "rb") as answers:
        assert answers.read() == b"0.75"
    os.waitpid(child, 0)
    assert env.step("bye")[1] == 0.75


def test_an_interrupt_reaches_the_caller_and_cancels_the_step() -> None:
    env = Slow()
    env.reset()
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    started = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        env.step("hello")
    assert time.perf_counter() - started < 5
    deadline = time.perf_counter() + 5
    while not env.cancelled and time.perf_counter() < deadline:
        time.sleep(0.01)
    assert env.cancelled


def test_a_process_that_leaves_an_environment_open_exits_at_once_and_quietly() -> None:
    script = (
        "import palestra, gymnasium\n"
        "envs = gymnasium.make_vec('palestra/Arithmetic-v0', num_envs=2)\n"
        "envs.reset(seed=1); envs.step(('1', '2'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-W", "error", "-c", script],
        capture_output=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_methods_that_are_missing_are_named_in_the_outcome() -> None:
    class Half(Env):
        pass

    env = Half()
    env.reset()
    info = env.step("hello")[4]
    assert info["outcome"] == Outcome.FAILED
    assert "NotImplementedError: Half must define astep" in info["detail"]
