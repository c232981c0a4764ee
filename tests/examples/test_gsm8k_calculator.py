"""The example on GSM8K: its solutions as tool use, its command, and what resuming does."""

import asyncio
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from demonstrate import write_all
from evaluate import describe_calls
from gsm8k import GSM8KEnv, agrees, read_solution, read_tasks

from palestra.rollout import OraclePolicy, ScriptedPolicy, rollout
from palestra.rollout.chat_format import ChatFormat
from palestra.rollout.policy import Policy
from palestra.tools import calculate
from palestra.trainer.config import RLConfig, SFTConfig, load_config
from palestra.trainer.demonstrations import read_demonstrations
from palestra.trainer.load import save_policy
from palestra.trainer.tiny import build_policy, train_tokenizer
from palestra.types import Episode

EXAMPLE = Path(__file__).parents[2] / "examples" / "gsm8k_calculator"
CLIPS = "Ann sold 48/2 = <<48/2=24>>24 clips.\nIn all 48+24 = <<48+24=72>>72 clips.\n#### 72"
SPENT = "It cost 10*150*.01 = $<<10*150*.01=15.00>>15.00.\n#### 1,015"
WRONG = "There were 7*8 = <<7*8=54>>54 eggs.\n#### 54"
SAID = "He is <<15=15>>15 years old.\n#### 15"


def write_problems(folder: Path, solutions: Sequence[str], test: Sequence[str] = (CLIPS,)) -> str:
    for name, rows in {"train": solutions, "test": test}.items():
        lines = [json.dumps({"question": f"{name} {i}?", "answer": a}) for i, a in enumerate(rows)]
        (folder / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return str(folder)


def play(data: str, policy: Policy, *, tool: bool = True) -> list[Episode]:
    async def collect() -> list[Episode]:
        episodes = rollout(
            lambda: GSM8KEnv(data=data, tool=tool), read_tasks(data, "train"), policy
        )
        return [episode async for episode in episodes]

    return asyncio.run(collect())


def test_a_solution_is_taken_apart_at_its_calculations() -> None:
    solution = read_solution(CLIPS)
    assert solution.texts == (
        "Ann sold 48/2 = ",
        "24 clips.\nIn all 48+24 = ",
        "72 clips.\n#### 72",
    )
    assert solution.expressions == ("48/2", "48+24")
    assert solution.results == ("24", "72")
    assert solution.answer == "72"
    assert solution.plain == "Ann sold 48/2 = 24 clips.\nIn all 48+24 = 72 clips.\n#### 72"


def test_a_number_that_is_only_repeated_is_no_calculation() -> None:
    solution = read_solution(SAID)
    assert solution.expressions == ()
    assert solution.texts == ("He is 15 years old.\n#### 15",)


def test_a_solution_without_an_answer_is_refused() -> None:
    for text in ("It is 5.", "It is 5.\n#### "):
        with pytest.raises(ValueError, match="#### and the answer"):
            read_solution(text)


def test_results_agree_to_the_decimals_that_are_written() -> None:
    assert agrees("15.0", "15.00")
    assert agrees("1015", "1,015")
    assert agrees("33.333333333333336", "33.33")
    assert not agrees("33.333333333333336", "33.3334")
    assert not agrees("56", "54")
    assert not agrees("error: division by zero", "0")


def test_the_oracle_calls_the_tool_for_each_calculation(tmp_path: Path) -> None:
    data = write_problems(tmp_path, [CLIPS])
    (episode,) = play(data, OraclePolicy(GSM8KEnv.solve))
    assert [result.content for turn in episode.turns for result in turn.tool_results] == [
        "24",
        "72",
    ]
    assert [turn.message["content"] for turn in episode.turns] == [
        "Ann sold 48/2 =",
        "24 clips.\nIn all 48+24 =",
        "72 clips.\n#### 72",
    ]
    assert episode.reward == 1.0


def test_without_the_tool_nothing_is_announced(tmp_path: Path) -> None:
    data = write_problems(tmp_path, [CLIPS])
    (episode,) = play(data, OraclePolicy(GSM8KEnv.solve_without_tool), tool=False)
    assert episode.tools == ()
    assert "tool" not in episode.messages[0]["content"]
    assert len(episode.turns) == 1
    assert episode.reward == 1.0


def test_validation_is_the_end_of_the_training_file(tmp_path: Path) -> None:
    data = write_problems(tmp_path, [CLIPS] * 480)
    train, validation = (read_tasks(data, split) for split in ("train", "validation"))
    assert [task.id for task in train] == [f"train-{i}" for i in range(7)]
    assert [task.id for task in validation] == [f"train-{i}" for i in range(7, 480)]
    with pytest.raises(ValueError, match="has the splits"):
        read_tasks(data, "dev")


def test_problems_can_be_limited_to_short_ones(tmp_path: Path) -> None:
    data = write_problems(tmp_path, [CLIPS, SPENT])
    assert [task.id for task in read_tasks(data, "train", 1)] == ["train-1"]


def test_demonstrations_hold_what_the_tool_says(tmp_path: Path) -> None:
    unusual = CLIPS.replace("clips.", "clips\u2028in all.")  # GSM8K has such a line separator
    data = write_problems(tmp_path, [CLIPS, SPENT, WRONG, SAID, SAID, unusual])
    chat_format = ChatFormat.from_tokenizer(train_tokenizer([], [calculate.schema()]))
    counts = asyncio.run(write_all(data, tmp_path, chat_format, 300))
    assert counts.problems == 6
    assert (counts.with_tool, counts.without_tool) == (2, 2)
    assert (counts.disagreeing, counts.without_calculation, counts.wrong) == (1, 1, 0)
    assert counts.longest_tokens > 300
    assert counts.beyond_context >= 1
    assert json.loads((tmp_path / "demonstrations.json").read_text()) == dataclasses.asdict(counts)
    written = read_demonstrations(tmp_path / "demonstrations.jsonl")
    spoken = [[m["content"] for m in messages if m["role"] == "tool"] for messages, _ in written]
    assert spoken == [["15.0"], ["24", "72"], [], []]
    assert [bool(tools) for _, tools in written] == [True, True, False, False]


def test_calls_and_lost_answers_are_counted(tmp_path: Path) -> None:
    data = write_problems(tmp_path, [CLIPS])
    good = '<tool_call>\n{"name": "calculate", "arguments": {"expression": "48/2"}}\n</tool_call>'
    scripts = [
        ([good, "So\n#### 72"], (1, 1, 1), {}, 0),
        ([good.replace("48/2", "48 clips"), good, "#### 71"], (2, 2, 1), {"tool_error": 1}, 0),
        ([good.replace("calculate", "count"), "#### 72"], (1, 0, 0), {"unknown_tool": 1}, 0),
        (["#### 72 clips, not 73"], (0, 0, 0), {}, 1),  # the last number is taken
    ]
    for script, counts, errors, lost in scripts:
        found = describe_calls(play(data, ScriptedPolicy(script)))
        assert (found["calls"], found["valid_calls"], found["answered_calls"]) == counts
        assert (found["call_errors"], found["lost"]) == (errors, lost)


@pytest.mark.parametrize("machine", ["cpu", "gpu"])
def test_the_configurations_leave_room_for_every_demonstration(machine: str) -> None:
    sft = load_config(SFTConfig, EXAMPLE / machine / "sft.toml")
    rl = load_config(RLConfig, EXAMPLE / machine / "rl.toml")
    assert rl.eval_split == "validation"  # the test problems choose nothing
    assert rl.steps % (rl.checkpoint_every or 0) == 0  # the last step is what is evaluated
    assert rl.max_turns >= 9 + 1  # the most calculations of a solution, and the last reply
    assert rl.max_tokens >= 308  # the longest reply and the longest demonstration, in tokens
    assert min(rl.context_length, sft.context_length) >= 1093


@pytest.mark.slow
def test_one_command_runs_every_stage_and_resumes(tmp_path: Path) -> None:
    data = write_problems(tmp_path, [CLIPS, SPENT] * 6, [CLIPS, SPENT])
    tools = [calculate.schema()]
    conversation = play(data, OraclePolicy(GSM8KEnv.solve))[0].messages
    model, tokenizer = build_policy([(conversation, tools)])
    chat_format = ChatFormat.from_tokenizer(tokenizer)
    save_policy(model, tokenizer, chat_format, tmp_path / "model")
    limits = ["context_length=512", "max_tokens=8", "checkpoint_every=1"]
    command = [
        sys.executable,
        str(EXAMPLE / "run.py"),
        *("--data", data, "--model", str(tmp_path / "model"), "--out", str(tmp_path / "run")),
        *("--problems", "2", "--sft", "steps=2", "save_every=1"),
        *("--rl", "steps=1", "tasks_per_step=2", "group_size=2", "eval_tasks=1", "engine=hf"),
        *limits,
    ]

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        # As a user's shell has it: make's would not find the files beside run.py.
        env = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
        return subprocess.run(
            [*command, *more], capture_output=True, text=True, cwd=tmp_path, env=env
        )

    first = run()
    assert first.returncode == 0, first.stderr
    assert first.stdout.count("done already") == 0
    assert (tmp_path / "run" / "rl" / "checkpoints" / "step_00001" / "config.json").is_file()
    results = json.loads((tmp_path / "run" / "evaluations" / "rl" / "results.json").read_text())
    assert [found["problems"] for found in results.values()] == [2, 2]

    # As if it had been interrupted: SFT goes on from its state, GRPO of one step has none.
    (tmp_path / "run" / "sft" / "summary.json").unlink()
    (tmp_path / "run" / "rl" / "summary.json").unlink()
    (tmp_path / "run" / "evaluations" / "rl" / "results.json").unlink()
    second = run()
    assert second.returncode == 0, second.stderr
    assert second.stdout.count("done already") == 3
    assert second.stdout.count("--resume") == 1
    log = (tmp_path / "run" / "stages.jsonl").read_text().splitlines()
    assert [json.loads(line)["stage"] for line in log] == [
        "demonstrate",
        "evaluate base",
        "sft",
        "evaluate sft",
        "rl",
        "evaluate rl",
        "sft",
        "rl",
        "evaluate rl",
    ]
    assert second.stdout.count("| rl |") == 2

    third = run("checkpoint_every=2")
    assert third.returncode != 0
    assert "was begun with other settings" in third.stderr
