"""The outcome rule from both sides: what the policy provokes is scored, what is ours is not."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

import pytest
from gymnasium.error import ResetNeeded

from palestra.envs import (
    Env,
    Step,
    ToolEnv,
    UsageError,
    guarded_reset,
    guarded_score,
    guarded_step,
)
from palestra.envs.spaces import Action, Observation
from palestra.tools import State, ToolError, tool
from palestra.types import Failure, Outcome, Score, Unscorable
from palestra.verifiers import number

TASK = {"prompt": "1+1", "answer": "2"}


def call(name: str, arguments: str = "{}") -> str:
    return f'<tool_call>{{"name": "{name}", "arguments": {arguments}}}</tool_call>'


def env_with(*tools: Any, verifier: Any = number, **options: Any) -> ToolEnv:
    return ToolEnv(tasks=[TASK], tools=tools, verifier=verifier, **options)


def play(env: Env, *actions: Action) -> Step:
    """The last step of an episode; earlier ones must not end it."""
    env.reset(seed=0)
    for action in actions[:-1]:
        _, _, terminated, truncated, info = env.step(action)
        assert not terminated
        assert not truncated, info
    return env.step(actions[-1])


def assert_masked(step: Step, outcome: Outcome, cause: str, detail: str) -> None:
    observation, reward, terminated, truncated, info = step
    assert (observation, reward, terminated, truncated) == ((), 0.0, False, True)
    assert (info["outcome"], info["cause"]) == (outcome, cause)
    assert detail in info["detail"]
    assert "score" not in info


@tool
def grow(size: int) -> str:
    """Use as much memory as the policy likes."""
    if size > 10**6:
        raise MemoryError
    return "small"


@tool
def dive(depth: int) -> int:
    """Recurse as deep as the policy likes."""
    return 0 if depth == 0 else 1 + dive(depth - 1)


@tool(timeout_s=0.1)
async def wait(seconds: float) -> str:
    """Take as long as the policy likes."""
    await asyncio.sleep(seconds)
    return "done"


@tool
def refuse() -> str:
    """Say no."""
    raise ToolError("not today")


@tool
def broken() -> str:
    """Have a bug."""
    raise KeyError("forgotten")


@tool
async def leave() -> str:
    """Try to end the process."""
    sys.exit(3)


# What the policy provokes.


@pytest.mark.parametrize(
    ("action", "error"),
    [
        (call("grow", '{"size": 1000000000}'), "resources"),
        (call("dive", '{"depth": 1000000}'), "resources"),
        (call("wait", '{"seconds": 1000}'), "timeout"),
        (call("refuse"), "tool_error"),
        (call("grwo"), "unknown_tool"),
        (call("grow"), "bad_arguments"),
        (call("grow", '{"size": "big"}'), "bad_arguments"),
        (call("refuse", '{"why": 1}'), "bad_arguments"),
        ("<tool_call>{nonsense}</tool_call>", "bad_json"),
        ("<tool_call>" + "[" * 100_000 + "</tool_call>", "bad_json"),
        ('<tool_call>{"name": "grow", "argum', "cut"),
    ],
)
def test_trouble_that_a_call_provokes_is_answered_and_the_episode_is_scored(
    action: str, error: str
) -> None:
    env = env_with(grow, dive, wait, refuse)
    env.reset(seed=0)
    observation, reward, terminated, truncated, info = env.step(action)
    assert (reward, terminated, truncated) == (0.0, False, False)
    (result,) = info["tool_results"]
    assert result.error == error
    assert observation == (result.message(),)
    assert "\n" not in result.content
    _, reward, terminated, _, info = env.step("2")
    assert (reward, terminated, info["outcome"]) == (1.0, True, Outcome.SCORED)


def fragile(reply: str, answer: str) -> bool:
    """Falls over some answers, as parsers do."""
    if "recursion" in reply:
        raise RecursionError
    if "memory" in reply:
        raise MemoryError
    if "slow" in reply:
        time.sleep(5)
    if "parser" in reply:
        raise ValueError("unbalanced bracket")
    return reply == answer


@pytest.mark.parametrize("reply", ["recursion", "memory", "slow", "parser"])
def test_an_answer_that_the_verifier_falls_over_is_scored_zero(reply: str) -> None:
    _, reward, terminated, truncated, info = play(
        env_with(verifier=fragile, verifier_timeout_s=0.1), reply
    )
    assert (reward, terminated, truncated) == (0.0, True, False)
    assert info["outcome"] == Outcome.SCORED
    assert info["score"].value == 0.0


@pytest.mark.parametrize("reply", ["", "\ud800\0", "9" * 1_000_000, "1e999999999", "\u0661"])
def test_odd_answers_are_wrong_answers(reply: str) -> None:
    _, reward, terminated, _, info = play(env_with(), reply)
    assert (reward, terminated, info["outcome"]) == (0.0, True, Outcome.SCORED)


def test_running_out_of_turns_is_scored_and_truncated() -> None:
    env = env_with(refuse, max_turns=2)
    _, reward, terminated, truncated, info = play(env, call("refuse"), call("refuse"))
    assert (reward, terminated, truncated) == (0.0, False, True)
    assert (info["outcome"], info["stop_reason"]) == (Outcome.SCORED, "max_turns")
    assert [result.error for result in info["tool_results"]] == ["tool_error"]


def test_more_calls_than_allowed_are_answered_without_being_run() -> None:
    ran: list[int] = []

    @tool
    def count(number: int) -> int:
        """Count."""
        ran.append(number)
        return number

    env = env_with(count, max_tool_calls_per_turn=2)
    env.reset(seed=0)
    action = "".join(call("count", f'{{"number": {i}}}') for i in range(4))
    observation, *_, info = env.step(action)
    assert sorted(ran) == [0, 1]
    errors = [result.error for result in info["tool_results"]]
    assert errors == [None, None, "too_many_calls", "too_many_calls"]
    assert len(observation) == 4
    assert len({message["tool_call_id"] for message in observation}) == 4


# What is ours.


def test_a_bug_in_a_tool_is_a_failure_of_that_tool() -> None:
    assert_masked(play(env_with(broken), call("broken")), Outcome.FAILED, "tool:broken", "KeyError")


def test_one_broken_tool_fails_the_turn_and_stops_the_others() -> None:
    stopped: list[str] = []

    @tool
    async def endless() -> str:
        """Never return."""
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            stopped.append("endless")
            raise
        return ""

    @tool
    async def fails() -> str:
        """Have a bug."""
        await asyncio.sleep(0.05)
        raise KeyError("forgotten")

    started = time.perf_counter()
    step = play(env_with(endless, fails), call("endless") + call("fails"))
    assert_masked(step, Outcome.FAILED, "tool:fails", "KeyError")
    assert stopped == ["endless"]
    assert time.perf_counter() - started < 5


@pytest.mark.parametrize("calls", [1, 2])
def test_a_tool_that_exits_does_not_take_the_process_along(calls: int) -> None:
    step = play(env_with(leave), call("leave") * calls)
    assert_masked(step, Outcome.FAILED, "tool:leave", "")
    assert play(env_with(), "2")[1] == 1.0  # the event loop is alive


def test_a_reference_that_is_no_number_is_unscorable() -> None:
    env = ToolEnv(tasks=[{"prompt": "1+1", "answer": "two, maybe"}], verifier=number)
    assert_masked(play(env, "2"), Outcome.UNSCORABLE, "verifier:reference", "two, maybe")


def test_a_verifier_that_says_so_is_unscorable() -> None:
    def judge(reply: str) -> bool:
        raise Unscorable("the judge is down")

    step = play(env_with(verifier=judge), "2")
    assert_masked(step, Outcome.UNSCORABLE, "verifier:reference", "the judge is down")


@pytest.mark.parametrize("verdict", ["yes", float("nan"), 1.5, None])
def test_a_verifier_that_returns_no_score_has_failed(verdict: Any) -> None:
    def wrong(reply: str) -> Any:
        return verdict

    assert_masked(play(env_with(verifier=wrong), "2"), Outcome.FAILED, "verifier", "")


def test_a_verifier_that_falls_over_every_answer_has_failed() -> None:
    def hopeless(reply: str) -> bool:
        raise KeyError("gone")

    step = play(env_with(verifier=hopeless), "2")
    assert_masked(step, Outcome.FAILED, "verifier", "KeyError")


class Faulty(Env):
    """Goes wrong where it is told to, with what it is given."""

    def __init__(self, where: str, error: BaseException | None = None) -> None:
        super().__init__()
        self.where = where
        self.error = error
        self.released = 0

    def _maybe(self, here: str) -> None:
        if self.where == here and self.error is not None:
            raise self.error

    async def areset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        await super().areset(seed=seed, options=options)
        self._maybe("reset")
        return ({"role": "user", "content": "?"},), {}

    async def astep(self, action: Action) -> Step:
        self._maybe("step")
        reward = float("inf") if self.where == "reward" else 0.0
        return (), reward, True, False, {}

    async def ascore(self, stop_reason: str) -> Score:
        self._maybe("score")
        return Score(value=1.0)

    async def arelease(self) -> None:
        self.released += 1
        self._maybe("release")


@pytest.mark.parametrize("where", ["step", "score"])
@pytest.mark.parametrize("error", [KeyError("x"), MemoryError(), RecursionError(), SystemExit(1)])
def test_a_bug_in_an_environment_is_a_failure_that_says_where(
    where: str, error: BaseException
) -> None:
    env = Faulty(where, error)
    step = play(env, "2")
    assert_masked(step, Outcome.FAILED, "env", type(error).__name__)
    assert "(at test_outcome.py:" in step[4]["detail"]
    assert env.released == 1


def test_causes_given_by_the_environment_are_kept() -> None:
    env = Faulty("step", Failure("daemon", "connection refused"))
    assert_masked(play(env, "2"), Outcome.FAILED, "daemon", "connection refused")


def test_a_reward_that_is_not_finite_is_a_failure() -> None:
    assert_masked(play(Faulty("reward"), "2"), Outcome.FAILED, "env", "must be finite, got inf")


def test_a_failed_reset_ends_the_next_step_and_the_next_reset_may_work() -> None:
    env = Faulty("reset", OSError("no daemon"))
    observation, info = env.reset(seed=0)
    assert observation == ()
    assert (info["outcome"], info["cause"]) == (Outcome.FAILED, "env")
    for _ in range(2):
        assert_masked(env.step("2"), Outcome.FAILED, "env", "OSError: no daemon")
    assert_masked(asyncio.run(guarded_score(env, "deadline")), Outcome.FAILED, "env", "OSError")
    env.error = None
    assert "outcome" not in env.reset(seed=0)[1]
    assert env.step("2")[1] == 1.0


def test_trouble_with_releasing_does_not_change_the_verdict(
    caplog: pytest.LogCaptureFixture,
) -> None:
    _, reward, *_, info = play(Faulty("release", OSError("still busy")), "2")
    assert (reward, info["outcome"]) == (1.0, Outcome.SCORED)
    assert "Faulty could not be released" in caplog.text


# What the driver does.


def test_an_episode_ended_from_outside_is_scored_and_truncated() -> None:
    async def episode() -> Step:
        env = env_with(refuse)
        await guarded_reset(env, options={"task": 0})
        await guarded_step(env, call("refuse") + "I think it is 2.")
        return await guarded_score(env, "deadline")

    observation, reward, terminated, truncated, info = asyncio.run(episode())
    assert (observation, reward, terminated, truncated) == ((), 1.0, False, True)
    assert (info["outcome"], info["stop_reason"]) == (Outcome.SCORED, "deadline")


def test_a_step_cut_by_its_deadline_can_still_be_scored() -> None:
    async def episode() -> Step:
        env = env_with(wait)
        await guarded_reset(env)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await guarded_step(env, call("wait", '{"seconds": 50}'))
        return await guarded_score(env, "deadline")

    *_, info = asyncio.run(episode())
    assert (info["outcome"], info["stop_reason"]) == (Outcome.SCORED, "deadline")


# What the caller does wrong.


def test_misuse_is_raised_and_not_counted_as_an_outcome() -> None:
    env = env_with()
    with pytest.raises(ResetNeeded, match="call reset"):
        env.step("2")
    env.reset(seed=0)
    env.step("2")
    with pytest.raises(ResetNeeded, match="call reset"):
        env.step("2")
    with pytest.raises(UsageError, match=r'no task "x" in .*; did you mean "train-0"'):
        env.reset(options={"task": "x"})
    for choice in (1, -1, 0.5, ["train-0"]):
        with pytest.raises(UsageError, match="an index below 1, got"):
            env.reset(options={"task": choice})
    env.reset()
    for action in (2, {"role": "user", "content": "2"}, {"content": "2", "tool_calls": ["x"]}):
        with pytest.raises(UsageError, match="an action is text or an assistant message, got"):
            env.step(action)  # type: ignore[arg-type]
    assert env.step("2")[1] == 1.0


def test_state_is_there_for_the_verifier_and_gone_afterwards() -> None:
    seen: list[State | None] = []

    def look(state: State) -> float:
        seen.append(state)
        return 1.0

    env = env_with(verifier=look)
    env.reset(seed=0)
    state = env.state
    env.step("2")
    assert seen == [state]
    assert isinstance(state, State)
    assert env.state is None
