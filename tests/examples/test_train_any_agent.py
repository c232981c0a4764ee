"""The example on openai-agents: what its agent shows, its configurations, its command."""

import json
import subprocess
import sys
from pathlib import Path

import agent
import pytest
from problems import play, problems
from train import demonstrate

from palestra.rollout.serving.agents import load_agent
from palestra.trainer.config import RLConfig, SFTConfig, load_config
from palestra.trainer.demonstrations import read_demonstrations
from palestra.trainer.session import request_of

EXAMPLE = Path(__file__).parents[2] / "examples" / "train_any_agent"


def test_the_agent_and_its_teacher_solve_every_task(tmp_path: Path) -> None:
    path = tmp_path / "demonstrations.jsonl"
    assert demonstrate(path, 12) == 12
    for messages, tools in read_demonstrations(path):
        assert messages[0] == {"role": "system", "content": agent.INSTRUCTIONS}
        assert [tool["function"]["name"] for tool in tools] == ["add", "multiply"]
        assert sum(message["role"] == "tool" for message in messages) in (2, 3)


def test_no_task_is_in_both_splits() -> None:
    train, test = ({task.messages[0]["content"] for task in problems(s)} for s in ("train", "test"))
    assert len(train) == 4000 and len(test) == 1000
    assert not train & test


def test_the_configurations_name_the_agent_and_requests_carry_it() -> None:
    for kind, name in ((SFTConfig, "sft.toml"), (RLConfig, "rl.toml")):
        config = load_config(kind, EXAMPLE / name)
        request = request_of(config, problems("train")[:2], "train")
        assert request.agent is not None and load_agent(request.agent) is play


@pytest.mark.slow
def test_a_rehearsal_takes_every_stage(tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, str(EXAMPLE / "train.py"), "--rehearsal", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["heldout_n"], summary["masked"], summary["rl_steps"]) == (16, 0, 2)
    assert (out / "report.html").exists()
