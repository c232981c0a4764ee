"""Recorded episodes read back equal, whatever ended the run that wrote them."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from palestra.envs import ToolEnv
from palestra.rollout import Recorder, ScriptedPolicy, read_episodes, rollout, tool_call
from palestra.tools import tool
from palestra.types import Episode, Outcome, Sampling, Score, Task, ToolResult, Turn, VersionSpan
from palestra.verifiers import number

EPISODE = Episode(
    id="sum/0",
    env_id="palestra/Sum-v0",
    task=Task(
        id="sum",
        messages=({"role": "user", "content": "1 + 1 = ? ☃\u2028"},),
        answer=2,
        info={"steps": [[1, "+", 1, 2]]},
    ),
    sample=3,
    attempt=1,
    prompt=({"role": "user", "content": "1 + 1 = ? ☃\u2028"},),
    turns=(
        Turn(
            message={"role": "assistant", "content": "2"},
            prompt_ids=(1, 2, 3),
            completion_ids=(4, 5),
            logprobs=(-0.1, -2.3025850929940455),
            sampling=Sampling(temperature=0.7, seed=2**62),
            version_spans=(VersionSpan(version=7, start=0, end=2),),
            tool_results=(ToolResult(call_id="call_0", name="", content="?", error="cut"),),
            terminated=True,
        ),
    ),
    outcome=Outcome.SCORED,
    stop_reason="answer",
    scores={"agent": Score(value=1.0, parts={"exact": 1.0})},
    rewards={"agent": 1.0},
)


def numbered(count: int) -> list[Episode]:
    return [replace(EPISODE, id=f"sum/{index}") for index in range(count)]


def write(path: Path, episodes: list[Episode]) -> None:
    with Recorder(path) as recorder:
        for episode in episodes:
            recorder.append(episode)


def test_episodes_read_back_equal(tmp_path: Path) -> None:
    write(tmp_path / "new" / "episodes.jsonl", numbered(3))
    recording = read_episodes(tmp_path / "new" / "episodes.jsonl")
    assert recording == numbered(3)
    assert recording.torn == 0


@pytest.mark.parametrize("text", ["half a character: \ud83d", "a null: \0", "a line: \r\n", "é漢☃"])
def test_any_text_reads_back_equal(tmp_path: Path, text: str) -> None:
    turn = replace(EPISODE.turns[0], message={"role": "assistant", "content": text})
    episode = replace(EPISODE, turns=(turn,))
    write(tmp_path / "episodes.jsonl", [episode, EPISODE])
    assert read_episodes(tmp_path / "episodes.jsonl") == [episode, EPISODE]


def test_what_json_does_not_have_is_recorded_as_text(tmp_path: Path) -> None:
    info: dict[Any, Any] = {(1, 2): {"a set"}, "enum": Outcome.FAILED, "path": Path("a")}
    episode = replace(EPISODE, task=replace(EPISODE.task, info=info, answer={3: (4,)}))
    write(tmp_path / "episodes.jsonl", [episode])
    [read] = read_episodes(tmp_path / "episodes.jsonl")
    assert read.task.info == {"(1, 2)": "{'a set'}", "enum": "failed", "path": "a"}
    assert read.task.answer == {"3": [4]}


def test_a_second_run_appends(tmp_path: Path) -> None:
    path = tmp_path / "episodes.jsonl"
    write(path, numbered(2))
    write(path, numbered(3)[2:])
    assert read_episodes(path) == numbered(3)


def test_what_is_appended_can_be_read_at_once(tmp_path: Path) -> None:
    with Recorder(tmp_path / "episodes.jsonl") as recorder:
        recorder.append(EPISODE)
        assert read_episodes(recorder.path) == [EPISODE]


def test_the_driver_records_every_episode_it_yields(tmp_path: Path) -> None:
    @tool
    async def add(a: int, b: int) -> int:
        """Add two integers."""
        return a + b

    task = Task(id="sum", messages=({"role": "user", "content": "17 + 25?"},), answer="42")

    async def main() -> list[Episode]:
        with Recorder(tmp_path / "episodes.jsonl") as recorder:
            episodes = rollout(
                lambda: ToolEnv(tasks=[task], tools=[add], verifier=number),
                [task],
                ScriptedPolicy([tool_call("add", a=17, b=25), "42"]),
                n_per_task=5,
                recorder=recorder,
            )
            return [episode async for episode in episodes]

    assert asyncio.run(main()) == read_episodes(tmp_path / "episodes.jsonl")


@pytest.mark.parametrize("kept", [1, 100, -1])
def test_a_torn_last_line_is_left_out_counted_and_gone_when_a_run_resumes(
    tmp_path: Path, kept: int
) -> None:
    path = tmp_path / "episodes.jsonl"
    write(path, numbered(2))
    with open(path, "ab") as file:
        file.write((EPISODE.to_json() + "\n").encode()[:kept])
    assert read_episodes(path) == numbered(2)
    assert read_episodes(path).torn == 1
    write(path, numbered(3)[2:])
    assert read_episodes(path) == numbered(3)
    assert read_episodes(path).torn == 0


def test_a_torn_line_longer_than_the_block_that_is_searched_is_found(tmp_path: Path) -> None:
    path = tmp_path / "episodes.jsonl"
    write(path, numbered(1))
    with open(path, "ab") as file:
        file.write(b"{" + b" " * 200_000)
    write(path, numbered(2)[1:])
    assert read_episodes(path) == numbered(2)


def test_a_file_of_nothing_but_a_torn_line_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "episodes.jsonl"
    path.write_bytes(b'{"id": "sum')
    write(path, [EPISODE])
    assert read_episodes(path) == [EPISODE]


def test_a_bad_line_before_the_end_is_named(tmp_path: Path) -> None:
    path = tmp_path / "episodes.jsonl"
    write(path, [EPISODE])
    with open(path, "a") as file:
        file.write("[]\n")
    with pytest.raises(ValueError, match=r"episodes\.jsonl:2: not an episode"):
        read_episodes(path)
    with pytest.raises(ValueError, match="no recorded episodes at"):
        read_episodes(tmp_path / "other.jsonl")


# A process of its own, because the limit on file sizes, which stands in for the size of the disk,
# cannot be lifted again.
FILL = """
import resource, sys
from palestra.rollout import Recorder, read_episodes
path, limit = sys.argv[1], int(sys.argv[2])
[episode] = read_episodes(path)
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
with Recorder(path) as recorder:
    try:
        while True:
            recorder.append(episode)
    except OSError as error:
        print(error)
"""


def test_a_full_disk_is_one_clear_error_and_what_was_written_stays_readable(
    tmp_path: Path,
) -> None:
    path = tmp_path / "episodes.jsonl"
    write(path, [EPISODE])
    line = path.stat().st_size
    result = subprocess.run(
        [sys.executable, "-c", FILL, str(path), str(5 * line + line // 2)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "cannot write episodes (File too large)" in result.stdout
    assert str(path) in result.stdout
    assert len(result.stdout.splitlines()) == 1
    assert read_episodes(path) == [EPISODE] * 5
    assert read_episodes(path).torn == 0
