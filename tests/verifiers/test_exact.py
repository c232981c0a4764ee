from typing import Any

import pytest

from palestra.types import Unscorable
from palestra.verifiers import exact


@pytest.mark.parametrize(("reply", "answer"), [("Rome", "Rome"), (" Rome\n", "Rome")])
def test_equal_text_is_right(reply: str, answer: str) -> None:
    assert exact(reply, answer).value == 1.0


@pytest.mark.parametrize(("reply", "answer"), [("rome", "Rome"), ("Rome.", "Rome"), ("", "Rome")])
def test_any_other_text_is_wrong(reply: str, answer: str) -> None:
    score = exact(reply, answer)
    assert (score.value, score.explanation) == (0.0, "the reply is not exactly 'Rome'")


@pytest.mark.parametrize("answer", [None, 42, ["Rome"], "", " \n"])
def test_a_reference_that_is_no_text_or_blank_is_unscorable(answer: Any) -> None:
    for reply in ("Rome", ""):
        with pytest.raises(Unscorable, match="exact needs a string as the task's answer, got"):
            exact(reply, answer)
