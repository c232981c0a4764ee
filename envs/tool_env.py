"""`ToolEnv`: tasks, tools and a verifier make an environment."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from typing import Any

from gymnasium.error import ResetNeeded

from palestra.envs.env import Env, Step
from palestra.envs.outcome import UsageError
from palestra.envs.spaces import Action, Observation, copy_message, is_reply
from palestra.envs.tasks import TaskSet
from palestra.tools import State, Tool, ToolSource, parse_reply
from palestra.tools.sandboxes import Sandbox, SandboxSpec
from palestra.tools.threads import run_in_thread
from palestra.tools.toolbox import OpenToolbox, Toolbox
from palestra.tools.trouble import one_line
from palestra.types import Failure, Message, Score, Task, ToolResult
from palestra.verifiers import check_verifier, run_verifier

# What `setup` may ask for by parameter name.
_SETUP_PARAMETERS = ("sandbox", "task")


class ToolEnv(Env):
    """A policy works on a task with tools; a verifier judges where it ends.

    A reply without a tool call ends the episode (override `observe` for other rules), and so do a
    tool that submits the answer and reply number `max_turns`, as truncated. Calls of one reply run
    concurrently, except those that share the sandbox. The reward comes with the last step.

    `tasks` is anything `TaskSet.load` reads, with `split`, `task_seed` and `task_limit`. `state`
    makes the object that tools with a `State` parameter share during an episode. `sandbox` is what
    those with a `Sandbox` parameter share, the default one if None; the verifier may ask for it,
    too, by the name "sandbox". `setup(sandbox, task)`, which may be asynchronous, puts files into
    every sandbox before it is used; what it raises is our fault.

    Raises:
        ValueError: unreadable tasks, something that is no tool, two tools of one name, a verifier
            with parameters it cannot be given, a tool that needs another `state`, a sandbox that
            cannot be had here, or a number out of range.
    """

    def __init__(
        self,
        *,
        tasks: Any,
        verifier: Callable[..., Any],
        tools: Sequence[Tool | ToolSource] = (),
        split: str = "train",
        system_prompt: str | None = None,
        max_turns: int = 8,
        state: Callable[[], State] = State,
        sandbox: SandboxSpec | None = None,
        setup: Callable[..., Any] | None = None,
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
        if sandbox is not None and not isinstance(sandbox, SandboxSpec):
            raise ValueError(f"sandbox must be a SandboxSpec, got {sandbox!r:.80}")
        check_verifier(verifier)
        if setup is not None:
            _check_setup(setup)
        self.tasks = TaskSet.load(tasks, split=split, seed=task_seed, limit=task_limit)
        self._toolbox = Toolbox(
            tools,
            state=state,
            sandbox=sandbox,
            needs_sandbox=setup is not None or _asks_for(verifier, "sandbox"),
            max_calls=max_tool_calls_per_turn,
        )
        self.tools = self._toolbox.tools
        self.setup = setup
        self.verifier = verifier
        self.max_turns = max_turns
        self.max_tool_calls_per_turn = max_tool_calls_per_turn
        self.verifier_timeout_s = verifier_timeout_s
        self._system = (
            () if system_prompt is None else ({"role": "system", "content": system_prompt},)
        )
        self._turns_left = 0
        self._opened: OpenToolbox | None = None
        self._submitted: str | None = None
        self.task: Task | None = None
        self.messages: list[Message] = []  # the conversation so far

    async def areset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begin an episode on `options["task"]` (a `Task`, its id or index) or on any task."""
        await super().areset(seed=seed, options=options)
        await self.arelease()  # of an episode that was left
        self.task = task = self._pick((options or {}).get("task"))
        prepare = None if self.setup is None else _preparing(self.setup, task)
        self._opened = await self._toolbox.open(task, prepare)
        self._submitted = None
        prompt = (*self._system, *self.task.messages)
        self.messages = [copy_message(message) for message in prompt]
        self._turns_left = self.max_turns
        # The policy gets its own copies: neither the task nor the next episode may change with
        # what it does to them.
        return tuple(map(copy_message, prompt)), {
            "task": self.task,
            "tools": copy.deepcopy(self._opened.schemas),
        }

    async def astep(self, action: Action) -> Step:
        """Run the reply's tool calls; `info["tool_results"]` holds their `ToolResult`s."""
        if self._turns_left < 1 or self._opened is None:
            raise ResetNeeded("the episode has ended or never began: call reset() first")
        reply = _read(action)
        self._turns_left -= 1
        self.messages.append(reply)
        results = await self._opened.run(reply.get("tool_calls") or ())
        info: dict[str, Any] = {"tool_results": results}
        if (submitted := self._opened.submitted(results)) is not None:
            self._submitted = submitted.content or None
            return await self.finish((), info, terminated=True, stop_reason="answer")
        observation = await self.observe(reply, results)
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

        Override it for episodes that end otherwise (a goal reached, as `self.state` tells) or go on
        without a call (a simulated user who answers).
        """
        return tuple(result.message() for result in results) or None

    async def aplayed(self, messages: Sequence[Message], answer: str | None) -> None:
        """Have the verifier judge this conversation, whatever tools the agent worked with."""
        self.messages = [copy_message(message) for message in messages]
        self._submitted = answer

    async def ascore(self, stop_reason: str) -> Score:
        """The verifier's verdict on the conversation, or on the answer that was submitted."""
        assert self.task is not None
        opened = self._opened
        self._turns_left = 0
        return await run_verifier(
            self.verifier,
            task=self.task,
            messages=self.messages,
            reply=self._submitted,
            state=self.state,
            sandbox=self.sandbox,
            fresh_sandbox=None if opened is None else opened.new_sandbox,
            stop_reason=stop_reason,
            timeout_s=self.verifier_timeout_s,
        )

    @property
    def state(self) -> State | None:
        """What the episode's tools share; None outside of an episode."""
        return None if self._opened is None else self._opened.state

    @property
    def sandbox(self) -> Sandbox | None:
        """The episode's sandbox; None where nothing needs one, and outside of an episode."""
        return None if self._opened is None else self._opened.sandbox

    async def arelease(self) -> None:
        """Drop the episode's state and sandbox; it takes a reset to go on."""
        self._turns_left = 0
        if self._opened is not None:
            opened, self._opened = self._opened, None
            await opened.aclose()

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


def _asks_for(verifier: Callable[..., Any], name: str) -> bool:
    return name in inspect.signature(verifier).parameters


def _check_setup(setup: Callable[..., Any]) -> None:
    name = getattr(setup, "__name__", repr(setup))
    if not callable(setup):
        raise ValueError(f"setup must be a function, got {name}")
    for parameter in inspect.signature(setup).parameters.values():
        known = parameter.name in _SETUP_PARAMETERS
        if not known and parameter.default is inspect.Parameter.empty:
            raise ValueError(
                f'setup {name} asks for "{parameter.name}", but it can only be given '
                f"{', '.join(_SETUP_PARAMETERS)}"
            )


def _preparing(setup: Callable[..., Any], task: Task) -> Callable[[Sandbox], Any]:
    wanted = inspect.signature(setup).parameters

    async def prepare(sandbox: Sandbox) -> None:
        available = {"sandbox": sandbox, "task": task}
        given = {name: available[name] for name in _SETUP_PARAMETERS if name in wanted}
        try:
            if inspect.iscoroutinefunction(setup):
                await setup(**given)
            else:
                await run_in_thread(lambda: setup(**given))
        except Failure:
            raise
        except (Exception, SystemExit) as error:
            raise Failure("setup", one_line(error)) from error

    return prepare


def _read(action: Action) -> Message:
    if isinstance(action, str):
        return parse_reply(action)
    if isinstance(action, dict) and is_reply(reply := {"role": "assistant", **action}):
        return reply
    raise UsageError(f"an action is text or an assistant message, got {action!r:.80}")
