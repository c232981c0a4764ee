"""A program as an agent: what it is given, what counts as its answer, and that nothing stays."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path

import pytest

from palestra.rollout.serving.agent_program import AgentProgram
from palestra.rollout.serving.agents import AgentTask, PolicyAtFault
from palestra.types import Failure

TASK = AgentTask(
    id="sum",
    messages=({"role": "user", "content": "17 + 25?"},),
    base_url="http://127.0.0.1:1/episodes/k/v1",
    anthropic_base_url="http://127.0.0.1:1/episodes/k",
    api_key="k",
)


def play(code: str, timeout_s: float = 30.0) -> str | None:
    agent = AgentProgram([sys.executable, "-c", code])

    async def run() -> str | None:
        return await asyncio.wait_for(agent(TASK), timeout_s)

    return asyncio.run(run())


def is_running(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


def test_it_reads_the_task_and_finds_the_episode_in_its_environment() -> None:
    answer = play(
        "import json, os, sys; task = json.load(sys.stdin); print('thinking'); print(json.dumps("
        "[task, {n: os.environ[n] for n in os.environ if n.startswith(('OPENAI_', 'ANTHROPIC_'))},"
        " os.environ['NO_PROXY']]))"
    )
    assert answer is not None
    given, environment, direct = json.loads(answer)
    assert given == {
        "id": "sum",
        "messages": [{"role": "user", "content": "17 + 25?"}],
        "tools": [],
        "base_url": TASK.base_url,
        "anthropic_base_url": TASK.anthropic_base_url,
        "api_key": "k",
    }
    assert environment["OPENAI_BASE_URL"] == TASK.base_url
    assert environment["ANTHROPIC_BASE_URL"] == TASK.anthropic_base_url
    assert environment["OPENAI_API_KEY"] == environment["ANTHROPIC_API_KEY"] == "k"
    assert "127.0.0.1" in direct


def test_the_last_line_is_the_answer_and_silence_is_none() -> None:
    assert play("print('let me see'); print('42'); print()") == "42"
    assert play("pass") is None


def test_a_program_that_never_reads_its_input_answers_all_the_same() -> None:
    assert play("import os; os.close(0); print('42')") == "42"


def test_more_output_than_is_kept_ends_in_the_answer() -> None:
    assert play("print('x' * 3_000_000); print('42')") == "42"


def test_another_status_than_0_is_a_failure_of_the_agent_and_says_why() -> None:
    with pytest.raises(Failure, match="KeyError: 'nowhere'") as caught:
        play("{}['nowhere']")
    assert caught.value.cause == "agent"
    assert "status 1" in caught.value.detail


def test_an_exception_that_blames_the_policy_is_known_by_its_name() -> None:
    code = (
        "import sys, types\n"
        "class ModelBehaviorError(Exception): __module__ = 'agents.exceptions'\n"
        "raise ModelBehaviorError('tool sub not found')"
    )
    with pytest.raises(PolicyAtFault, match="tool sub not found"):
        play(code)


@pytest.mark.parametrize("waits", [True, False])
def test_what_it_started_ends_with_it(waits: bool, tmp_path: Path) -> None:
    # The child holds the pipes and outlives its parent unless somebody ends it.
    code = (
        "import pathlib, subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(child.pid))\n"
        "print('42', flush=True)\n"
    )
    if waits:
        with pytest.raises(TimeoutError):
            play(code + "child.wait()", timeout_s=5.0)
    else:
        assert play(code) == "42"
    pid = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 5
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_running(pid)


def test_a_missing_program_is_told_at_once() -> None:
    with pytest.raises(ValueError, match="there is no program 'no-such-program'"):
        AgentProgram(["no-such-program", "--flag"])
    with pytest.raises(ValueError, match="is a list of words"):
        AgentProgram("python agent.py")
