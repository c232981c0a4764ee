"""ToolEnv: conversations, tools, turns, and the same seed giving the same episode."""

from __future__ import annotations

import asyncio
import copy
import json
import time
from typing import Any

import pytest

from palestra.envs import Env, Step, ToolEnv
from palestra.envs.spaces import Observation
from palestra.tools import State, tool
from palestra.types import Message, Outcome, ToolResult
from palestra.verifiers import number

ROWS = [{"prompt": f"{i}+{i}", "answer": str(2 * i)} for i in range(20)]


@tool
def add(a: int, b: int) -> int:
    """Add two integers."""
    return a + b


class Notes(State):
    """What the policy wrote down."""

    def __init__(self) -> None:
        self.lines: list[str] = []


@tool
def note(text: str, state: Notes) -> int:
    """Write a line; returns how many there are."""
    state.lines.append(text)
    return len(state.lines)


def call(name: str, **arguments: Any) -> str:
    body = json.dumps({"name": name, "arguments": arguments})
    return f"<tool_call>{body}</tool_call>"


def env_with(*tools: Any, **options: Any) -> ToolEnv:
    return ToolEnv(**{"tasks": ROWS, "tools": tools, "verifier": number, **options})


def test_an_episode_goes_from_prompt_over_tool_to_reward() -> None:
    env = env_with(add, system_prompt="Be brief.")
    observation, info = env.reset(options={"task": "train-3"})
    assert observation == (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "3+3"},
    )
    assert info == {"task": env.tasks[3], "tools": (add.schema(),)}
    observation, reward, terminated, truncated, info = env.step(call("add", a=3, b=3))
    result = ToolResult(call_id="call_0", name="add", content="6")
    assert observation == (result.message(),)
    assert (reward, terminated, truncated) == (0.0, False, False)
    assert info == {"tool_results": (result,)}
    observation, reward, terminated, truncated, info = env.step("It is 6.")
    assert (observation, reward, terminated, truncated) == ((), 1.0, True, False)
    assert (info["outcome"], info["stop_reason"]) == (Outcome.SCORED, "answer")
    assert info["score"].value == 1.0
    assert [message["role"] for message in env.messages] == [
        "system",
        "user",
        "assistant",
        "tool",
        "assistant",
    ]


def test_actions_may_be_messages() -> None:
    env = env_with(add)
    env.reset(options={"task": 1})
    function = {"name": "add", "arguments": '{"a": 1, "b": 1}'}
    message = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "x7", "type": "function", "function": function}],
    }
    before = copy.deepcopy(message)
    (answer,) = env.step(message)[0]
    assert (answer["tool_call_id"], answer["content"]) == ("x7", "2")
    assert message == before
    assert (
        env.step({"content": [{"type": "text", "text": "so "}, {"type": "text", "text": "2"}]})[1]
        == 1.0
    )


def test_options_pick_the_task_by_object_id_or_index() -> None:
    env = env_with()
    task = env.tasks[5]
    for choice in (task, task.id, 5):
        assert env.reset(options={"task": choice})[1]["task"] is task
    other = ToolEnv(tasks=[{"prompt": "?", "answer": "1"}], verifier=number).tasks[0]
    assert env.reset(options={"task": other})[1]["task"] is other


def episode(env: Env, seed: int) -> list[Any]:
    steps: list[Any] = [env.reset(seed=seed)]
    actions = iter([call("add", a=1, b=2) + call("note", text="x"), call("add", a="?"), "4"])
    while len(steps) == 1 or not (steps[-1][2] or steps[-1][3]):
        steps.append(env.step(next(actions)))
    return steps


def test_the_same_seed_gives_the_same_episode() -> None:
    one, other = (env_with(add, note, state=Notes) for _ in range(2))
    assert episode(one, 3) == episode(other, 3)
    assert episode(one, 3) == episode(one, 3)
    assert len({episode(one, seed)[0][1]["task"].id for seed in range(12)}) > 3


def test_what_the_policy_does_to_an_observation_stays_with_it() -> None:
    env = env_with(add)
    first = env.reset(options={"task": 0})
    expected = copy.deepcopy(first)
    first[0][0]["content"] = "changed"
    first[1]["tools"][0]["function"]["name"] = "changed"
    assert env.messages[0]["content"] == "0+0"
    assert env.reset(options={"task": 0}) == expected


def test_calls_of_one_turn_run_at_the_same_time_and_answer_in_order() -> None:
    @tool
    async def nap(seconds: float) -> float:
        """Sleep."""
        await asyncio.sleep(seconds)
        return seconds

    env = env_with(nap)
    env.reset()
    started = time.perf_counter()
    observation = env.step("".join(call("nap", seconds=s) for s in (0.3, 0.1, 0.2)))[0]
    assert time.perf_counter() - started < 0.5
    assert [message["content"] for message in observation] == ["0.3", "0.1", "0.2"]
    assert [message["tool_call_id"] for message in observation] == ["call_0", "call_1", "call_2"]


def test_tools_share_the_state_of_one_episode_only() -> None:
    env = env_with(note, state=Notes)
    for _ in range(2):
        env.reset()
        assert env.step(call("note", text="a"))[0][0]["content"] == "1"
        assert env.step(call("note", text="b"))[0][0]["content"] == "2"


def test_the_verifier_sees_what_it_asks_for() -> None:
    seen: dict[str, Any] = {}

    async def look(
        task: Any, answer: Any, reply: str, messages: Any, state: Notes, stop_reason: str
    ) -> float:
        seen.update(locals())
        return 0.5

    env = env_with(note, verifier=look, state=Notes)
    env.reset(options={"task": 2})
    env.step(call("note", text="a"))
    assert env.step("<think>2+2</think>four")[1] == 0.5
    assert (seen["task"].id, seen["answer"], seen["reply"]) == ("train-2", "4", "four")
    assert (seen["state"].lines, seen["stop_reason"]) == (["a"], "answer")
    roles = [message["role"] for message in seen["messages"]]
    assert roles == ["user", "assistant", "tool", "assistant"]


def test_the_last_turn_is_truncated_after_its_tools_ran() -> None:
    env = env_with(note, state=Notes, max_turns=1, verifier=lambda state: len(state.lines) == 1)
    env.reset()
    observation, reward, terminated, truncated, info = env.step(call("note", text="a"))
    assert (reward, terminated, truncated) == (1.0, False, True)
    assert info["stop_reason"] == "max_turns"
    assert observation[0]["content"] == "1"


def test_an_answer_on_the_last_turn_terminates() -> None:
    env = env_with(max_turns=1)
    env.reset(options={"task": 1})
    assert env.step("2")[1:4] == (1.0, True, False)


class Submit(ToolEnv):
    """Ends when a note is written; a plain reply is answered by a user."""

    async def observe(self, reply: Message, results: tuple[ToolResult, ...]) -> Observation | None:
        if results:
            return None
        return ({"role": "user", "content": "Go on."},)


def test_a_subclass_decides_what_ends_an_episode() -> None:
    env = Submit(tasks=ROWS, tools=[note], verifier=lambda state: len(state.lines), state=Notes)
    env.reset()
    assert env.step("hm")[:4] == (({"role": "user", "content": "Go on."},), 0.0, False, False)
    _, reward, terminated, _, info = env.step(call("note", text="a"))
    assert (reward, terminated, info["stop_reason"]) == (1.0, True, "env")
    assert [result.content for result in info["tool_results"]] == ["1"]


def test_a_verifiers_reward_may_differ_from_its_value() -> None:
    from palestra.types import Score

    def pitfall() -> Score:
        return Score(value=0.0, reward=-1.0)

    env = env_with(verifier=pitfall)
    env.reset()
    assert env.step("x")[1] == -1.0


def nothing(reply: str, mood: str) -> float:
    return 1.0


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"tools": [len]}, "len is not a tool: write @tool above its definition"),
        ({"tools": [add, add]}, 'two tools are called "add"'),
        ({"max_turns": 0}, "max_turns must be at least 1, got 0"),
        ({"max_tool_calls_per_turn": -1}, "max_tool_calls_per_turn must be at least 1, got -1"),
        ({"verifier_timeout_s": 0}, "verifier_timeout_s must be positive, got 0"),
        ({"tools": [note]}, 'tool "note" needs a Notes: pass state=Notes'),
        ({"task_limit": 0}, "limit must be at least 1, got 0"),
        ({"tasks": []}, "no tasks"),
        ({"tasks": {"test": ROWS}}, 'no split "train"'),
        ({"verifier": nothing}, "mood"),
    ],
)
def test_an_environment_that_cannot_work_is_refused_in_one_line(
    options: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint) as error:
        ToolEnv(**{"tasks": ROWS, "verifier": number, **options})
    assert "\n" not in str(error.value)


def test_splits_seeds_and_limits_reach_the_tasks() -> None:
    def made(split: str, seed: int) -> Any:
        for i in range(9):
            yield {"prompt": f"{split} {seed} {i}", "answer": "1"}

    env = env_with(tasks=made, split="test", task_seed=4, task_limit=2)
    assert [task.messages[0]["content"] for task in env.tasks] == ["test 4 0", "test 4 1"]


def test_a_thousand_episodes_run_concurrently_without_mixing() -> None:
    async def play(index: int) -> Step:
        env = ToolEnv(tasks=ROWS, tools=[add, note], verifier=number, state=Notes)
        task = index % len(ROWS)
        await env.areset(options={"task": task})
        step = await env.astep(call("add", a=task, b=task) + call("note", text=str(index)))
        assert step[0][1]["content"] == "1"  # its own notes
        return await env.astep(step[0][0]["content"])

    async def everyone() -> list[Step]:
        return await asyncio.gather(*(play(index) for index in range(1000)))

    assert all(step[1] == 1.0 for step in asyncio.run(everyone()))
