from collections.abc import Callable
from typing import Any

import pytest

from palestra.types import Score, Unscorable
from palestra.verifiers import list_f1

Judge = Callable[..., Score]
ANSWER = ["Rome", "Lisbon", "the Hague"]


@pytest.mark.parametrize(
    "reply",
    [
        "Rome, Lisbon, The Hague",
        "hague; lisbon; rome",
        "Rome, Lisbon and The Hague.",
        "Rome, Lisbon, and The Hague",
        "The answer is: Rome, Lisbon, The Hague",
        "- Rome\n- Lisbon\n- The Hague",
        "Here they are:\n1. Rome\n2. Lisbon\n3. The Hague\n",
        "Rome\nLisbon\nThe Hague",
        '["Rome", "Lisbon", "Hague"]',
        'So:\n```json\n["Lisbon", "Rome", "Hague"]\n```',
    ],
)
def test_the_items_are_read_from_any_kind_of_list(judge: Judge, reply: str) -> None:
    assert judge(list_f1(), reply, ANSWER).value == 1.0
    assert judge(list_f1(exact=True), reply, ANSWER).value == 1.0


@pytest.mark.parametrize(
    ("reply", "f1"),
    [
        ("", 0.0),
        ("Madrid", 0.0),
        ("Rome", 2 / 4),
        ("Rome, Madrid", 2 / 5),
        ("Rome, Rome, Rome", 2 / 6),
        ("Rome, Lisbon, Hague, Madrid", 6 / 7),
        ("[]", 0.0),
        ("[null, true, {}]", 0.0),
    ],
)
def test_f1_counts_what_is_missing_and_what_is_too_much(
    judge: Judge, reply: str, f1: float
) -> None:
    assert judge(list_f1(), reply, ANSWER).value == pytest.approx(f1)
    assert judge(list_f1(exact=True), reply, ANSWER).value == 0.0


def test_duplicates_count_unless_the_lists_are_sets(judge: Judge) -> None:
    assert judge(list_f1(), "a1, a1, b1", ["a1", "b1", "b1"]).value == pytest.approx(4 / 6)
    assert judge(list_f1(duplicates=False), "a1, a1, b1", ["a1", "b1", "b1"]).value == 1.0


def test_order_counts_where_it_is_asked_for(judge: Judge) -> None:
    ordered = list_f1(exact=True, ordered=True)
    assert judge(ordered, "3, 1, 2", [3, 1, 2]).value == 1.0
    assert judge(ordered, "1, 2, 3", [3, 1, 2]).value == 0.0


def test_numbers_are_compared_by_value(judge: Judge) -> None:
    exact = list_f1(exact=True)
    assert judge(exact, "[1.0, -2, 0.50]", [1, -2, 0.5]).value == 1.0
    assert judge(exact, "1, -2, 3.", ["1", "-2", "3"]).value == 1.0
    assert judge(exact, "1, 2, 3", ["1", "-2", "3"]).value == 0.0


def test_separators_inside_of_an_item_of_the_reference_do_not_separate(judge: Judge) -> None:
    answer = ["Paris, France", "salt and pepper"]
    assert judge(list_f1(), "salt and pepper; Paris, France", answer).value == 1.0
    assert judge(list_f1(), "- salt and pepper\n- Paris, France", answer).value == 1.0


def test_a_shotgun_of_items_is_worth_little(judge: Judge) -> None:
    reply = ", ".join(["Rome", "Lisbon", "Hague", *(f"city{i}" for i in range(300))])
    assert judge(list_f1(), reply, ANSWER).value < 0.02
    assert judge(list_f1(), ",".join(map(str, range(200_000))), ["7"]).value == 0.0


@pytest.mark.parametrize("answer", [None, "", "Rome", [], [None], ["Rome", ""], ["the"], {"a": 1}])
def test_a_reference_that_is_no_list_of_items_is_unscorable(judge: Judge, answer: Any) -> None:
    for reply in ("", "Rome"):
        with pytest.raises(Unscorable, match="list_f1 needs a list of texts or numbers"):
            judge(list_f1(), reply, answer)


def test_a_json_text_may_be_the_reference(judge: Judge) -> None:
    assert judge(list_f1(), "1, 2", "[1, 2]").value == 1.0


def test_order_without_equality_is_refused() -> None:
    with pytest.raises(ValueError, match="pass exact=True"):
        list_f1(ordered=True)
