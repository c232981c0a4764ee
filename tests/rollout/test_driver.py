"""The driver: every episode is played, accounted for by cause, and nothing stays behind."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import pytest

from palestra.envs import Env, ToolEnv
from palestra.rollout import (
    ContextFull,
    Limits,
    RandomPolicy,
    Recorder,
    ScriptedPolicy,
    read_episodes,
    rollout,
    run_episode,
    tool_call,
)
from palestra.tools import ToolError, tool
from palestra.types import (
    Episode,
    Failure,
    Message,
    Outcome,
    Sampling,
    Score,
    Task,
    ToolSchema,
    Turn,
    Unscorable,
)
from palestra.verifiers import number


@tool
async def add(a: int, b: int) -> int:
    """Add two integers."""
    return a + b


@tool
async def greedy(a: int) -> int:
    """Need more memory than there is."""
    raise MemoryError


@tool
async def refuse(a: int) -> int:
    """Say no."""
    raise ToolError("no")


@tool(timeout_s=0.05)
async def slow(a: int) -> int:
    """Take longer than allowed."""
    await asyncio.sleep(60)
    return a


@tool
async def stay(seconds: float) -> str:
    """Wait."""
    await asyncio.sleep(seconds)
    return "done"


SUM = Task(id="sum", messages=({"role": "user", "content": "17 + 25?"},), answer="42")
SOLVES = ScriptedPolicy([tool_call("add", a=17, b=25), "42"])


def sums(count: int) -> list[Task]:
    return [replace(SUM, id=f"sum-{index}") for index in range(count)]


def tool_env() -> ToolEnv:
    return ToolEnv(tasks=[SUM], tools=[add, greedy, refuse, slow, stay], verifier=number)


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """Run and see that nothing is left running."""

    async def watched() -> Any:
        result = await asyncio.wait_for(work, timeout=30)
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return result

    return asyncio.run(watched())


def play(policy: Any, env: Env | None = None, **options: Any) -> Episode:
    episode = run(run_episode(env or tool_env(), policy, SUM, **options))
    assert isinstance(episode, Episode)
    return episode


async def collect(episodes: AsyncIterator[Episode]) -> list[Episode]:
    return [episode async for episode in episodes]


class Answers:
    """A policy made of one coroutine function of (task, history, sampling)."""

    def __init__(self, respond: Callable[..., Coroutine[Any, Any, Turn]]) -> None:
        self._respond = respond

    async def respond(
        self,
        messages: Sequence[Message],
        tools: Sequence[ToolSchema],
        *,
        history: Sequence[Turn] = (),
        task: Task,
        sampling: Sampling,
    ) -> Turn:
        return await self._respond(task, history, sampling)


def says(content: str, **fields: Any) -> Turn:
    return Turn(message={"role": "assistant", "content": content}, **fields)


class PlainEnv(Env):
    """A question that any reply answers; the tests below make parts of it misbehave."""

    closed = 0

    async def areset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        await super().areset(seed=seed)
        return ({"role": "user", "content": "?"},), {"tools": ()}

    async def astep(self, action: Any) -> Any:
        return (), 0.0, True, False, {}

    async def ascore(self, stop_reason: str) -> Score:
        return Score(value=1.0)

    async def aclose(self) -> None:
        type(self).closed += 1


async def ignore_cancellation(seconds: float) -> None:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        try:
            await asyncio.sleep(left)
        except asyncio.CancelledError:
            continue


def test_an_episode_holds_what_was_said_called_and_scored() -> None:
    episode = play(SOLVES)
    assert (episode.outcome, episode.stop_reason, episode.reward) == ("scored", "answer", 1.0)
    assert [message["role"] for message in episode.messages] == [
        "user",
        "assistant",
        "tool",
        "assistant",
    ]
    assert [result.content for turn in episode.turns for result in turn.tool_results] == ["42"]
    assert [turn.reward for turn in episode.turns] == [0.0, 1.0]
    assert episode.turns[-1].terminated
    assert not episode.turns[-1].truncated
    assert episode.tools[0]["function"]["name"] == "add"
    assert {"reset", "generate", "step"} <= set(episode.timings)


def test_every_sample_of_every_task_is_played_once() -> None:
    episodes = run(collect(rollout(tool_env, sums(7), SOLVES, n_per_task=3, max_concurrent=4)))
    assert sorted((e.task.id, e.sample) for e in episodes) == sorted(
        itertools.product([task.id for task in sums(7)], range(3))
    )
    assert len({episode.id for episode in episodes}) == 21


def test_a_task_that_comes_twice_goes_on_counting_samples() -> None:
    episodes = run(collect(rollout(tool_env, [SUM, SUM], SOLVES, n_per_task=2)))
    assert sorted(episode.sample for episode in episodes) == [0, 1, 2, 3]


def test_environments_are_reused() -> None:
    made: list[Env] = []

    def make_env() -> Env:
        made.append(tool_env())
        return made[-1]

    episodes = run(collect(rollout(make_env, sums(50), SOLVES, max_concurrent=5)))
    assert len(episodes) == 50
    assert len(made) <= 5


def test_gymnasium_wrappers_are_looked_through() -> None:
    def make_env() -> gymnasium.Env[Any, Any]:
        return gymnasium.wrappers.OrderEnforcing(tool_env())

    assert [e.reward for e in run(collect(rollout(make_env, [SUM], SOLVES)))] == [1.0]


def test_endless_tasks_are_taken_only_as_episodes_are() -> None:
    taken = itertools.count()

    def endless() -> Iterator[Task]:
        while True:
            yield replace(SUM, id=f"sum-{next(taken)}")

    async def take_ten() -> int:
        async with aclosing(rollout(tool_env, endless(), SOLVES, max_concurrent=4)) as episodes:
            for _ in range(10):
                await anext(episodes)
            await asyncio.sleep(0.1)
            return next(taken)

    assert run(take_ten()) <= 10 + 4 + 1


# --- what the policy provokes is scored


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (tool_call("greedy", a=1), "resources"),
        (tool_call("refuse", a=1), "tool_error"),
        (tool_call("slow", a=1), "timeout"),
        (tool_call("add", a="one", b=2), "bad_arguments"),
        (tool_call("subtract", a=1, b=2), "unknown_tool"),
        ("<tool_call>{oops}</tool_call>", "bad_json"),
    ],
)
def test_trouble_that_the_policy_provokes_is_counted_and_the_episode_goes_on(
    reply: str, error: str
) -> None:
    episode = play(ScriptedPolicy([reply, "42"]))
    assert (episode.outcome, episode.reward) == ("scored", 1.0)
    assert episode.tool_errors() == {error: 1}


def test_turns_run_out() -> None:
    policy = ScriptedPolicy([tool_call("add", a=1, b=1)] * 4)
    episode = play(policy, limits=Limits(max_turns=3))
    assert (episode.outcome, episode.stop_reason) == ("scored", "max_turns")
    assert len(episode.turns) == 3
    assert episode.turns[-1].truncated
    assert episode.reward == 0.0


def test_a_reply_cut_by_its_length_ends_the_episode_and_its_cut_call_is_counted() -> None:
    async def respond(task: Task, history: Sequence[Turn], sampling: Sampling) -> Turn:
        cut = ScriptedPolicy(['<tool_call>\n{"name": "add", "argu'])
        turn = await cut.respond((), (), task=task, sampling=sampling)
        ids = tuple(range(sampling.max_tokens))
        return replace(turn, completion_ids=ids, stop_reason="length")

    episode = play(Answers(respond), sampling=Sampling(max_tokens=9))
    assert (episode.outcome, episode.stop_reason) == ("scored", "length")
    assert episode.tool_errors() == {"cut": 1}
    assert episode.turns[-1].truncated
    assert episode.reward == 0.0


def test_no_more_tokens_are_sampled_than_the_budget_allows() -> None:
    async def respond(task: Task, history: Sequence[Turn], sampling: Sampling) -> Turn:
        turn = await SOLVES.respond((), (), task=task, sampling=sampling)
        cut = sampling.max_tokens < 8
        return replace(
            turn,
            completion_ids=(1,) * min(8, sampling.max_tokens),
            stop_reason="length" if cut else "stop",
        )

    for budget, turns in {20: 3, 16: 2}.items():
        episode = play(Answers(respond), limits=Limits(max_total_tokens=budget))
        assert (episode.outcome, episode.stop_reason) == ("scored", "token_budget")
        assert len(episode.turns) == turns
        assert sum(len(turn.completion_ids) for turn in episode.turns) == budget


def test_a_full_context_is_scored_unless_the_task_itself_never_fitted() -> None:
    async def respond(task: Task, history: Sequence[Turn], sampling: Sampling) -> Turn:
        if len(history) == full_at:
            raise ContextFull("the prompt has 600 tokens, the engine's context 512")
        return await SOLVES.respond((), (), history=history, task=task, sampling=sampling)

    full_at = 1
    episode = play(Answers(respond))
    assert (episode.outcome, episode.stop_reason) == ("scored", "context")
    full_at = 0
    episode = play(Answers(respond))
    assert (episode.outcome, episode.cause) == ("failed", "prompt_too_long")


@pytest.mark.parametrize("limit", ["step_timeout_s", "episode_timeout_s"])
def test_a_step_past_its_deadline_is_cut_and_scored(limit: str) -> None:
    options: dict[str, Any] = {limit: 0.2}
    policy = ScriptedPolicy([tool_call("stay", seconds=0.01), tool_call("stay", seconds=20.0)])
    episode = play(policy, limits=Limits(**options))
    assert (episode.outcome, episode.stop_reason) == ("scored", "deadline")
    assert len(episode.turns) == 2
    assert episode.turns[-1].truncated


def test_a_slow_engine_costs_no_answer_its_score() -> None:
    async def respond(task: Task, history: Sequence[Turn], sampling: Sampling) -> Turn:
        await asyncio.sleep(0.3)
        return await SOLVES.respond((), (), history=history, task=task, sampling=sampling)

    episode = play(Answers(respond), limits=Limits(episode_timeout_s=0.2))
    assert (episode.outcome, episode.reward) == ("scored", 1.0)


# --- what is ours is failed, with its cause


def test_an_engine_that_does_not_answer_has_failed() -> None:
    async def respond(task: Task, history: Sequence[Turn], sampling: Sampling) -> Turn:
        await asyncio.sleep(60)
        return says("42")

    episode = play(Answers(respond), limits=Limits(generation_timeout_s=0.05))
    assert (episode.outcome, episode.cause) == ("failed", "engine")
    assert episode.detail == "no reply in 0.05 s"
    assert episode.rewards == {}


def test_a_generation_that_somebody_else_cancels_fails_one_episode_only() -> None:
    async def respond(task: Task, history: Sequence[Turn], sampling: Sampling) -> Turn:
        if task.id == "sum-1":
            raise asyncio.CancelledError  # as from a future that a dying engine cancels
        return says("42")

    episodes = run(collect(rollout(tool_env, sums(3), Answers(respond), max_attempts=1)))
    assert {e.task.id: e.cause for e in episodes} == {
        "sum-0": None,
        "sum-1": "engine",
        "sum-2": None,
    }


def test_a_policy_that_raises_or_returns_nonsense_fails_the_episode() -> None:
    async def wrong(task: Task, history: Sequence[Turn], sampling: Sampling) -> Any:
        return "42"

    assert play(ScriptedPolicy([])).cause == "policy"
    episode = play(Answers(wrong))
    assert (episode.outcome, episode.cause) == ("failed", "policy")
    assert "Turn" in episode.detail
    not_a_reply = ScriptedPolicy([{"role": "user", "content": 3}])
    assert play(not_a_reply).cause == "policy"


def test_an_environment_that_hangs_in_its_reset_has_failed() -> None:
    class Hangs(PlainEnv):
        async def areset(self, **kwargs: Any) -> Any:
            await asyncio.sleep(60)

    episode = play(ScriptedPolicy(["42"]), Hangs(), limits=Limits(step_timeout_s=0.05))
    assert (episode.outcome, episode.cause, episode.turns) == ("failed", "env", ())


def test_a_verdict_that_never_comes_is_the_verifiers_failure() -> None:
    class Ponders(PlainEnv):
        async def ascore(self, stop_reason: str) -> Score:
            await asyncio.sleep(60)
            return Score(value=1.0)

    episode = play(ScriptedPolicy(["42"]), Ponders(), limits=Limits(step_timeout_s=0.05))
    assert (episode.outcome, episode.cause) == ("failed", "verifier")


def test_a_step_that_ignores_its_cancellation_fails_and_holds_nobody() -> None:
    class Stuck(PlainEnv):
        async def astep(self, action: Any) -> Any:
            await ignore_cancellation(2.5)
            return await super().astep(action)

    async def main() -> Episode:
        episode = await run_episode(
            Stuck(), ScriptedPolicy(["42"]), SUM, limits=Limits(step_timeout_s=0.05)
        )
        assert time.monotonic() - began < 2.0
        await asyncio.sleep(1.5)  # until the stuck step has ended
        return episode

    began = time.monotonic()
    episode = run(main())
    assert (episode.outcome, episode.cause) == ("failed", "env")


@pytest.mark.parametrize(
    ("observation", "info"), [(None, {}), ((), None), (3, {"outcome": "scored"})]
)
def test_an_environment_that_breaks_its_contract_fails_the_episode(
    observation: Any, info: Any
) -> None:
    class Broken(PlainEnv):
        async def astep(self, action: Any) -> Any:
            return observation, 0.0, False, False, info

    episode = play(ScriptedPolicy(["42"]), Broken())
    assert (episode.outcome, episode.cause) == ("failed", "env")


def test_a_failed_episode_is_recorded_and_attempted_again_in_a_fresh_environment() -> None:
    class FailsOnce(PlainEnv):
        async def astep(self, action: Any) -> Any:
            if next(steps) == 0:
                raise Failure("env", "the daemon is gone")
            return await super().astep(action)

    steps = itertools.count()
    made = 0

    def make_env() -> Env:
        nonlocal made
        made += 1
        return FailsOnce()

    policy = ScriptedPolicy(["42"])
    first, second = run(collect(rollout(make_env, [SUM], policy, max_attempts=3)))
    assert (first.outcome, first.attempt, first.cause) == ("failed", 0, "env")
    assert (second.outcome, second.attempt, second.reward) == ("scored", 1, 1.0)
    assert first.id != second.id
    assert made == 2
    assert FailsOnce.closed == 2


# --- faults among many


@tool
async def lookup(fault: str) -> str:
    """Look something up."""
    await asyncio.sleep(0)
    if fault == "tool":
        raise ConnectionError("the index is gone")
    return "found"


def judge(task: Task, answer: Any, reply: str) -> bool:
    if answer == "verifier":
        raise TypeError("a bug in the verifier")
    if answer == "reference":
        raise Unscorable("the reference does not parse")
    return reply == "right"


def test_of_many_episodes_every_fault_is_accounted_for_and_none_is_mis_scored() -> None:
    kinds = ["tool", "engine", "verifier", "reference", *["none"] * 76]  # 5% are broken
    tasks = [
        Task(
            id=f"{index:04d}-{kinds[index % len(kinds)]}",
            messages=({"role": "user", "content": "?"},),
            answer=kinds[index % len(kinds)],
            info={"right": index % 3 == 0},
        )
        for index in range(400)
    ]

    async def respond(task: Task, history: Sequence[Turn], sampling: Sampling) -> Turn:
        await asyncio.sleep(0)
        if task.answer == "engine" and history:
            raise Failure("engine", "CUDA error")
        script = [tool_call("lookup", fault=task.answer), "right" if task.info["right"] else "no"]
        return await ScriptedPolicy(script).respond(
            (), (), history=history, task=task, sampling=sampling
        )

    def make_env() -> ToolEnv:
        return ToolEnv(tasks=tasks, tools=[lookup], verifier=judge)

    episodes = run(
        collect(rollout(make_env, tasks, Answers(respond), max_concurrent=400, max_attempts=2))
    )
    expected = Counter[tuple[str, str | None, float]]()
    for task in tasks:
        if task.answer == "none":
            expected["scored", None, float(task.info["right"])] += 1
        elif task.answer == "reference":
            expected["unscorable", "verifier:reference", 0.0] += 2  # both attempts
        else:
            expected["failed", {"tool": "tool:lookup"}.get(task.answer, task.answer), 0.0] += 2
    assert Counter((str(e.outcome), e.cause, e.reward) for e in episodes) == expected
    assert all(not e.rewards and not e.scores for e in episodes if e.outcome != Outcome.SCORED)
    assert {e.task.id for e in episodes} == {task.id for task in tasks}


def test_one_stuck_episode_holds_no_other() -> None:
    async def respond(task: Task, history: Sequence[Turn], sampling: Sampling) -> Turn:
        await asyncio.sleep(60 if task.id == "sum-0" else 0)
        return says("42")

    async def first_nine() -> list[str]:
        async with aclosing(
            rollout(tool_env, sums(10), Answers(respond), max_concurrent=2)
        ) as episodes:
            return [(await anext(episodes)).task.id for _ in range(9)]

    assert "sum-0" not in run(first_nine())


# --- leaving early


def test_cancelling_leaves_no_tasks_and_closes_every_environment() -> None:
    class Waits(PlainEnv):
        async def astep(self, action: Any) -> Any:
            await asyncio.sleep(60)

    async def cancel_midway() -> None:
        work = asyncio.create_task(collect(rollout(Waits, sums(20), ScriptedPolicy(["42"]))))
        await asyncio.sleep(0.1)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work

    run(cancel_midway())
    assert Waits.closed == 20


def test_leaving_the_loop_cancels_what_is_in_progress() -> None:
    class Waits(PlainEnv):
        async def astep(self, action: Any) -> Any:
            await asyncio.sleep(0.0 if next(order) == 0 else 60.0)
            return await super().astep(action)

    order = itertools.count()

    async def take_one() -> None:
        async with aclosing(rollout(Waits, sums(5), ScriptedPolicy(["42"]))) as episodes:
            await anext(episodes)

    run(take_one())
    assert Waits.closed == 5


def test_a_recorder_that_cannot_write_ends_the_rollout_with_its_own_error(tmp_path: Path) -> None:
    class FullDisk(Recorder):
        def append(self, *episodes: Episode) -> None:
            if episodes[0].task.id == "sum-3":
                raise OSError("No space left on device")
            super().append(*episodes)

    async def play(recorder: Recorder) -> None:
        with pytest.raises(OSError, match="No space left on device"):
            await collect(rollout(tool_env, sums(50), SOLVES, max_concurrent=2, recorder=recorder))

    with FullDisk(tmp_path / "episodes.jsonl") as recorder:
        run(play(recorder))
    assert len(read_episodes(tmp_path / "episodes.jsonl")) >= 2


def test_an_environment_that_cannot_be_made_is_the_callers_to_hear() -> None:
    def make_env() -> Env:
        raise ValueError("no tasks")

    with pytest.raises(ValueError, match="no tasks"):
        run(collect(rollout(make_env, [SUM], SOLVES)))


def test_a_foreign_environment_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="must make a palestra Env, got a CartPoleEnv"):
        run(collect(rollout(lambda: gymnasium.make("CartPole-v1"), [SUM], SOLVES)))


@pytest.mark.parametrize("name", ["n_per_task", "max_concurrent", "max_attempts"])
def test_numbers_out_of_range_are_refused(name: str) -> None:
    options: dict[str, Any] = {name: 0}
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        run(collect(rollout(tool_env, [SUM], SOLVES, **options)))


@pytest.mark.parametrize("name", ["max_turns", "max_total_tokens"])
def test_limits_without_room_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        Limits(**{name: 0})
    with pytest.raises(ValueError, match="step_timeout_s must be positive, got nan"):
        Limits(step_timeout_s=float("nan"))


# --- seeds


def without_timings(episodes: Sequence[Episode]) -> list[Episode]:
    def plain(turn: Turn) -> Turn:
        results = tuple(replace(result, duration_s=0.0) for result in turn.tool_results)
        return replace(turn, timings={}, tool_results=results)

    return [
        replace(episode, timings={}, turns=tuple(map(plain, episode.turns)))
        for episode in sorted(episodes, key=lambda episode: episode.id)
    ]


def test_the_same_seed_gives_the_same_episodes_however_many_run_at_once() -> None:
    def episodes(seed: int, max_concurrent: int) -> list[Episode]:
        return without_timings(
            run(
                collect(
                    rollout(
                        lambda: ToolEnv(tasks=[SUM], tools=[add], verifier=number),
                        sums(5),
                        RandomPolicy(),
                        n_per_task=4,
                        seed=seed,
                        max_concurrent=max_concurrent,
                    )
                )
            )
        )

    alone = episodes(seed=3, max_concurrent=1)
    assert alone == episodes(seed=3, max_concurrent=20)
    assert alone != episodes(seed=4, max_concurrent=20)


def test_samples_of_a_task_begin_alike_and_are_sampled_differently() -> None:
    class ShowsSeed(PlainEnv):
        async def areset(self, *, seed: int | None = None, options: Any = None) -> Any:
            return ({"role": "user", "content": str(seed)},), {}

    policy = ScriptedPolicy(["42"])
    episodes = run(collect(rollout(ShowsSeed, sums(2), policy, n_per_task=3)))
    prompts = {episode.prompt[0]["content"] for episode in episodes}
    seeds = {turn.sampling.seed for e in episodes for turn in e.turns if turn.sampling}
    assert len(prompts) == 2
    assert len(seeds) == 6
