"""`check` accepts sound environments and names what is wrong with others."""

from __future__ import annotations

import random
from typing import Any

import pytest

import palestra
from palestra.envs import Env, Step, ToolEnv, check
from palestra.envs.spaces import Action, Observation
from palestra.tools import calculator, tool
from palestra.types import Score
from palestra.verifiers import number

ROWS = [{"prompt": f"{i}+{i}", "answer": str(2 * i)} for i in range(9)]


def test_registered_and_unregistered_environments_pass() -> None:
    check("Arithmetic-v0", split="test")
    check(ToolEnv(tasks=ROWS, tools=[calculator], verifier=number, max_turns=2))
    with pytest.raises(ValueError, match="unknown environment"):
        check("Arithmetik-v0")


class Flawed(Env):
    """A sound environment, until a flaw is named."""

    def __init__(self, flaw: str = "") -> None:
        super().__init__()
        self.flaw = flaw

    async def areset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        if self.flaw != "seed":
            await super().areset(seed=seed)
        text = str(random.random()) if self.flaw == "chance" else "?"
        observation: Any = [{"role": "user", "content": text}]
        return observation if self.flaw == "list" else tuple(observation), {}

    async def astep(self, action: Action) -> Step:
        if self.flaw == "bug" and "-" in str(action):
            raise KeyError("x")
        return (), 0.0, self.flaw != "endless", False, {}

    async def ascore(self, stop_reason: str) -> Score:
        return Score(value=0.0)


@pytest.mark.parametrize(
    ("flaw", "complaint"),
    [
        ("seed", "given a seed|reset.*seed"),
        ("chance", "two episodes with seed 0 differ"),
        ("list", "not within the observation space"),
        ("bug", "the episode was failed: env: KeyError"),
        ("endless", "seed 0: an episode did not end within 100 steps"),
    ],
)
def test_a_flaw_is_found_and_named(flaw: str, complaint: str) -> None:
    check(Flawed())
    with pytest.raises(AssertionError, match=complaint):
        check(Flawed(flaw), episodes=10)


def test_a_broken_tool_is_found_though_it_takes_no_arguments() -> None:
    @tool
    def status() -> str:
        """Have a bug."""
        raise KeyError("forgotten")

    palestra.register("TestBrokenTool-v0", ToolEnv, tasks=ROWS, tools=[status], verifier=number)
    with pytest.raises(AssertionError, match="the episode was failed: tool:status: KeyError"):
        check("TestBrokenTool-v0")


def test_a_bad_reference_is_found() -> None:
    env = ToolEnv(tasks=[{"prompt": "1+1", "answer": "two"}], verifier=number)
    with pytest.raises(AssertionError, match=r"truncates after 1 step|unscorable"):
        check(env)
