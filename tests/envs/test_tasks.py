"""Tasks come from every kind of source, and bad ones are refused in one line."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from palestra.envs import TaskSet
from palestra.envs.tasks import TaskSource
from palestra.types import Task

ROWS = [{"prompt": "1+1", "answer": "2"}, {"prompt": "2+2", "answer": "4"}]


def user(text: str) -> tuple[dict[str, Any], ...]:
    return ({"role": "user", "content": text},)


def test_rows_become_tasks() -> None:
    tasks = TaskSet.load(ROWS)
    assert list(tasks) == [
        Task(id="train-0", messages=user("1+1"), answer="2"),
        Task(id="train-1", messages=user("2+2"), answer="4"),
    ]
    assert repr(tasks) == 'TaskSet(tasks, split="train", 2 tasks)'


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "1+1"},
        {"question": "1+1"},
        {"prompt": [{"role": "user", "content": "1+1"}]},
        {"messages": ({"role": "user", "content": "1+1"},)},
        {"prompt": "1+1", "messages": None},
    ],
)
def test_the_prompt_has_several_names_and_forms(row: dict[str, Any]) -> None:
    assert TaskSet.load([row])[0].messages == user("1+1")


def test_other_keys_go_to_info() -> None:
    row = {"id": 7, "prompt": "1+1", "answer": 2, "level": 3, "info": {"source": "book"}}
    task = TaskSet.load([row])[0]
    assert task == Task(id="7", messages=user("1+1"), answer=2, info={"level": 3, "source": "book"})


def test_tasks_pass_as_they_are() -> None:
    task = Task(id="a", messages=user("1+1"))
    assert TaskSet.load([task])[0] is task
    tasks = TaskSet.load([task])
    assert TaskSet.load(tasks, split="test") is tasks


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ([], 'tasks has no tasks in split "train"'),
        ([{"answer": 2}], r'tasks\[0\]: no "prompt" .*; the row has answer'),
        ([{"prompt": "  "}], r'tasks\[0\]: "prompt" must be text or a list of chat messages'),
        ([{"prompt": []}], r'tasks\[0\]: "prompt" must be text or a list'),
        ([{"prompt": 3}], r'tasks\[0\]: "prompt" must be .* got 3'),
        ([{"prompt": [{"role": "me"}]}], r"tasks\[0\]: .* is no chat message"),
        (["1+1"], r"tasks\[0\]: a task is a dictionary with a prompt, got str '1\+1'"),
        ([*ROWS, {"id": "train-1", "prompt": "x"}], 'tasks 1 and 2 have the same id "train-1"'),
        ({"test": ROWS}, 'no split "train" among these tasks; they have "test"'),
        (iter(ROWS), "pass the generator function itself"),
        (3, "tasks must be a list, a .jsonl path, .* got int"),
        (lambda n: ROWS, "called with split and seed, if at all"),
    ],
)
def test_what_cannot_be_tasks_is_refused_in_one_line(source: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint) as error:
        TaskSet.load(source)
    assert "\n" not in str(error.value)


def test_limits_take_the_first_tasks() -> None:
    assert [task.answer for task in TaskSet.load(ROWS, limit=1)] == ["2"]
    assert len(TaskSet.load(TaskSet.load(ROWS), limit=1)) == 1
    with pytest.raises(ValueError, match="limit must be at least 1, got 0"):
        TaskSet.load(ROWS, limit=0)


def test_jsonl_is_read_and_blank_lines_are_skipped(tmp_path: Path) -> None:
    path = tmp_path / "tasks.jsonl"
    path.write_text("\n\n".join(json.dumps(row) for row in ROWS) + "\n")
    assert list(TaskSet.load(path)) == list(TaskSet.load(str(path))) == list(TaskSet.load(ROWS))


def test_a_folder_holds_a_file_per_split(tmp_path: Path) -> None:
    for split, row in zip(("train", "test"), ROWS, strict=True):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps(row))
    assert TaskSet.load(tmp_path, split="test")[0] == Task(
        id="test-0", messages=user("2+2"), answer="4"
    )
    with pytest.raises(ValueError, match=r"cannot read tasks from .*dev\.jsonl: No such file"):
        TaskSet.load(tmp_path, split="dev")


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b'{"answer": 2}', 'no "prompt"'),
        (b'{"prompt": "1+', "not a line of JSON"),
        (b'"1+1"', "a task is a dictionary"),
        (b'{"prompt": "\xff"}', "not a line of JSON"),
        (b"[" * 200_000, "not a line of JSON"),
    ],
)
def test_a_bad_line_is_named_by_file_and_number(
    tmp_path: Path, line: bytes, complaint: str
) -> None:
    path = tmp_path / "tasks.jsonl"
    path.write_bytes(b'{"prompt": "1+1"}\n\n' + line + b"\n")
    with pytest.raises(ValueError, match=rf"tasks\.jsonl:3: {complaint}") as error:
        TaskSet.load(path)
    assert "\n" not in str(error.value)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ValueError, match=r"cannot read tasks from nowhere\.jsonl: No such file"):
        TaskSet.load("nowhere.jsonl")


def endless(split: str, seed: int) -> Iterator[dict[str, Any]]:
    number = seed
    while True:
        yield {"prompt": f"{split} {number}"}
        number += 1


def test_generator_functions_are_given_split_and_seed() -> None:
    tasks = TaskSet.load(endless, split="test", seed=5, limit=2)
    assert [task.messages for task in tasks] == [user("test 5"), user("test 6")]
    assert [task.id for task in tasks] == ["test-0", "test-1"]
    assert TaskSet.load(lambda **given: [{"prompt": str(given)}])[0].messages == user(
        "{'split': 'train', 'seed': 0}"
    )
    assert len(TaskSet.load(lambda: ROWS)) == 2


def test_an_endless_generator_needs_a_limit() -> None:
    with pytest.raises(ValueError, match=r"endless gave more than 100000 tasks; .* limit="):
        TaskSet.load(endless)


def test_errors_inside_a_generator_stay_what_they_are() -> None:
    def broken(seed: int) -> Any:
        raise TypeError("a bug")

    with pytest.raises(TypeError, match="a bug"):
        TaskSet.load(broken)


def test_datasets_are_read_with_their_splits() -> None:
    dataset = datasets.Dataset.from_list(ROWS)
    assert list(TaskSet.load(dataset)) == list(TaskSet.load(ROWS))
    both = datasets.DatasetDict(train=dataset, test=dataset.select([1]))
    assert [task.answer for task in TaskSet.load(both, split="test")] == ["4"]
    with pytest.raises(ValueError, match='no split "dev" among these tasks; they have "train"'):
        TaskSet.load(both, split="dev")


def test_hub_datasets_load_by_name(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(json.dumps(ROWS[0]))
    assert TaskSet.load(f"hf:{tmp_path}")[0].answer == "2"
    with pytest.raises(ValueError, match=r'cannot load split "test" of hf:') as error:
        TaskSet.load(f"hf:{tmp_path}", split="test")
    assert "\n" not in str(error.value)


def test_sets_are_sequences_with_ids() -> None:
    tasks = TaskSet.load(ROWS)
    assert tasks[-1].answer == "4"
    assert isinstance(tasks[1:], TaskSet)
    assert tasks.by_id("train-1") is tasks[1]
    with pytest.raises(ValueError, match=r'no task "train-7" in .*; did you mean "train-'):
        tasks.by_id("train-7")


def test_sampling_reaches_every_task_and_follows_the_generator() -> None:
    tasks = TaskSet.load([{"prompt": str(i)} for i in range(5)])
    rng = np.random.default_rng(0)
    drawn = [tasks.sample(rng).id for _ in range(50)]
    assert set(drawn) == {task.id for task in tasks}
    rng = np.random.default_rng(0)
    assert drawn == [tasks.sample(rng).id for _ in range(50)]


def test_deep_copies_are_the_set_itself_and_pickles_are_equal() -> None:
    tasks = TaskSet.load(ROWS)
    assert copy.deepcopy({"tasks": tasks})["tasks"] is tasks
    assert list(pickle.loads(pickle.dumps(tasks))) == list(tasks)


def test_a_source_is_read_once_per_split_seed_and_limit() -> None:
    calls: list[tuple[str, int]] = []

    def made(split: str, seed: int) -> list[dict[str, str]]:
        calls.append((split, seed))
        return [{"prompt": "1+1"}, {"prompt": "2+2"}]

    source = TaskSource.of(made)
    assert copy.deepcopy(source) is source
    assert TaskSet.load(source) is TaskSet.load(source) is TaskSet.load(TaskSource.of(source))
    TaskSet.load(source, split="test")
    TaskSet.load(source, seed=1)
    assert len(TaskSet.load(source, limit=1)) == 1
    assert calls == [("train", 0), ("test", 0), ("train", 1), ("train", 0)]
    assert list(pickle.loads(pickle.dumps(TaskSource(ROWS))).load()) == list(TaskSet.load(ROWS))
