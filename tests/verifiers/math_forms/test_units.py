from fractions import Fraction

import pytest

from palestra.verifiers.math_forms.units import read_unit, same_kind


@pytest.mark.parametrize(
    ("one", "two", "ratio"),
    [
        ("km", "m", 1000),
        ("m / s", "km per hour", Fraction(18, 5)),
        ("square meters", "cm^2", 10_000),
        ("liters", "cubic centimeters", 1000),
        ("miles", "feet", 5280),
        ("hours", "minutes", 60),
        ("dollars", "cents", 100),
        ("inches", "in", 1),
    ],
)
def test_units_convert_exactly(one: str, two: str, ratio: int | Fraction) -> None:
    first, second = read_unit(one), read_unit(two)
    assert same_kind(first, second)
    assert first.factor / second.factor == ratio


@pytest.mark.parametrize(
    ("one", "two"),
    [("m", "m^2"), ("km/h", "km"), ("apples", "oranges"), ("dollars", "euro"), ("m", "apples")],
)
def test_other_units_do_not(one: str, two: str) -> None:
    assert not same_kind(read_unit(one), read_unit(two))


def test_words_are_units_in_any_number_and_with_adjectives() -> None:
    assert same_kind(read_unit("red apples"), read_unit("apple"))
