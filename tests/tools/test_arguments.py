import contextlib
import datetime
import json
from typing import Any, Literal

import jsonschema
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palestra.tools import tool
from palestra.tools.problems import BadArguments


class Point(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")
    x: int
    y: float = 0.0


class Even(pydantic.BaseModel):
    n: int

    @pydantic.field_validator("n")
    @classmethod
    def _even(cls, n: int) -> int:
        if n % 2:
            raise ValueError("only even numbers")
        return n


@tool
def add(a: int, b: int, scale: float = 1.0) -> float:
    """Add two integers."""
    return (a + b) * scale


@tool
def draw(
    points: list[Point],
    color: Literal["red", "blue"] = "red",
    label: str | int | None = None,
    even: Even | None = None,
) -> int:
    """Draw a polygon."""
    return len(points)


def complaint(decorated: Any, text: str) -> str:
    with pytest.raises(BadArguments) as raised:
        decorated.arguments.parse(text)
    return str(raised.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": 1}', 'missing argument "b" (integer)'),
        ('{"a": 1, "b": 2, "x": 3}', 'unexpected argument "x"; add takes a, b, scale'),
        ('{"a": "seven", "b": 2}', 'argument "a" should be an integer, got "seven"'),
        ('{"a": "7", "b": 2}', 'argument "a" should be an integer, got "7"'),
        ('{"a": 7.0, "b": 2}', 'argument "a" should be an integer, got 7.0'),
        ('{"a": true, "b": 2}', 'argument "a" should be an integer, got true'),
        ('{"a": null, "b": 2}', 'argument "a" should be an integer, got null'),
        ('{"a": 1, "b": 2, "scale": NaN}', 'argument "scale" should be a finite number, got NaN'),
        ('{"a": 1, "b": 2, "scale": 1e999}', 'argument "scale" should be a finite number, got Inf'),
    ],
)
def test_each_problem_is_one_readable_line(text: str, expected: str) -> None:
    assert complaint(add, text).startswith(expected)
    assert "\n" not in complaint(add, text)


def test_several_problems_are_several_lines() -> None:
    assert complaint(add, '{"b": [], "c": 1}').splitlines() == [
        'missing argument "a" (integer)',
        'argument "b" should be an integer, got []',
        'unexpected argument "c"; add takes a, b, scale',
    ]


def test_a_hundred_problems_are_nine_lines() -> None:
    text = json.dumps({"points": [{"x": "?"}] * 100})
    lines = complaint(draw, text).splitlines()
    assert (len(lines), lines[-1]) == (9, "and 92 more problems")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            '{"points": [{"x": 1}, {"x": "?"}]}',
            'argument "points[1].x" should be an integer, got "?"',
        ),
        ('{"points": [{}]}', 'missing "x" in argument "points[0]"'),
        ('{"points": [{"x": 1, "z": 1}]}', 'unexpected "z" in argument "points[0]"'),
        (
            '{"points": [], "color": "green"}',
            "argument \"color\" should be 'red' or 'blue', got \"green\"",
        ),
        (
            '{"points": [], "label": []}',
            'argument "label" should be a string or an integer, got []',
        ),
        ('{"points": [], "even": {"n": 3}}', 'argument "even.n": only even numbers, got 3'),
        ('{"points": 3}', 'argument "points" should be an array, got 3'),
    ],
)
def test_problems_inside_an_argument_say_where(text: str, expected: str) -> None:
    assert complaint(draw, text) == expected


def test_a_long_value_is_not_repeated_in_full() -> None:
    assert len(complaint(add, json.dumps({"a": "x" * 10_000, "b": 1}))) < 200


@pytest.mark.parametrize(
    "text",
    ["{", "[1, 2]", "3", '"{}"', "nope", '{"a": ' + "[" * 100_000, '{"a": "\\ud800"}', "\ud800"],
)
def test_what_is_no_json_object_is_bad_json(text: str) -> None:
    with pytest.raises(BadArguments) as raised:
        add.arguments.parse(text)
    assert raised.value.kind == "bad_json"
    assert len(str(raised.value)) < 200


def test_a_number_of_ten_thousand_digits_is_refused() -> None:
    assert "number" in complaint(add, '{"a": ' + "9" * 10_000 + ', "b": 1}')


@pytest.mark.parametrize("text", ["", " \n", "{}"])
def test_no_arguments_may_be_written_as_nothing(text: str) -> None:
    @tool
    def now() -> int:
        return 0

    assert now.arguments.parse(text) == {}


def test_absent_arguments_are_left_to_the_function() -> None:
    assert add.arguments.parse('{"a": 1, "b": 2}') == {"a": 1, "b": 2}


def test_json_becomes_the_annotated_types() -> None:
    @tool
    def f(when: datetime.date, pair: tuple[int, str], chosen: set[int], at: Point) -> None: ...

    text = '{"when": "2026-11-24", "pair": [1, "a"], "chosen": [1, 1], "at": {"x": 1, "y": 2}}'
    assert f.arguments.parse(text) == {
        "when": datetime.date(2026, 11, 24),
        "pair": (1, "a"),
        "chosen": {1},
        "at": Point(x=1, y=2.0),
    }


def test_an_integer_is_a_number() -> None:
    assert add.arguments.parse('{"a": 1, "b": 2, "scale": 3}')["scale"] == 3.0


_scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
_points = st.dictionaries(st.sampled_from(["x", "y", "z"]), _scalars, max_size=3)
_arguments: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {},
    optional={
        "points": st.lists(_points | st.builds(dict, x=st.integers()), max_size=3),
        "color": st.sampled_from(["red", "blue", "green"]) | _scalars,
        "label": _scalars,
        "even": st.builds(dict, n=_scalars) | st.none(),
        "other": _scalars,
    },
)


@settings(deadline=None)  # the machine is shared
@given(_arguments)
def test_what_is_accepted_fits_the_schema_that_the_model_was_shown(given_: dict[str, Any]) -> None:
    text = json.dumps(given_)
    with contextlib.suppress(BadArguments):
        draw.arguments.parse(text)
        jsonschema.validate(json.loads(text), {**draw.parameters, "additionalProperties": False})


@settings(deadline=None)  # the machine is shared
@given(
    st.text()
    | st.recursive(_scalars, lambda x: st.lists(x) | st.dictionaries(st.text(), x)).map(json.dumps)
)
def test_any_text_is_parsed_or_refused(text: str) -> None:
    with contextlib.suppress(BadArguments):
        assert "points" in draw.arguments.parse(text)
