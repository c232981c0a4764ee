"""Which transcripts a report carries, and how they are packed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from palestra.view import write_report
from palestra.view.transcripts import MAX_TOKENS, Transcripts, read_transcripts

WriteRun = Callable[..., Path]


def read(run: Path, **options: Any) -> Transcripts:
    return read_transcripts(run / "transcripts.jsonl", **options)


def test_tokens_are_packed_with_their_figures(write_run: WriteRun, episode: dict[str, Any]) -> None:
    found = read(write_run(transcripts=[episode]))
    assert found.moments == ["train, RL step 1"]
    assert found.advantage_scale == 0.75
    assert found.notices == []
    (transcript,) = found.episodes
    assert [found.strings[int(token[0] or 0)] for token in transcript.tokens] == [
        "17+25?\n",
        "<tool_call>",
        "42",
        "42",
    ]
    assert [token[1:] for token in transcript.tokens] == [
        [0],
        [1, -0.25, -0.2501, 0.75],
        [2],
        [1, -2.0, -2.0001, 0.75],
    ]


def test_a_budget_keeps_every_moment_before_a_second_episode_of_one(
    write_run: WriteRun, episode: dict[str, Any]
) -> None:
    rows = [{**episode, "step": step, "task_id": task} for step in range(9) for task in "abcd"]
    run = write_run(transcripts=rows)
    everything = read(run)
    assert len(everything.episodes) == 36
    some = read(run, budget=4500)
    assert [one.moment for one in some.episodes if one.task == "a"] == list(range(9))
    assert 9 <= len(some.episodes) < 36
    assert some.notices == [
        f"{len(some.episodes)} of 36 transcripts are shown, to keep this small."
    ]


def test_a_tight_budget_spreads_over_the_run(write_run: WriteRun, episode: dict[str, Any]) -> None:
    run = write_run(transcripts=[{**episode, "step": step} for step in range(101)])
    kept = [one.moment for one in read(run, budget=1500).episodes]
    assert {0, 50, 100} <= set(kept)
    assert len(kept) < 10


def test_huge_tokens_and_episodes_are_cut(write_run: WriteRun, episode: dict[str, Any]) -> None:
    huge = ["x" * 1_000_000, "sampled", -1.0, None, None]
    many = [["a", "tool", None, None, None]] * (MAX_TOKENS + 5)
    run = write_run(transcripts=[{**episode, "tokens": [huge, *many], "reply": huge[0]}])
    found = read(run)
    assert found.strings[0].endswith("x⟨… 999,600 more characters⟩")
    assert found.episodes[0].tokens_left_out == 6
    assert write_report(run).stat().st_size < 1_000_000


def test_what_is_not_a_transcript_is_left_out_and_told(
    write_run: WriteRun, episode: dict[str, Any]
) -> None:
    wrong = [{**episode, "tokens": tokens} for tokens in (None, ["a"], [["a"]], [["a", []]])]
    run = write_run(transcripts=[episode, *wrong])
    with (run / "transcripts.jsonl").open("a") as file:
        file.write("no json\n" + json.dumps(episode)[:50])
    found = read(run)
    assert len(found.episodes) == 1
    assert found.notices == ["Unreadable lines of transcripts.jsonl left out: 5."]


def test_odd_values_are_shown_as_text(write_run: WriteRun, episode: dict[str, Any]) -> None:
    odd = {"answer": {"a": [1]}, "reply": None, "reward": float("nan"), "group": 7, "step": "x"}
    found = read(write_run(transcripts=[{**episode, **odd}]))
    (transcript,) = found.episodes
    assert (transcript.answer, transcript.reply, transcript.group) == ('{"a": [1]}', "null", "7")
    assert transcript.reward is None
    assert found.moments == ["train, RL"]


def test_no_file_means_no_transcripts(tmp_path: Path) -> None:
    assert read(tmp_path) == Transcripts()
