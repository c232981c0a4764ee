"""Answers that are submitted, and tools that exist only in an episode."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from palestra.envs import ToolEnv
from palestra.tools import (
    State,
    Tool,
    ToolError,
    ToolSource,
    finish,
    mcp_server,
    sqlite,
    submit,
    tool,
)
from palestra.types import Outcome, Task
from palestra.verifiers import number

ROWS = [{"prompt": f"{i}+{i}", "answer": str(2 * i)} for i in range(5)]
SERVER = Path(__file__).parents[1] / "tools/mcp_demo_server.py"


def call(name: str, **arguments: Any) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def env_with(*tools: Any, **options: Any) -> ToolEnv:
    return ToolEnv(**{"tasks": ROWS, "tools": tools, "verifier": number, **options})


def test_a_submitted_answer_ends_the_episode_and_is_what_counts() -> None:
    env = env_with(submit)
    env.reset(options={"task": 3})
    observation, reward, terminated, truncated, info = env.step(
        "It may be 5. " + call("submit", answer="6")
    )
    assert (observation, reward, terminated, truncated) == ((), 1.0, True, False)
    assert (info["outcome"], info["stop_reason"]) == (Outcome.SCORED, "answer")
    assert [result.content for result in info["tool_results"]] == ["6"]


def test_only_the_first_of_several_submissions_counts() -> None:
    env = env_with(submit)
    env.reset(options={"task": 3})
    assert env.step(call("submit", answer="5") + call("submit", answer="6"))[1] == 0.0


def test_a_submission_that_does_not_fit_is_answered_and_the_episode_goes_on() -> None:
    env = env_with(submit)
    env.reset(options={"task": 3})
    _, _, terminated, _, info = env.step(call("submit", answer=6))
    assert not terminated
    assert info["tool_results"][0].error == "bad_arguments"
    assert env.step(call("submit", answer="6"))[1] == 1.0


def test_a_submission_on_the_last_turn_terminates() -> None:
    env = env_with(submit, max_turns=1)
    env.reset(options={"task": 3})
    assert env.step(call("submit", answer="6"))[1:4] == (1.0, True, False)


def test_an_answer_does_not_reach_the_next_episode() -> None:
    env = env_with(submit)
    env.reset(options={"task": 3})
    env.step(call("submit", answer="6"))
    env.reset(options={"task": 3})
    assert env.step("I give up.")[1] == 0.0


class Cart(State):
    """What was bought."""

    def __init__(self) -> None:
        self.items: list[str] = []


@tool
def buy(item: str, cart: Cart) -> str:
    """Buy something."""
    cart.items.append(item)
    return "bought"


@tool(ends_episode=True)
def check_out(cart: Cart) -> None:
    """Pay."""
    if not cart.items:
        raise ToolError("the cart is empty")


def test_a_tool_of_ones_own_may_end_the_episode() -> None:
    env = env_with(
        buy, check_out, finish, state=Cart, verifier=lambda state: state.items == ["tea"]
    )
    env.reset()
    assert not env.step(call("check_out"))[2]
    env.step(call("buy", item="tea"))
    assert env.step(call("check_out"))[1:3] == (1.0, True)
    env.reset()
    assert env.step(call("finish"))[1:3] == (0.0, True)


# Sources.


class Numbers(ToolSource):
    """Makes a tool for each episode, and keeps count of those that are open."""

    name = "numbers"

    def __init__(self, trouble: str = "") -> None:
        self.open_now = 0
        self.trouble = trouble

    @asynccontextmanager
    async def open(self, task: Task) -> AsyncIterator[Sequence[Tool]]:
        if self.trouble:
            raise OSError(self.trouble)
        self.open_now += 1
        try:

            @tool(name="look")
            async def look() -> str:
                """Look at the task."""
                return f"{task.id} of {self.open_now}"

            yield (look,)
        finally:
            self.open_now -= 1


@tool
def look() -> str:
    """Look elsewhere."""
    return "elsewhere"


def names(info: dict[str, Any]) -> list[str]:
    return [schema["function"]["name"] for schema in info["tools"]]


def test_a_sources_tools_are_there_from_reset_to_the_end() -> None:
    source = Numbers()
    env = env_with(source)
    for index in (1, 2):
        _, info = env.reset(options={"task": index})
        assert names(info) == ["look"]
        assert source.open_now == 1
        assert env.step(call("look"))[0][0]["content"] == f"train-{index} of 1"
    env.step("2")
    assert source.open_now == 0


def test_a_name_that_is_taken_is_prefixed_with_the_sources() -> None:
    env = env_with(look, Numbers())
    _, info = env.reset(options={"task": 1})
    assert names(info) == ["look", "numbers_look"]
    step = env.step(call("look") + call("numbers_look"))
    assert [message["content"] for message in step[0]] == ["elsewhere", "train-1 of 1"]
    env.close()


def test_a_source_that_cannot_open_fails_the_reset_and_closes_the_others() -> None:
    first = Numbers()
    env = env_with(first, Numbers(trouble="no daemon"))
    _, info = env.reset()
    assert info["outcome"] == Outcome.FAILED
    assert "no daemon" in info["detail"]
    assert first.open_now == 0


def test_sql_in_an_episode_starts_from_the_same_data() -> None:
    env = env_with(sqlite(None, read_only=False), max_turns=9)
    for _ in range(2):
        env.reset(options={"task": 3})
        (created,) = env.step(call("sqlite", sql="CREATE TABLE t (a); INSERT INTO t VALUES (6)"))[0]
        assert created["content"] == "done\n\n1 row changed"
        (read,) = env.step(call("sqlite", sql="SELECT a FROM t"))[0]
        assert read["content"] == "a\n6"
        assert env.step("6")[1] == 1.0


def test_an_mcp_server_is_a_source_in_one_line() -> None:
    pytest.importorskip("mcp")
    env = env_with(mcp_server([sys.executable, str(SERVER)], tools=["add", "die"], name="demo"))
    _, info = env.reset(options={"task": 3})
    assert names(info) == ["add", "die"]
    assert env.step(call("add", a=3, b=3))[0][0]["content"] == "6"
    assert env.step("6")[1] == 1.0
    env.reset(options={"task": 3})
    *_, info = env.step(call("die"))
    assert (info["outcome"], info["cause"]) == (Outcome.FAILED, "tool:mcp:demo")


def test_an_mcp_server_that_cannot_start_fails_the_reset() -> None:
    pytest.importorskip("mcp")
    env = env_with(mcp_server(["false"], name="demo"))
    _, info = env.reset()
    assert (info["outcome"], info["cause"]) == (Outcome.FAILED, "tool:mcp:demo")
