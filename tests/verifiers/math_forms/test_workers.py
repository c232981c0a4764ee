import time

import pytest

from palestra.verifiers.math_forms.workers import Exhausted, is_costly, judge_by_sympy


def judged(reference: str, answer: str) -> str:
    return judge_by_sympy(reference, answer, deadline=time.monotonic() + 60)


def test_sympy_judges_what_the_parser_does_not_know() -> None:
    assert judged("\\int_0^1 x^2 dx", "\\frac{1}{3}") == "equal"
    assert judged("\\int_0^1 x^2 dx", "\\frac{1}{2}") == "unequal"
    assert judged("\\lim_{x \\to 0} \\frac{\\sin x}{x}", "1") == "equal"


def test_it_says_which_side_cannot_be_read() -> None:
    assert judged("\\frac{", "1") == "bad reference"
    assert judged("1", "\\frac{") == "bad answer"


def test_too_much_work_ends_with_the_worker_and_the_next_call_has_another() -> None:
    with pytest.raises(Exhausted):
        judged("1", "\\sum_{k=1}^{100000000} \\frac{\\sin k}{k^2}")
    assert judged("1", "1") == "equal"


@pytest.mark.parametrize("text", ["9^{9^9}", "\\int x^{123456} dx", "\\int " * 9, "x" * 1000])
def test_answers_that_look_costly_are_told(text: str) -> None:
    assert is_costly(text)


def test_ordinary_integrals_do_not_look_costly() -> None:
    assert not is_costly("\\int_0^{\\infty} e^{-x^2} \\, dx = \\frac{\\sqrt{\\pi}}{2}")
