from typing import Any

import pytest

from palestra.types import Unscorable
from palestra.verifiers import normalized, token_f1


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("rome", "Rome"),
        ("Rome.", "rome"),
        ("The  Eiffel\nTower!", "eiffel tower"),
        ("a U.S. state", "us state"),
        ("Ｒｏｍｅ", "Rome"),
        ("Lisbon", ["Rome", "Lisbon"]),
        ("New York", ("NYC", "new york")),
    ],
)
def test_the_same_words_are_right(reply: str, answer: Any) -> None:
    assert normalized(reply, answer).value == 1.0
    assert token_f1(reply, answer).value == 1.0


@pytest.mark.parametrize("reply", ["", "the", " . ", "Roma", "Rome or Lisbon", "Rome Rome"])
def test_other_words_are_wrong(reply: str) -> None:
    assert normalized(reply, ["Rome", "Milan"]).value == 0.0


@pytest.mark.parametrize(
    ("reply", "f1"),
    [
        ("", 0.0),
        ("the", 0.0),
        ("blue", 0.0),
        ("eiffel", 2 / 3),
        ("the eiffel tower in paris", 4 / 6),
        ("tower tower", 2 / 4),
        ("eiffel tower", 1.0),
    ],
)
def test_token_f1_gives_partial_credit(reply: str, f1: float) -> None:
    assert token_f1(reply, ["the Eiffel Tower", "x y z"]).value == pytest.approx(f1)


@pytest.mark.parametrize("answer", [None, 42, "", "the", "!", [], ["Rome", None], ["Rome", "a"]])
def test_a_reference_without_words_is_unscorable(answer: Any) -> None:
    for verifier in (normalized, token_f1):
        for reply in ("", "Rome"):
            with pytest.raises(Unscorable, match="needs"):
                verifier(reply, answer)
