"""Agents are found by name, and it is told whose fault it is when one gives up."""

from __future__ import annotations

from pathlib import Path

import pytest
from agents.exceptions import MaxTurnsExceeded, ModelBehaviorError
from pydantic_ai.exceptions import UnexpectedModelBehavior, UsageLimitExceeded

from palestra.rollout.serving.agents import (
    AgentTask,
    PolicyAtFault,
    is_policys_fault,
    load_agent,
    tells_policys_fault,
)

AGENTS = """
async def play(task):
    return task.prompt

def blocking(task):
    return "42"

class Played:
    async def __call__(self, task):
        return None

played = Played()
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"agents_of_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(AGENTS)
    monkeypatch.syspath_prepend(tmp_path)
    return name


def task(*contents: str) -> AgentTask:
    return AgentTask(
        id="t",
        messages=tuple({"role": "user", "content": content} for content in contents),
        base_url="http://127.0.0.1:1/episodes/k/v1",
        anthropic_base_url="http://127.0.0.1:1/episodes/k",
        api_key="k",
    )


def test_a_function_and_an_object_with_an_asynchronous_call_are_agents(module: str) -> None:
    assert getattr(load_agent(f"{module}:play"), "__name__", "") == "play"
    assert type(load_agent(f"{module}:played")).__name__ == "Played"


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("no_such_module_here:play", "No module named 'no_such_module_here': is it installed"),
        ("{module}:plya", r"has no plya; did you mean play\?"),
        ("{module}", 'an agent is named "module:function"'),
        (":play", 'an agent is named "module:function"'),
        ("{module}:blocking", "must be an `async def`"),
        ("{module}:AGENTS", "has no AGENTS"),
    ],
)
def test_what_is_no_agent_is_told_in_one_line(module: str, name: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint) as caught:
        load_agent(name.format(module=module))
    assert "\n" not in str(caught.value)


def test_the_prompt_is_the_text_of_the_last_message() -> None:
    assert task("first", "second").prompt == "second"
    assert task().prompt == ""


def test_the_policy_is_at_fault_for_what_frameworks_say_of_it() -> None:
    for error in (
        ModelBehaviorError("no such tool"),
        MaxTurnsExceeded("10"),
        UnexpectedModelBehavior("too many retries"),
        UsageLimitExceeded("10 requests"),
        type("Finer", (ModelBehaviorError,), {})("a kind of it"),
    ):
        assert is_policys_fault(error)
    assert is_policys_fault(PolicyAtFault())
    assert not is_policys_fault(KeyError("x"))


def test_a_programs_last_line_tells_the_same() -> None:
    ends = "Traceback (most recent call last):\n  ...\n{}: tool sub not found\n"
    assert tells_policys_fault(ends.format("agents.exceptions.ModelBehaviorError"))
    assert not tells_policys_fault(ends.format("KeyError"))
    assert not tells_policys_fault("")
