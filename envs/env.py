"""`Env`: a Gymnasium environment for language-model agents, asynchronous at its core."""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from typing import Any

import gymnasium

from palestra.envs.outcome import guarded_reset, guarded_step, release
from palestra.envs.spaces import Action, Chat, Observation, Reply
from palestra.tools import event_loop
from palestra.types import Failure, Message, Outcome, Score

# observation, reward, terminated, truncated, info
Step = tuple[Observation, float, bool, bool, dict[str, Any]]


class Env(gymnasium.Env[Observation, Action]):
    """A conversation between a policy and a task.

    An observation is the tuple of messages added since the last action; an action is the
    assistant's message or its raw text. Subclasses write `areset`, `astep` and `ascore`, and
    `arelease` if an episode holds something. `reset` and `step` are Gymnasium's synchronous face
    of them: usable with or without a running event loop, and never raising for what goes wrong
    inside (see `outcome`).
    """

    observation_space: gymnasium.Space[Observation] = Chat()
    action_space: gymnasium.Space[Action] = Reply()

    # The outcome of a reset that went wrong; kept by `guarded_reset`.
    broken: dict[str, Any] | None = None

    def __init__(self) -> None:
        # Spaces carry a random generator: no two environments may share one.
        self.observation_space = copy.deepcopy(self.observation_space)
        self.action_space = copy.deepcopy(self.action_space)

    async def areset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode; subclasses call `await super().areset(seed=seed)` first.

        `options={"task": …}` picks the task; otherwise `self.np_random` does. `info` holds "task"
        and "tools", the schemas the policy may call.
        """
        super().reset(seed=seed)  # seeds np_random
        return (), {}

    async def astep(self, action: Action) -> Step:
        """Answer one reply. Ending the episode is enough: `guarded_step` has it scored.

        With `info["replaces"] = True` the observation is not added to the conversation but
        replaces all of it.
        """
        raise NotImplementedError(f"{type(self).__name__} must define astep")

    async def aplayed(self, messages: Sequence[Message], answer: str | None) -> None:
        """Take over a conversation that an agent program had instead of the steps since the reset.

        Called once, before `ascore`. `answer` is what the agent returned; None: its last reply is
        the answer. Environments that judge conversations override it.
        """
        raise Failure(
            "env",
            f"{type(self).__name__} cannot judge an episode that an agent program played: it must "
            "define aplayed",
        )

    async def ascore(self, stop_reason: str) -> Score:
        """The verdict on the episode; called once, at its end and before `arelease`."""
        raise NotImplementedError(f"{type(self).__name__} must define ascore")

    async def arelease(self) -> None:
        """Let go of what the episode holds: state, sandboxes. May be called more than once."""

    async def aclose(self) -> None:
        """Let go of everything. May be called more than once."""
        await self.arelease()

    async def finish(
        self,
        observation: Observation,
        info: dict[str, Any],
        *,
        terminated: bool,
        stop_reason: str,
        reward: float = 0.0,
    ) -> Step:
        """The last step of an episode: score, release, and report both in `info`."""
        score = await self.ascore(stop_reason)
        await release(self)
        assert score.reward is not None  # Score sets it
        info |= {"outcome": Outcome.SCORED, "score": score, "stop_reason": stop_reason}
        return observation, reward + score.reward, terminated, not terminated, info

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Gymnasium's reset."""
        return event_loop.run(guarded_reset(self, seed=seed, options=options))

    def step(self, action: Action) -> Step:
        """Gymnasium's step."""
        return event_loop.run(guarded_step(self, action))

    def close(self) -> None:
        """Gymnasium's close."""
        if not sys.is_finalizing():  # then no thread runs any more, and the process frees it all
            event_loop.run(self.aclose())
