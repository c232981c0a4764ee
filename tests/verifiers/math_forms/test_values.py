from fractions import Fraction

import pytest

from palestra.verifiers.math_forms.exact import NotRational, rational
from palestra.verifiers.math_forms.statements import parse
from palestra.verifiers.math_forms.tree import Number, TooLarge, Undefined, Unreadable
from palestra.verifiers.math_forms.values import rounds_to, same_value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2+3*4", 14),
        ("-2^2", -4),
        ("2^{-1}", Fraction(1, 2)),
        ("\\frac{1}{2}+\\frac13", Fraction(5, 6)),
        ("\\sqrt{\\frac{9}{4}}", Fraction(3, 2)),
        ("\\sqrt[3]{-8}", -2),
        ("5!", 120),
        ("\\binom{5}{2}", 10),
        ("\\log_2 8", 3),
        ("\\lfloor 2.7 \\rfloor", 2),
        ("|-3|", 3),
        ("\\gcd(12, 18)", 6),
    ],
)
def test_rational_constants_are_computed_exactly(text: str, value: int | Fraction) -> None:
    assert rational(parse(text)) == value


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("1/0", Undefined),
        ("0^0", Undefined),
        ("\\sqrt2", NotRational),
        ("x", NotRational),
        ("9^{9^9}", TooLarge),
        ("100000!", TooLarge),
    ],
)
def test_what_has_no_exact_value_says_why(text: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        rational(parse(text))


@pytest.mark.parametrize(
    "text",
    [
        "1 2",
        "(1",
        "1)",
        "\\frac{1}",
        "2^",
        "x^2^{",
        "\\foo",
        "1 +",
        "4 10/3",
        "--1",
        "(" * 100 + "1" + ")" * 100,
        "1/" * 200 + "1",
        "\\begin{pmatrix}1&2\\\\3\\end{pmatrix}",
    ],
)
def test_what_is_no_mathematics_is_unreadable(text: str) -> None:
    with pytest.raises(Unreadable):
        parse(text)


def test_functions_are_told_apart_where_they_differ_little() -> None:
    assert not same_value(parse("\\sin x"), parse("\\sin x + 10^{-40}"))
    assert not same_value(parse("x^{100}"), parse("x^{100} + 10^{-90} x"))
    assert not same_value(parse("e^{x}"), parse("e^{x}(1+10^{-60})"))
    assert same_value(parse("\\sin x"), parse("\\cos(\\frac{\\pi}{2} - x)"))


def test_functions_agree_where_both_are_defined() -> None:
    assert same_value(parse("\\ln x^3"), parse("3\\ln x"))
    assert same_value(parse("\\frac{x^2-4}{x-2}"), parse("x+2"))
    assert not same_value(parse("\\frac{1}{x-x}"), parse("\\frac{1}{x-x}+1"))


def test_a_decimal_rounds_at_its_own_precision() -> None:
    pi = parse("\\pi")
    assert rounds_to(Number(Fraction(314, 100), 3, 2), pi)
    assert not rounds_to(Number(Fraction(315, 100), 3, 2), pi)
    assert rounds_to(Number(Fraction(3141, 1000), 4, 3), pi, cut=True)
