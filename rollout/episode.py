"""One episode, from the reset to the verdict.

Every wait has a deadline, and whatever happens ends in one of three outcomes (DESIGN §2).
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import sys
import time
from collections import defaultdict
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

from palestra.envs.env import Env
from palestra.envs.outcome import (
    UsageError,
    guarded_reset,
    guarded_score,
    guarded_step,
    release,
)
from palestra.rollout.deadline import DeadlineExceeded, within
from palestra.rollout.policy import ContextFull, Policy
from palestra.types import (
    AGENT,
    Episode,
    Failure,
    Message,
    Outcome,
    Sampling,
    Task,
    ToolResult,
    ToolSchema,
    Turn,
)

_log = logging.getLogger(__name__)

# The cause of an episode that was cut off because no more were wanted.
CANCELLED = "cancelled"


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """The bounds of an episode.

    What the policy can exhaust (turns, tokens, the environment's time) ends the episode, which is
    scored. An engine that does not answer in `generation_timeout_s` has failed; its time counts
    towards no other limit, so that a slow engine never costs an answer its score. A turn thus ends
    within `generation_timeout_s` and `step_timeout_s`, not counting the wait for a slot; tools
    have deadlines of their own.
    """

    max_turns: int = 16
    max_total_tokens: int | None = None  # sampled in all turns; Sampling.max_tokens bounds each
    generation_timeout_s: float = 600.0
    step_timeout_s: float = 120.0  # also for the reset and for the verdict
    episode_timeout_s: float = 1800.0  # all steps together

    def __post_init__(self) -> None:
        for name in ("max_turns", "max_total_tokens"):
            if (number := getattr(self, name)) is not None and number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}")
        for name in ("generation_timeout_s", "step_timeout_s", "episode_timeout_s"):
            if not (number := getattr(self, name)) > 0:
                raise ValueError(f"{name} must be positive, got {number}")


DEFAULT_LIMITS = Limits()
DEFAULT_SAMPLING = Sampling()


async def run_episode(
    env: Env,
    policy: Policy,
    task: Task,
    *,
    limits: Limits = DEFAULT_LIMITS,
    sampling: Sampling = DEFAULT_SAMPLING,
    seed: int = 0,
    sample: int = 0,
    attempt: int = 0,
) -> Episode:
    """One attempt at one task. Whatever goes wrong is in the episode's outcome, never raised.

    The environment is seeded by (seed, task), so that all samples of a task begin alike; the
    policy's sampling by (seed, task, sample, attempt, turn).
    """
    return await EpisodeInProgress(
        env=env,
        policy=policy,
        task=task,
        limits=limits,
        sampling=sampling,
        seed=seed,
        sample=sample,
        attempt=attempt,
    ).play()


@dataclass(kw_only=True, slots=True)
class EpisodeInProgress:
    """An episode from `play` to its end; `lane` is entered for every generation.

    Its steps return the environment's `info`; with an "outcome" in it the episode is over.
    """

    env: Env
    policy: Policy
    task: Task
    limits: Limits
    sampling: Sampling
    seed: int
    sample: int
    attempt: int
    lane: AbstractAsyncContextManager[None] = field(default_factory=nullcontext)
    prompt: tuple[Message, ...] = ()
    tools: tuple[ToolSchema, ...] = ()
    messages: list[Message] = field(default_factory=list)  # the conversation so far
    turns: list[Turn] = field(default_factory=list)
    tokens: int = 0  # sampled so far
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))  # by phase

    async def play(self) -> Episode:
        """Play to the end. Being cancelled ends the generation or step in progress."""
        try:
            info = await self._reset()
            while "outcome" not in info:
                info = await self._turn()
        except Failure as failure:
            info = await self._fail(failure)
        except Exception as error:  # an environment that breaks its contract
            _log.exception("episode of %s failed", env_id(self.env))
            info = await self._fail(Failure("env", f"{type(error).__name__}: {error}"))
        return self._episode(info)

    async def cut_off(self) -> Episode:
        """The episode as far as it came before `play` was cancelled: `failed`, never scored."""
        return self._episode(await self._fail(Failure(CANCELLED, "no more episodes were wanted")))

    async def _reset(self) -> dict[str, Any]:
        seed = _derive_seed(self.seed, self.task.id)
        reset = guarded_reset(self.env, seed=seed, options={"task": self.task})
        started = time.perf_counter()
        try:
            observation, info = await within(self.limits.step_timeout_s, reset, cause="env")
        except DeadlineExceeded:
            raise Failure("env", f"no reset in {self.limits.step_timeout_s:g} s") from None
        finally:
            self._spent("reset", started)
        self.prompt = tuple(observation)
        self.messages = list(self.prompt)
        self.tools = tuple(info.get("tools", ()))
        return info

    async def _turn(self) -> dict[str, Any]:
        tokens_left = (self.limits.max_total_tokens or sys.maxsize) - self.tokens
        if tokens_left < 1:
            return await self._end("token_budget")
        if len(self.turns) == self.limits.max_turns:
            return await self._end("max_turns")
        try:
            async with self.lane:
                started = time.perf_counter()
                turn = await self._respond(tokens_left)
                turn = replace(turn, timings={"generate": self._spent("generate", started)})
        except ContextFull as full:
            if not self.turns:  # a prompt that never fitted is not the policy's doing
                raise Failure("prompt_too_long", str(full)) from None
            return await self._end("context")
        self.tokens += len(turn.completion_ids)
        if turn.stop_reason == "length":
            self.turns.append(replace(turn, tool_results=_cut_calls(turn.message)))
            return await self._end(self._what_cut(turn, tokens_left))
        self.turns.append(turn)
        return await self._step(turn)

    async def _respond(self, tokens_left: int) -> Turn:
        sampling = replace(
            self.sampling,
            max_tokens=min(self.sampling.max_tokens, tokens_left),
            seed=turn_seed(self.seed, self.task.id, self.sample, self.attempt, len(self.turns)),
        )
        respond = self.policy.respond(
            tuple(self.messages),
            self.tools,
            history=tuple(self.turns),
            task=self.task,
            sampling=sampling,
        )
        timeout_s = self.limits.generation_timeout_s
        try:
            turn = await within(timeout_s, respond, cause="engine")
            if not isinstance(turn, Turn):
                raise TypeError(f"a policy responds with a Turn, got a {type(turn).__name__}")
        except DeadlineExceeded:
            raise Failure("engine", f"no reply in {timeout_s:g} s") from None
        except (Failure, ContextFull):
            raise
        except Exception as error:
            raise Failure("policy", f"{type(error).__name__}: {error}") from error
        return turn

    def _what_cut(self, turn: Turn, tokens_left: int) -> str:
        """Which limit cut a reply short; a policy without token ids does not tell."""
        sampled = len(turn.completion_ids)
        if 0 < sampled < min(self.sampling.max_tokens, tokens_left):
            return "context"
        return "token_budget" if 0 < sampled < self.sampling.max_tokens else "length"

    async def _step(self, turn: Turn) -> dict[str, Any]:
        """The environment's answer to the last turn."""
        timeout_s = min(
            self.limits.step_timeout_s, self.limits.episode_timeout_s - self.seconds["step"]
        )
        step = guarded_step(self.env, turn.message)
        started = time.perf_counter()
        try:
            observation, reward, terminated, truncated, info = await within(
                timeout_s, step, cause="env"
            )
        except DeadlineExceeded as late:
            if late.stuck:
                raise Failure("env", "a step ignored its cancellation") from None
            return await self._end("deadline")
        except UsageError as error:  # the reply is not even an assistant message
            raise Failure("policy", str(error)) from error
        finally:
            seconds = self._spent("step", started)
        self.turns[-1] = replace(
            turn,
            observation=observation,
            reward=reward,
            terminated=terminated,
            truncated=truncated,
            replaces=info.get("replaces", False),
            tool_results=info.get("tool_results", ()),
            timings={**turn.timings, "step": seconds},
        )
        if self.turns[-1].replaces:
            self.messages = list(observation)
        else:
            self.messages += (turn.message, *observation)
        return info

    async def _end(self, stop_reason: str) -> dict[str, Any]:
        """Have the episode scored for a reason outside the environment."""
        timeout_s = self.limits.step_timeout_s
        score = guarded_score(self.env, stop_reason)
        started = time.perf_counter()
        try:
            _, reward, _, truncated, info = await within(timeout_s, score, cause="verifier")
        except DeadlineExceeded:
            raise Failure("verifier", f"no verdict in {timeout_s:g} s") from None
        finally:
            self._spent("score", started)
        last = self.turns[-1]
        self.turns[-1] = replace(last, reward=last.reward + reward, truncated=truncated)
        return info

    async def _fail(self, failure: Failure) -> dict[str, Any]:
        """Release what the environment holds: it knows nothing of this failure."""
        try:
            await within(self.limits.step_timeout_s, release(self.env), cause="env")
        except (DeadlineExceeded, Failure) as trouble:
            _log.warning("%s could not be released: %s", env_id(self.env), trouble)
        return {
            "outcome": Outcome.FAILED,
            "stop_reason": "failed",
            "cause": failure.cause,
            "detail": failure.detail,
        }

    def _episode(self, info: dict[str, Any]) -> Episode:
        scored = info["outcome"] == Outcome.SCORED
        attempt = f".{self.attempt}" if self.attempt else ""
        return Episode(
            id=f"{self.task.id}/{self.sample}{attempt}",
            env_id=env_id(self.env),
            task=self.task,
            sample=self.sample,
            attempt=self.attempt,
            prompt=self.prompt,
            tools=self.tools,
            turns=tuple(self.turns),
            outcome=Outcome(info["outcome"]),
            stop_reason=info["stop_reason"],
            cause=info.get("cause"),
            detail=info.get("detail", ""),
            scores={AGENT: info["score"]} if scored else {},
            rewards={AGENT: sum(turn.reward for turn in self.turns)} if scored else {},
            timings=dict(self.seconds),
        )

    def _spent(self, phase: str, started: float) -> float:
        seconds = time.perf_counter() - started
        self.seconds[phase] += seconds
        return seconds


def _cut_calls(message: Message) -> tuple[ToolResult, ...]:
    return tuple(
        ToolResult(call_id=call["id"], name="", content="the call was cut off", error="cut")
        for call in message.get("tool_calls") or ()
        if call.get("error") == "cut"
    )


def turn_seed(seed: int, task_id: str, sample: int, attempt: int, turn: int) -> int:
    """With what a turn is sampled."""
    return _derive_seed(seed, task_id, sample, attempt, turn)


def is_final(episode: Episode, max_attempts: int) -> bool:
    """Whether its sample is done with: no further attempt is made."""
    return (
        episode.outcome is Outcome.SCORED
        or episode.attempt >= max_attempts - 1
        or episode.cause == CANCELLED
    )


def count_rewrites(episode: Episode) -> int:
    """How many turns could not extend the one before, because the template rewrote what was said.

    Each begins a new branch, whose prompt an engine computes anew. A conversation that the
    environment replaced (compaction) also branches, but is none of these.
    """
    return sum(
        bool(turn.prompt_ids) and turn.parent is None and not before.replaces
        for before, turn in itertools.pairwise(episode.turns)
    )


def _derive_seed(*parts: int | str) -> int:
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest) >> 1  # engines take signed 64-bit integers


def env_id(env: Env) -> str:
    return type(env).__name__ if env.spec is None else env.spec.id
