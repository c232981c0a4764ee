from collections.abc import Callable
from typing import Any

import pytest

from palestra.types import Score, Unscorable
from palestra.verifiers import choice

Judge = Callable[..., Score]


@pytest.mark.parametrize(
    "reply",
    [
        "B",
        "b",
        "(B)",
        "**B**",
        "B.",
        "B) Paris",
        "B. Vitamin C",
        "(B) A good plan",
        "The answer is B.",
        "The answer is (B) Paris.",
        "The correct answer is: **B) Paris**",
        "Answer: B",
        "**Answer:** B",
        "**Answer: (B)**",
        "Answer: B) 5 m/s",
        "answer is\nB",
        "the answer is b",
        "\\boxed{B}",
        "\\boxed{\\text{B}}",
        "The final answer is $\\boxed{\\textbf{(B)}}$.",
        "<answer>B</answer>",
        "<answer>\n(B)\n</answer>",
        "Let me think.\nB) because it is",
        "The answer is B because A is too small.",
        "The answer is B, not C",
        "The answer is not A, the answer is B",
        "The answer is A. Wait, no. The answer is B.",
        "So option C is wrong.\nThe best choice is B",
        "Answer: B\n\nExplanation: A is wrong.",
        "A and C are wrong.\nB is the answer.",
        "I considered A, B, C and D. " * 100 + "\nThe answer is B.",
    ],
)
def test_the_letter_counts_in_any_dress(judge: Judge, reply: str) -> None:
    assert judge(choice, reply, "B").value == 1.0
    assert judge(choice, reply, "C").value == 0.0


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "   \n",
        "A or B",
        "Answer: A, B",
        "Answer: A/B",
        "The answer is A or B",
        "The answer is either A or B",
        "The answer is A and B",
        "ABCD",
        "A B C D",
        "A, B, C, D",
        "\\boxed{A} \\boxed{B} \\boxed{C} \\boxed{D}",
        "\\boxed{A} \\boxed{C} \\boxed{D} \\boxed{B}",
        "The answer is C. The answer is D. The answer is A. The answer is B.",
        "\\boxed{A",
        "\\boxed{}",
        "The answer is not A",
        "The answer is not B",
        "The answer is A. No, the answer is not A.",
        "A good question",
        "The answer is a good question",
        "I choose the one above",
        "Paris",
        "answer",
        "The answer is Ａ",
    ],
)
def test_what_settles_on_no_single_letter_is_wrong(judge: Judge, reply: str) -> None:
    for letter in ("A", "B"):
        assert judge(choice, reply, letter).value == 0.0


@pytest.mark.parametrize(
    "reply", ["A, C", "A and C", "(C) and (A)", "Answer: A, C", "\\boxed{A,C}"]
)
@pytest.mark.parametrize("answer", ["AC", "A, C", ["C", "A"], "A C"])
def test_several_letters_are_right_where_they_are_the_reference(
    judge: Judge, reply: str, answer: Any
) -> None:
    assert judge(choice, reply, answer).value == 1.0
    assert judge(choice, "A", answer).value == 0.0
    assert judge(choice, "A, B, C", answer).value == 0.0


@pytest.mark.parametrize("answer", ["b", "(B)", "B.", ["B"], " B "])
def test_the_reference_may_be_dressed_too(judge: Judge, answer: Any) -> None:
    assert judge(choice, "B", answer).value == 1.0


@pytest.mark.parametrize("answer", [None, "", "Paris", 1, [], ["B", "Paris"], "E", "BA"])
def test_a_reference_that_is_no_letter_of_the_options_is_unscorable(
    judge: Judge, answer: Any
) -> None:
    for reply in ("B", ""):
        with pytest.raises(Unscorable, match="choice needs a letter from A to D"):
            judge(choice, reply, answer, choices=["w", "x", "y", "z"])
