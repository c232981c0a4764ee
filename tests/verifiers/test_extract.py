import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from palestra.verifiers.extract import extract


@pytest.mark.parametrize(
    ("reply", "text", "how"),
    [
        ("so \\boxed{42}", "42", "box"),
        ("\\boxed{\\frac{1}{\\sqrt{2}}}", "\\frac{1}{\\sqrt{2}}", "box"),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}", "box"),
        ("\\boxed{\\text{a \\} b}}", "\\text{a \\} b}", "box"),
        ("\\boxed 7 and done", "7", "box"),
        ("\\fbox{8}", "8", "box"),
        ("$\\boxed{5}\\%$", "5 \\%", "box"),
        ("\\boxed{6}, no: \\boxed{7}", "7", "box"),
        ("<answer>3</answer> <answer> 4 </answer>", "4", "tag"),
        ("<answer>\\boxed{4}</answer>", "4", "box"),
        ("2+2=4\n#### 4", "4", "hashes"),
        ("#### 1\n#### 2\n", "2", "hashes"),
        ("The answer is 12.", "12", "stated"),
        ("The answer is $3.50 because it costs that.", "$3.50", "stated"),
        ("**Answer:** 5 apples", "5 apples", "stated"),
        ("The final answer is $\\frac{1}{2}$. I hope it is correct.", "$\\frac{1}{2}$", "stated"),
        ("答案：7", "7", "stated"),
        ("\\boxed{5}\n\nThe answer is 6.", "6", "stated"),
        ("\\boxed{5}\n\nThe answer is correct.", "5", "box"),
        ("The answer is not 5. The answer is 6", "6", "stated"),
        ("<think>\\boxed{1}</think>\\boxed{2}", "2", "box"),
        ("step one\nx = 3", "x = 3", "guessed"),
        ("0.333...", "0.333...", "guessed"),
    ],
)
def test_the_last_answer_is_found(reply: str, text: str, how: str) -> None:
    found = extract(reply)
    assert found is not None
    assert (found.text, found.how) == (text, how)


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "   \n",
        "\\boxed{3} then \\boxed{}",
        "\\boxed{3} then \\boxed{4",
        "<answer>3</answer><answer></answer>",
        "<answer>3",
        "<think>\\boxed{1}",
        "\\boxed",
    ],
)
def test_an_empty_or_cut_off_last_answer_is_none(reply: str) -> None:
    assert extract(reply) is None


@pytest.mark.parametrize(
    "joined", ["\\boxed{1}, \\boxed{2}", "\\boxed{1} or \\boxed{2}", "\\boxed{1}\n\\boxed{2}"]
)
def test_boxes_that_are_only_joined_are_one_list(joined: str) -> None:
    found = extract(joined)
    assert found is not None
    assert found.text == "1, 2"


def test_strict_mode_takes_marked_answers_only() -> None:
    assert extract("It must be 7.", strict=True) is None
    assert extract("It must be 7.") is not None
    assert extract("\\boxed{7}", strict=True) is not None


@pytest.mark.parametrize(
    "part",
    [
        "\\boxed{",
        "\\boxed{1}",
        "answer is ",
        "<answer>",
        "####",
        "<think>",
        "**",
        "$",
        "{",
        "\n",
        "1,",
    ],
)
def test_a_megabyte_is_read_in_linear_time(part: str) -> None:
    start = time.process_time()
    extract(part * (1_000_000 // len(part)))
    assert time.process_time() - start < 1.0  # a quadratic pass would take minutes


@given(st.text(alphabet=st.sampled_from("\\boxed{}<answer>/#$*. 1x\n")) | st.text())
def test_any_text_gives_an_answer_or_none(reply: str) -> None:
    found = extract(reply)
    assert found is None or isinstance(found.text, str)
