"""`AgentEpisode`: an episode that an agent program plays, through the gateway."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace
from typing import Any

from palestra.rollout.deadline import DeadlineExceeded, cancel, within
from palestra.rollout.episode import EpisodeInProgress, turn_seed
from palestra.rollout.serving.agents import Agent, AgentTask, is_policys_fault
from palestra.rollout.serving.gateway import Gateway
from palestra.rollout.serving.gateway_session import GatewaySession
from palestra.tools.trouble import one_line
from palestra.types import Failure


@dataclass(kw_only=True, slots=True)
class AgentEpisode(EpisodeInProgress):
    """The counterpart of `EpisodeInProgress`: the agent runs its tools, the environment judges.

    The environment is reset for the task and given the conversation at the end. The agent's own
    time counts towards `limits.episode_timeout_s`, that of generations does not. An agent that
    raises has failed (cause "agent"), unless the policy or a limit made it do so (see `agents`):
    then the episode is scored as it stands.
    """

    agent: Agent
    gateway: Gateway

    async def _turn(self) -> dict[str, Any]:
        """All turns: the agent runs, then the environment judges."""
        key, session = self.gateway.open(
            sampling=self.sampling,
            limits=self.limits,
            seed_of=self._seed_of,
            lane=self.lane,
        )
        started = time.perf_counter()
        try:
            answer, stop_reason = await self._run(self._task_for(key), session)
        finally:
            self.gateway.close(key)
            self.turns = list(session.turns)
            if session.turns:  # what the policy really saw
                self.prompt, self.tools = session.prompt, session.tools
            self.seconds["generate"] += session.generating_s
            self.seconds["agent"] += time.perf_counter() - started - session.generating_s
        if not self.turns:
            raise _without_turns(session)
        played = self.env.aplayed(session.conversation, answer)
        try:
            await within(self.limits.step_timeout_s, played, cause="env")
        except DeadlineExceeded:
            raise Failure("env", "it did not take over the conversation in time") from None
        info = await self._end(stop_reason)
        if stop_reason == "answer":
            self.turns[-1] = replace(self.turns[-1], terminated=True, truncated=False)
        return info

    def _seed_of(self, number: int) -> int:
        return turn_seed(self.seed, self.task.id, self.sample, self.attempt, number)

    def _task_for(self, key: str) -> AgentTask:
        url = f"{self.gateway.url}/episodes/{key}"
        return AgentTask(
            id=self.task.id,
            messages=self.prompt,
            tools=self.tools,
            base_url=f"{url}/v1",
            anthropic_base_url=url,
            api_key=key,
        )

    async def _run(self, task: AgentTask, session: GatewaySession) -> tuple[str | None, str]:
        """The agent's answer, and why the episode ended.

        Raises:
            Failure: the agent or the engine is at fault.
        """
        agent: asyncio.Task[Any] = asyncio.create_task(_call(self.agent, task))
        try:
            in_time = await self._wait_for(agent, session)
        except asyncio.CancelledError:
            await cancel(agent)
            raise
        if not in_time:
            if not await cancel(agent):
                raise Failure("agent", "it ignored its cancellation")
            if session.trouble is not None:
                raise session.trouble
            return None, "deadline"
        if agent.cancelled():
            raise Failure("agent", "it was cancelled from within")
        if session.trouble is not None:
            raise session.trouble
        if (error := agent.exception()) is not None:
            return None, _blame(error, session)
        answer = agent.result()
        if answer is not None and not isinstance(answer, str):
            raise Failure("agent", f"it must return text or None, got a {type(answer).__name__}")
        return answer, session.stop_reason

    async def _wait_for(self, agent: asyncio.Task[Any], session: GatewaySession) -> bool:
        """Whether the agent ends before it has used up the time that is its own."""
        started = time.perf_counter()
        while True:
            own_s = time.perf_counter() - started - session.generating_s
            left_s = self.limits.episode_timeout_s - own_s
            if left_s <= 0:
                return False
            # While a reply is generated the clock stands still: look again later.
            await asyncio.wait((agent,), timeout=max(left_s, 0.05))
            if agent.done():
                return True


async def _call(agent: Agent, task: AgentTask) -> Any:
    try:
        return await agent(task)
    except SystemExit as end:  # would take the whole process along
        raise Failure("agent", f"it called sys.exit({end.code!r})") from None


def _blame(error: BaseException, session: GatewaySession) -> str:
    """The stop reason, if the policy made the agent raise.

    Raises:
        Failure: the agent's fault.
    """
    if session.stop_reason != "answer":
        return session.stop_reason  # a limit: it could not go on
    if is_policys_fault(error) or (session.turns and session.turns[-1].tool_results):
        return "agent"  # the call that it was to run is wrong
    if isinstance(error, Failure):
        raise error
    raise Failure("agent", one_line(error)) from error


def _without_turns(session: GatewaySession) -> Failure:
    if session.stop_reason == "context":  # a prompt that never fitted is not the policy's doing
        return Failure("prompt_too_long", str(session.refusal))
    if session.refusal is not None:
        return Failure("agent", f"all that it asked was refused: {session.refusal}")
    return Failure("agent", "it asked the policy nothing: does it use the base_url that it gets?")
