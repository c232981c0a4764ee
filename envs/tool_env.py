"""`ToolEnv`: tasks, tools and a verifier make an environment."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gymnasium.error import ResetNeeded

from palestra.envs.env import Env, Step
from palestra.envs.outcome import UsageError
from palestra.envs.spaces import Action, Observation, copy_message, is_reply
from palestra.envs.tasks import TaskSet
from palestra.tools import State, Tool, parse_reply, run_call
from palestra.types import Message, Score, Task, ToolResult
from palestra.verifiers import check_verifier, run_verifier


class ToolEnv(Env):
    """A policy works on a task with tools; a verifier judges where it ends.

    A reply without a tool call ends the episode (override `observe` for other rules), and so does
    reply number `max_turns`, as truncated. Calls of one reply run concurrently. The reward comes
    with the last step.

    `tasks` is anything `TaskSet.load` reads, with `split`, `task_seed` and `task_limit`. `state`
    makes the object that tools with a `State` parameter share during an episode.

    Raises:
        ValueError: unreadable tasks, something that is no tool, two tools of one name, a verifier
            with parameters it cannot be given, a tool that needs another `state`, or a number out
            of range.
    """

    def __init__(
        self,
        *,
        tasks: Any,
        verifier: Callable[..., Any],
        tools: Sequence[Tool] = (),
        split: str = "train",
        system_prompt: str | None = None,
        max_turns: int = 8,
        state: Callable[[], State] = State,
        task_seed: int = 0,
        task_limit: int | None = None,
        max_tool_calls_per_turn: int = 16,
        verifier_timeout_s: float = 30.0,
    ) -> None:
        super().__init__()
        for name, number in {
            "max_turns": max_turns,
            "max_tool_calls_per_turn": max_tool_calls_per_turn,
        }.items():
            if number < 1:
                raise ValueError(f"{name} must be at least 1, got {number}")
        if not verifier_timeout_s > 0:
            raise ValueError(f"verifier_timeout_s must be positive, got {verifier_timeout_s}")
        check_verifier(verifier)
        self.tasks = TaskSet.load(tasks, split=split, seed=task_seed, limit=task_limit)
        self.tools = _by_name(tools)
        _check_state(self.tools, state)
        self.verifier = verifier
        self.max_turns = max_turns
        self.max_tool_calls_per_turn = max_tool_calls_per_turn
        self.verifier_timeout_s = verifier_timeout_s
        self._system = (
            () if system_prompt is None else ({"role": "system", "content": system_prompt},)
        )
        self._make_state = state
        self._schemas_json = json.dumps([tool.schema() for tool in self.tools.values()])
        self._turns_left = 0
        self.task: Task | None = None
        self.state: State | None = None
        self.messages: list[Message] = []  # the conversation so far

    async def areset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode on `options["task"]` (a `Task`, its id or index) or on any task."""
        await super().areset(seed=seed, options=options)
        self.task = self._pick((options or {}).get("task"))
        self.state = self._make_state()
        prompt = (*self._system, *self.task.messages)
        self.messages = [copy_message(message) for message in prompt]
        self._turns_left = self.max_turns
        # The policy gets its own copies: neither the task nor the next episode may change with
        # what it does to them.
        tools = tuple(json.loads(self._schemas_json))
        return tuple(map(copy_message, prompt)), {"task": self.task, "tools": tools}

    async def astep(self, action: Action) -> Step:
        """Run the reply's tool calls; `info["tool_results"]` holds their `ToolResult`s."""
        if self._turns_left < 1:
            raise ResetNeeded("the episode has ended or never began: call reset() first")
        reply = _read(action)
        self._turns_left -= 1
        self.messages.append(reply)
        results = await self._run_calls(reply.get("tool_calls") or ())
        observation = await self.observe(reply, results)
        info: dict[str, Any] = {"tool_results": results}
        if observation is None:
            stop_reason = "env" if results else "answer"
            return await self.finish((), info, terminated=True, stop_reason=stop_reason)
        observation = tuple(observation)
        self.messages += map(copy_message, observation)
        if self._turns_left == 0:
            return await self.finish(observation, info, terminated=False, stop_reason="max_turns")
        return observation, 0.0, False, False, info

    async def observe(self, reply: Message, results: tuple[ToolResult, ...]) -> Observation | None:
        """What the environment says to a reply; None ends the episode.

        Override it for episodes that end otherwise (a `submit` tool that sets a flag in
        `self.state`) or go on without a call (a simulated user who answers).
        """
        return tuple(result.message() for result in results) or None

    async def ascore(self, stop_reason: str) -> Score:
        """The verifier's verdict on the conversation."""
        assert self.task is not None
        self._turns_left = 0
        return await run_verifier(
            self.verifier,
            task=self.task,
            messages=self.messages,
            state=self.state,
            stop_reason=stop_reason,
            timeout_s=self.verifier_timeout_s,
        )

    async def arelease(self) -> None:
        """Drop the episode's state; it takes a reset to go on."""
        self.state = None
        self._turns_left = 0

    def _pick(self, choice: object) -> Task:
        if choice is None:
            return self.tasks.sample(self.np_random)
        if isinstance(choice, Task):
            return choice
        if isinstance(choice, str):
            try:
                return self.tasks.by_id(choice)
            except ValueError as error:
                raise UsageError(str(error)) from None
        if isinstance(choice, int) and 0 <= choice < len(self.tasks):
            return self.tasks[choice]
        raise UsageError(
            f'options["task"] must be a Task, an id or an index below {len(self.tasks)}, '
            f"got {choice!r}"
        )

    async def _run_calls(self, calls: Sequence[dict[str, Any]]) -> tuple[ToolResult, ...]:
        allowed, refused = (
            calls[: self.max_tool_calls_per_turn],
            calls[self.max_tool_calls_per_turn :],
        )
        hidden: dict[type, Any] = {State: self.state}
        if len(allowed) <= 1:  # the usual case needs no asyncio task of its own
            results = [await run_call(call, self.tools, hidden) for call in allowed]
        else:
            try:
                async with asyncio.TaskGroup() as group:
                    running = [
                        group.create_task(run_call(call, self.tools, hidden)) for call in allowed
                    ]
            except BaseExceptionGroup as errors:
                first = errors.exceptions[0]
                raise first from first.__cause__
            results = [task.result() for task in running]
        return (*results, *(self._refuse(call) for call in refused))

    def _refuse(self, call: dict[str, Any]) -> ToolResult:
        function = call.get("function")
        return ToolResult(
            call_id=str(call.get("id", "")),
            name=str(function.get("name", "")) if isinstance(function, dict) else "",
            content=f"not run: at most {self.max_tool_calls_per_turn} tool calls in one reply",
            error="too_many_calls",
        )


def _by_name(tools: Sequence[object]) -> dict[str, Tool]:
    found: dict[str, Tool] = {}
    for tool in tools:
        if not isinstance(tool, Tool):
            name = getattr(tool, "__name__", repr(tool))
            raise ValueError(f"{name} is not a tool: write @tool above its definition")
        if tool.name in found:
            raise ValueError(f'two tools are called "{tool.name}": rename one with @tool(name=…)')
        found[tool.name] = tool
    return found


def _check_state(tools: Mapping[str, Tool], state: Callable[[], State]) -> None:
    """A tool that is never given the state it needs would fail every episode."""
    if not isinstance(state, type):
        return  # a function: what it makes is known only in an episode
    for tool in tools.values():
        for wanted in tool.hidden.values():
            if issubclass(wanted, State) and not issubclass(state, wanted):
                raise ValueError(
                    f'tool "{tool.name}" needs a {wanted.__name__}: pass state={wanted.__name__}'
                )


def _read(action: Action) -> Message:
    if isinstance(action, str):
        return parse_reply(action)
    if isinstance(action, dict) and is_reply(reply := {"role": "assistant", **action}):
        return reply
    raise UsageError(f"an action is text or an assistant message, got {action!r:.80}")
