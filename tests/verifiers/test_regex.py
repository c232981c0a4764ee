import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from palestra.types import Score, Unscorable
from palestra.verifiers import regex

Judge = Callable[..., Score]
BOMB = "(a|aa)+$"


@pytest.mark.parametrize(
    ("pattern", "reply", "value"),
    [
        (r"\d{4}-\d{2}", "2024-05", 1.0),
        (r"\d{4}-\d{2}", " 2024-05\n", 1.0),
        (r"\d{4}-\d{2}", "on 2024-05", 0.0),
        (r"yes|no", "yes no", 0.0),
        (r".*", "anything", 1.0),
        (r".*", "", 0.0),
        (r"", "x", None),
    ],
)
def test_the_whole_reply_has_to_match(
    judge: Judge, pattern: str, reply: str, value: float | None
) -> None:
    if value is None:
        with pytest.raises(Unscorable):
            judge(regex(), reply, pattern)
    else:
        assert judge(regex(), reply, pattern).value == value
        assert judge(regex(pattern), reply).value == value


def test_a_part_of_the_reply_may_match_where_that_is_asked_for(judge: Judge) -> None:
    assert judge(regex(r"2024", whole=False), "in 2024").value == 1.0
    assert judge(regex(r"x*", whole=False), " ").value == 0.0
    assert judge(regex(r"rome", ignore_case=True), "ROME").value == 1.0
    assert judge(regex(r"rome"), "ROME").value == 0.0


def test_a_reply_that_backtracks_for_ever_is_wrong_in_time(judge: Judge) -> None:
    started = time.perf_counter()
    score = judge(regex(BOMB, timeout_s=0.2), "a" * 100_000 + "b")
    assert (score.value, score.explanation) == (0.0, "no match found in 0.2 s")
    assert time.perf_counter() - started < 5


def test_other_threads_go_on_while_a_pattern_backtracks(judge: Judge) -> None:
    verdicts: list[float] = []
    slow = threading.Thread(
        target=lambda: verdicts.append(judge(regex(BOMB, timeout_s=2), "a" * 5_000 + "b").value)
    )
    slow.start()
    quick = judge(regex("x"), "x").value
    assert slow.is_alive()
    assert quick == 1.0
    slow.join()
    assert verdicts == [0.0]


@pytest.mark.parametrize("pattern", ["(", "[a", "(?P<", None, 42])
def test_a_reference_that_is_no_pattern_is_unscorable(judge: Judge, pattern: Any) -> None:
    for reply in ("", "x"):
        with pytest.raises(Unscorable, match=r"no regular expression|a pattern is a string"):
            judge(regex(), reply, pattern)


def test_a_pattern_that_does_not_compile_is_refused_early() -> None:
    with pytest.raises(ValueError, match=r"'\(' is no regular expression: missing \)"):
        regex("(")
