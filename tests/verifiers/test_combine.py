import inspect
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from palestra.tools import Sandbox
from palestra.types import Failure, Score, Unscorable
from palestra.verifiers import Part, Rubric, all_of, any_of, check_verifier, number, sequence

Judge = Callable[..., Score]


def good(reply: str) -> float:
    return 1.0


def half(reply: str) -> float:
    return 0.5


def bad(reply: str) -> float:
    return 0.0


def unscorable(reply: str) -> float:
    raise Unscorable("no reference")


def broken(reply: str) -> float:
    raise KeyError("gone")


@pytest.mark.parametrize(
    ("verifiers", "all_value", "any_value"),
    [
        ([good], 1.0, 1.0),
        ([bad], 0.0, 0.0),
        ([good, half], 0.5, 1.0),
        ([good, half, bad], 0.0, 1.0),
        ([half, bad], 0.0, 0.5),
    ],
)
def test_all_is_as_good_as_the_worst_and_any_as_the_best(
    judge: Judge, verifiers: list[Any], all_value: float, any_value: float
) -> None:
    assert judge(all_of(*verifiers), "x").value == all_value
    assert judge(any_of(*verifiers), "x").value == any_value


def test_parts_are_named_and_in_the_order_given(judge: Judge) -> None:
    def late(reply: str) -> Score:
        time.sleep(0.1)
        return Score(value=1.0, explanation="late")

    score = judge(all_of(late, good, third=lambda reply: Score(value=0.5, explanation="no")), "x")
    assert list(score.parts.items()) == [("late", 1.0), ("good", 1.0), ("third", 0.5)]
    assert score.explanation == "late: late; third: no"


@pytest.mark.parametrize("make", [all_of, any_of])
@pytest.mark.parametrize("verdict", [good, bad])
def test_what_one_cannot_score_the_whole_cannot_whatever_the_others_say(
    judge: Judge, make: Callable[..., Any], verdict: Any
) -> None:
    with pytest.raises(Unscorable, match="no reference") as raised:
        judge(make(verdict, unscorable), "x")
    assert raised.value.cause == "verifier:reference:unscorable"
    with pytest.raises(Failure, match="KeyError: 'gone'") as failed:
        judge(make(verdict, unscorable, broken), "x")
    assert failed.value.cause == "verifier:broken"


def test_parts_run_at_once(judge: Judge) -> None:
    together = threading.Barrier(3, timeout=10)

    def wait(reply: str) -> bool:
        together.wait()
        return True

    assert judge(all_of(a=wait, b=wait, c=wait), "x").value == 1.0


def test_trouble_that_an_answer_provokes_in_one_part_is_worth_nothing_there(judge: Judge) -> None:
    def fragile(reply: str) -> float:
        return 1 / (1 - len(reply))

    score = judge(any_of(fragile, half), "x")
    assert score.value == 0.5
    assert "fragile: the verifier failed on this answer: ZeroDivisionError" in score.explanation


def test_a_sequence_stops_at_the_first_gate_that_is_closed(judge: Judge) -> None:
    asked: list[str] = []

    def dear(reply: str) -> float:
        asked.append(reply)
        return 0.7

    assert judge(sequence(good, half, dear), "x").value == 0.0
    assert asked == []
    assert judge(sequence(good, half, dear, pass_at=0.5), "x").value == 0.7
    score = judge(sequence(good, half, unscorable), "x")
    assert score.parts == {"good": 1.0, "half": 0.5}


def test_partial_credit_is_the_mean_over_all_of_a_sequence(judge: Judge) -> None:
    assert judge(sequence(good, half, a=good, b=good, partial=True), "x").value == 1.5 / 4
    assert judge(sequence(good, half, partial=True), "x").value == 1.5 / 2


def test_a_sequence_shares_the_time(judge: Judge) -> None:
    def sleepy(reply: str) -> bool:
        time.sleep(0.6 if reply else 0)
        return True

    started = time.perf_counter()
    score = judge(sequence(a=sleepy, b=sleepy), "x", timeout_s=1.0)
    assert score.value == 0.0
    assert time.perf_counter() - started < 5
    assert judge(sequence(a=sleepy, b=sleepy), "x", timeout_s=10.0).value == 1.0


def test_combinations_nest_and_keep_the_path_in_the_cause(judge: Judge) -> None:
    inner = all_of(good, broken)
    assert judge(any_of(sequence(good, half, pass_at=0.5), bad), "x").value == 0.5
    with pytest.raises(Failure) as raised:
        judge(Rubric(Part(good), Part(inner, name="inner")), "x")
    assert raised.value.cause == "verifier:broken:inner"


def test_a_combination_asks_for_what_its_parts_ask_for() -> None:
    def in_sandbox(sandbox: Sandbox, answer: str) -> bool:
        return True

    def anything(**available: Any) -> bool:
        return True

    combination = all_of(good, sequence(in_sandbox, number))
    check_verifier(combination)
    assert list(inspect.signature(combination).parameters) == ["answer", "reply", "sandbox"]
    # One that takes whatever there is does not make an environment start a sandbox.
    assert "sandbox" not in inspect.signature(all_of(anything)).parameters


def test_parts_in_the_sandbox_run_one_after_another(
    judge: Judge, new_sandbox: Callable[[], Sandbox]
) -> None:
    running: list[str] = []
    seen: list[list[str]] = []

    def part(name: str) -> Any:
        def look(sandbox: Sandbox) -> bool:
            running.append(name)
            sandbox.sync.run(["sleep", "0.05"])
            seen.append(list(running))
            running.remove(name)
            return True

        return look

    combination = all_of(a=part("a"), b=part("b"), c=part("c"))
    assert judge(combination, "x", sandbox=new_sandbox()).value == 1.0
    assert seen == [["a"], ["b"], ["c"]]


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: all_of(), "all_of needs at least one verifier"),
        (lambda: all_of(good, good), 'two parts of all_of are called "good": name one of them'),
        (
            lambda: any_of(good, "bad"),  # type: ignore[arg-type]
            "a verifier must be a function, got 'bad'",
        ),
        (lambda: sequence(lambda completion: 1), 'asks for "completion"'),
        (lambda: sequence(good, pass_at=0), "pass_at must be above 0 and at most 1, got 0"),
        (lambda: all_of(lambda episodes: [1]), "judges all episodes of a task together"),
    ],
)
def test_what_cannot_be_combined_is_refused(make: Callable[[], Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        make()
