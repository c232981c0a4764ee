"""State checks: what the episode left behind counts, and doing nothing never does."""

from __future__ import annotations

import inspect
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from palestra.envs import ToolEnv
from palestra.tools import Sandbox, State, tool
from palestra.tools.sandboxes.sandbox import SandboxDied
from palestra.types import Failure, Message, Outcome, Score, Unscorable
from palestra.verifiers import (
    acted,
    exact,
    json_fields,
    number,
    on_file,
    sequence,
    state_equals,
    table_equals,
)

Judge = Callable[..., Score]
Calling = Callable[..., list[Message]]
NewSandbox = Callable[[], Sandbox]


@pytest.fixture
def messages(calling: Calling) -> list[Message]:
    """A conversation in which a tool was called."""
    return calling(("write", {"path": "out.txt"}))


@pytest.mark.parametrize(
    ("content", "verifier", "answer", "value"),
    [
        ("42\n", exact, "42", 1.0),
        ("43", exact, "42", 0.0),
        ("", exact, "42", 0.0),
        ("it is 42", number, 42, 1.0),
        ('{"a": 1}', json_fields(), {"a": 1, "b": 2}, 0.5),
        (b"\xff\xfe", exact, "42", 0.0),
        (b"42\0", exact, "42", 0.0),
    ],
)
def test_a_file_is_judged_as_a_reply_would_be(
    judge: Judge,
    new_sandbox: NewSandbox,
    messages: list[Message],
    content: Any,
    verifier: Any,
    answer: Any,
    value: float,
) -> None:
    sandbox = new_sandbox()
    sandbox.sync.write("out.txt", content)
    check = on_file("out.txt", verifier)
    assert judge(check, "", answer, messages=messages, sandbox=sandbox).value == value


def test_a_file_that_was_there_before_the_episode_does_not_pay_an_empty_reply(
    judge: Judge, new_sandbox: NewSandbox
) -> None:
    sandbox = new_sandbox()
    sandbox.sync.write("out.txt", "42")
    score = judge(on_file("out.txt"), "42", "42", sandbox=sandbox)
    assert (score.value, score.explanation) == (0.0, "no tool was called")


@pytest.mark.parametrize(
    "spoil",
    [
        "true",
        "mkdir out.txt",
        "mkfifo out.txt",
        "echo 42 > elsewhere; ln -s elsewhere out.txt",
        "ln -s /etc/hostname out.txt",
        "truncate -s 10G out.txt",
        "echo 42 > out.txt; chmod 000 out.txt; mkdir x; mv out.txt x",
    ],
)
def test_what_is_no_plain_file_is_wrong(
    judge: Judge, new_sandbox: NewSandbox, messages: list[Message], spoil: str
) -> None:
    sandbox = new_sandbox()
    sandbox.sync.run(spoil)
    score = judge(on_file("out.txt"), "", "42", messages=messages, sandbox=sandbox, timeout_s=5)
    assert score.value == 0.0
    assert score.explanation


def test_an_episode_that_brought_its_sandbox_down_is_wrong(
    judge: Judge, new_sandbox: NewSandbox, messages: list[Message]
) -> None:
    for check, answer in ((on_file("out.txt"), "42"), (table_equals("a.db", "SELECT 1"), [[1]])):
        sandbox = new_sandbox()
        sandbox.sync.write("out.txt", "42")
        with pytest.raises(SandboxDied):
            sandbox.sync.run("kill -9 $PPID")
        score = judge(check, "", answer, messages=messages, sandbox=sandbox)
        assert score.value == 0.0


def test_a_bad_reference_for_a_file_is_unscorable_with_the_parts_name(
    judge: Judge, new_sandbox: NewSandbox, messages: list[Message]
) -> None:
    sandbox = new_sandbox()
    sandbox.sync.write("out.txt", "42")
    with pytest.raises(Unscorable) as raised:
        judge(on_file("out.txt", number), "", "forty", messages=messages, sandbox=sandbox)
    assert raised.value.cause == "verifier:reference:number"


def test_a_file_check_asks_for_the_sandbox_and_fails_without_one(
    judge: Judge, messages: list[Message]
) -> None:
    assert "sandbox" in inspect.signature(on_file("x")).parameters
    with pytest.raises(Failure, match="there is no sandbox to read x from"):
        judge(on_file("x"), "", "42", messages=messages)


def database(path: Path, script: str) -> bytes:
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(script)
    return path.read_bytes()


GOOD = "CREATE TABLE t (a INT, b TEXT); INSERT INTO t VALUES (1, 'x'), (2, 'y');"


@pytest.mark.parametrize(
    ("script", "value"),
    [
        (GOOD, 1.0),
        (GOOD + "DELETE FROM t WHERE a = 2;", 0.0),
        (GOOD + "INSERT INTO t VALUES (2, 'y');", 0.0),
        ("CREATE TABLE u (a);", 0.0),
        ("CREATE VIEW t AS SELECT 1 AS a, 'x' AS b UNION SELECT 2, 'y';", 1.0),
        (
            "CREATE VIEW t AS WITH RECURSIVE r(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM r) "
            "SELECT count(*) AS a, 'x' AS b FROM r;",
            0.0,
        ),
        ("CREATE VIEW t AS SELECT load_extension('x') AS a, 'x' AS b;", 0.0),
    ],
)
def test_a_table_that_the_policy_filled_is_compared_with_rows(
    judge: Judge,
    new_sandbox: NewSandbox,
    messages: list[Message],
    tmp_path: Path,
    script: str,
    value: float,
) -> None:
    sandbox = new_sandbox()
    sandbox.sync.write("shop.db", database(tmp_path / "made", script))
    check = table_equals("shop.db", "SELECT a, b FROM t", timeout_s=1)
    answer = [[2, "y"], [1, "x"]]
    assert judge(check, "", answer, messages=messages, sandbox=sandbox).value == value
    assert judge(check, "", answer, sandbox=sandbox).explanation == "no tool was called"


def test_a_broken_database_of_the_policy_is_wrong(
    judge: Judge, new_sandbox: NewSandbox, messages: list[Message], tmp_path: Path
) -> None:
    good = database(tmp_path / "made", GOOD)
    check = table_equals("shop.db", "SELECT a, b FROM t")
    for content in (
        b"",
        b"no database" * 500,
        good[:100],
        good[:5000],
        good[:100] + b"\xff" * 8000,
    ):
        sandbox = new_sandbox()
        sandbox.sync.write("shop.db", content)
        assert judge(check, "", [[1, "x"]], messages=messages, sandbox=sandbox).value == 0.0


@pytest.mark.parametrize("answer", [None, "x", [1], [[1], [1, 2]]])
def test_a_reference_that_is_no_list_of_rows_is_unscorable(
    judge: Judge, new_sandbox: NewSandbox, messages: list[Message], answer: Any
) -> None:
    with pytest.raises(Unscorable, match="the task's answer"):
        judge(table_equals("a", "SELECT 1"), "", answer, messages=messages, sandbox=new_sandbox())


class Basket(State):
    def __init__(self) -> None:
        self.items: list[str] = ["apple"]
        self.paid = True
        self.where = (1, 2)


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ({"items": ["apple"]}, 1.0),
        ({"items": ["apple"], "paid": True, "where": [1, 2]}, 1.0),
        ({"items": ["apple", "pear"]}, 0.0),
        ({"paid": 1}, 0.0),
        ({"missing": None}, 0.0),
        ({"items": ["apple"], "paid": False}, 0.0),
    ],
)
def test_the_tools_state_is_compared_by_name(
    judge: Judge, messages: list[Message], answer: Any, value: float
) -> None:
    assert judge(state_equals, "", answer, messages=messages, state=Basket()).value == value
    score = judge(state_equals, "", answer, state=Basket())
    assert (score.value, score.explanation) == (0.0, "no tool was called")


class Goal(State):
    def __init__(self, goal: object) -> None:
        self.goal = goal


def test_objects_in_the_state_equal_nothing(judge: Judge, messages: list[Message]) -> None:
    class Anything:
        def __eq__(self, other: object) -> bool:
            return True

        def __hash__(self) -> int:
            return 0

    class Text(str):
        __slots__ = ()

        def __eq__(self, other: object) -> bool:
            return True

        def __hash__(self) -> int:
            return 0

    for trick in (Anything(), Text("x"), [Anything()], {"a": Text("x")}):
        state = Goal(trick)
        for answer in ("x", ["x"], {"a": "x"}):
            score = judge(state_equals, "", {"goal": answer}, messages=messages, state=state)
            assert score.value == 0.0


@pytest.mark.parametrize("answer", [None, "x", {}, [1], {"a": object()}])
def test_a_reference_that_names_no_state_is_unscorable(
    judge: Judge, messages: list[Message], answer: Any
) -> None:
    with pytest.raises(Unscorable, match=r"needs a mapping|is no JSON"):
        judge(state_equals, "", answer, messages=messages, state=Basket())


@tool
def put(item: str, basket: Basket) -> str:
    """Put an item into the basket."""
    basket.items.append(item)
    return "ok"


def test_a_goal_of_ones_own_stands_behind_the_gate_in_an_environment() -> None:
    def has_pear(state: Basket) -> bool:
        return "pear" in state.items

    env = ToolEnv(
        tasks=[{"prompt": "buy a pear", "answer": ""}],
        tools=[put],
        state=Basket,
        verifier=sequence(acted, has_pear),
    )
    call = '<tool_call>{"name": "put", "arguments": {"item": "%s"}}</tool_call>'
    for item, reward in (("pear", 1.0), ("plum", 0.0)):
        env.reset(seed=0)
        env.step(call % item)
        _, got, *_, info = env.step("done")
        assert (got, info["outcome"]) == (reward, Outcome.SCORED)
    env.reset(seed=0)
    assert env.step("done")[1] == 0.0


def test_a_conversation_without_a_call_that_could_be_read_has_not_acted(
    judge: Judge, calling: Calling
) -> None:
    assert judge(acted, "", messages=calling(("f", {}))).value == 1.0
    assert judge(acted, "", messages=calling()).value == 0.0
    assert judge(acted, "", messages=calling(("", "{"), error="bad_json")).value == 0.0
    assert judge(acted, "").value == 0.0
