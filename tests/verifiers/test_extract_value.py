import pytest

from palestra.verifiers.extract_value import first_sentence, last_number, last_value, trimmed


@pytest.mark.parametrize(
    ("sentence", "value"),
    [
        ("She has 5 apples and pays $12.50", "$12.50"),
        ("so the total is 42 apples", "42 apples"),
        ("we get $x = 3$ at last", "x = 3"),
        ("The cubes are 1331 and 1728", "1331 and 1728"),
        ("numbers 19, 46, and 82", "19, 46, and 82"),
        ("3 then \\(y\\)", "y"),
        ("nothing here", None),
    ],
)
def test_the_last_value_of_a_sentence_is_found(sentence: str, value: str | None) -> None:
    assert last_value(sentence) == value


def test_the_last_number_is_given_without_separators() -> None:
    assert last_number("from 3 to 1,234.5 km") == "1234.5"
    assert last_number("none") is None


def test_a_sentence_ends_outside_of_formulas_and_numbers() -> None:
    assert first_sentence("$x. y$ and 1.5. Next") == "$x. y$ and 1.5"
    assert first_sentence("5\nmore") == "5"


def test_reasons_and_markup_are_left_out() -> None:
    assert trimmed("**12 apples**, because 3*4 is 12.") == "12 apples"
