import copy
import enum
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pydantic
import pytest

from palestra.tools import State, Tool, tool


class Unit(enum.Enum):
    CELSIUS = "c"
    FAHRENHEIT = "f"


class Point(pydantic.BaseModel):
    """A place."""

    x: int
    title: str = "here"


class Line(pydantic.BaseModel):
    start: Point
    end: Point = pydantic.Field(description="where it ends")


class Tree(pydantic.BaseModel):
    value: int
    children: list["Tree"] = []


@dataclass
class Size:
    width: float
    height: float


class Basket(State):
    def __init__(self) -> None:
        self.items: list[str] = []


@tool
def add(a: int, b: int) -> int:
    """Add two integers."""
    return a + b


def properties(decorated: Tool) -> dict[str, Any]:
    found: dict[str, Any] = decorated.parameters["properties"]
    return found


def test_the_schema_of_a_plain_tool_is_openais() -> None:
    assert add.schema() == {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Add two integers.",
            "parameters": {
                "type": "object",
                "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}},
                "required": ["a", "b"],
            },
        },
    }


def test_a_tool_called_directly_is_its_function() -> None:
    assert add(1, 2) == 3
    assert add(a=1, b=2) == 3
    assert add.__name__ == "add"


def google(city: str, days: int = 3) -> str:
    """Forecast the weather.

    Rain is given in millimetres.

    Args:
        city: Where,
            in English.
        days (int): How many days.

    Returns:
        A table.
    """
    return city * days


def numpy(city: str, days: int = 3) -> str:
    """Forecast the weather.

    Rain is given in millimetres.

    Parameters
    ----------
    city : str
        Where,
        in English.
    days : int, optional
        How many days.

    Returns
    -------
    str
        A table.
    """
    return city * days


def rest(city: str, days: int = 3) -> str:
    """Forecast the weather.

    Rain is given in millimetres.

    :param city: Where,
        in English.
    :param int days: How many days.
    :returns: A table.
    """
    return city * days


@pytest.mark.parametrize("function", [google, numpy, rest])
def test_three_docstring_styles_give_one_schema(function: Callable[..., str]) -> None:
    decorated = tool(function)
    assert decorated.description == "Forecast the weather.\n\nRain is given in millimetres."
    assert decorated.parameters == {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "Where, in English."},
            "days": {"type": "integer", "description": "How many days.", "default": 3},
        },
        "required": ["city"],
    }


def test_a_description_in_the_annotation_wins_over_the_docstring() -> None:
    @tool
    def f(a: Annotated[int, pydantic.Field(description="from here", ge=1)]) -> int:
        """F.

        Args:
            a: from there
        """
        return a

    assert properties(f)["a"] == {"type": "integer", "minimum": 1, "description": "from here"}


def test_enums_literals_unions_lists_and_dicts_are_described() -> None:
    @tool
    def f(
        unit: Unit,
        mode: Literal["a", "b"],
        limit: int | None = None,
        either: int | str = 0,
        names: list[str] | None = None,
        counts: dict[str, float] = {},  # noqa: B006
        default: Unit = Unit.CELSIUS,
    ) -> None: ...

    integer, string, null = {"type": "integer"}, {"type": "string"}, {"type": "null"}
    assert properties(f) == {
        "unit": {"type": "string", "enum": ["c", "f"]},
        "mode": {"type": "string", "enum": ["a", "b"]},
        "limit": {"anyOf": [integer, null]},
        "either": {"anyOf": [integer, string], "default": 0},
        "names": {"anyOf": [{"type": "array", "items": string}, null]},
        "counts": {"type": "object", "additionalProperties": {"type": "number"}, "default": {}},
        "default": {"type": "string", "enum": ["c", "f"], "default": "c"},
    }
    assert f.parameters["required"] == ["unit", "mode"]


def test_nested_models_are_put_where_they_are_used_without_titles_of_types() -> None:
    @tool
    def draw(line: Line, size: Size) -> None: ...

    # The property called "title" is not a title.
    point = {
        "type": "object",
        "description": "A place.",
        "properties": {"x": {"type": "integer"}, "title": {"type": "string", "default": "here"}},
        "required": ["x"],
    }
    assert properties(draw)["line"]["properties"] == {
        "start": point,
        "end": {**point, "description": "where it ends"},
    }
    assert properties(draw)["size"]["required"] == ["width", "height"]
    assert "$" not in str(draw.parameters)


def test_a_recursive_model_keeps_its_definition() -> None:
    @tool
    def grow(tree: Tree) -> None: ...

    assert properties(grow) == {"tree": {"$ref": "#/$defs/Tree"}}
    assert grow.parameters["$defs"]["Tree"]["properties"]["children"]["items"] == {
        "$ref": "#/$defs/Tree"
    }


def test_names_that_pydantic_models_refuse_are_fine_for_parameters() -> None:
    @tool
    def f(schema: int, copy: int, _private: int, model_config: int) -> int:
        return schema

    assert list(properties(f)) == ["schema", "copy", "_private", "model_config"]
    assert f.arguments.parse('{"schema":1,"copy":2,"_private":3,"model_config":4}')["_private"] == 3


def test_a_tool_without_parameters_has_an_empty_object() -> None:
    @tool
    def now() -> str:
        return "late"

    assert now.parameters == {"type": "object", "properties": {}}


def test_hidden_parameters_are_absent_from_the_schema() -> None:
    @tool
    def put(item: str, basket: Basket, state: State) -> None: ...

    assert list(properties(put)) == ["item"]
    assert put.hidden == {"basket": Basket, "state": State}


def test_options_override_what_the_function_says() -> None:
    @tool(name="plus", description="Sum.", timeout_s=2.5)
    def f(a: int) -> int:
        """Not this."""
        return a

    assert (f.name, f.description, f.timeout_s) == ("plus", "Sum.", 2.5)


def test_a_copy_of_a_tool_is_the_tool() -> None:
    assert copy.deepcopy({"tools": [add]})["tools"][0] is add
    assert copy.copy(add) is add


def test_a_module_level_tool_pickles_by_name() -> None:
    assert pickle.loads(pickle.dumps(add)) is add


def test_a_tool_made_of_a_module_level_function_pickles_with_its_options() -> None:
    made = tool(name="weather", timeout_s=3.0)(google)
    copied = pickle.loads(pickle.dumps(made))
    assert (copied.name, copied.timeout_s, copied.function) == ("weather", 3.0, google)


def test_a_bound_method_can_be_a_tool() -> None:
    class Adder:
        def __init__(self, amount: int) -> None:
            self.amount = amount

        def shift(self, a: int) -> int:
            """Shift a number."""
            return a + self.amount

    shift = tool(Adder(3).shift)
    assert (list(properties(shift)), shift(4)) == (["a"], 7)


def unannotated(a) -> int:  # type: ignore[no-untyped-def]
    return int(a)


def variadic(*numbers: int) -> None: ...


def keywords(**numbers: int) -> None: ...


def positional(a: int, /) -> None: ...


def method(self, a: int) -> None: ...  # type: ignore[no-untyped-def]


def undefined(other: "Nowhere") -> None: ...  # type: ignore[name-defined]  # noqa: F821


class Opaque: ...


def not_json(a: int, callback: Opaque) -> None: ...


def not_known(a: object, lock: Basket | Callable[[int], int]) -> None: ...


def field_default(a: int = pydantic.Field(3)) -> None: ...


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (unannotated, r'parameter "a" of tool unannotated has no type annotation: write e.g. `a:'),
        (variadic, r'variadic cannot take "\*numbers: int": take a list instead'),
        (keywords, r'keywords cannot take "\*\*numbers: int": take a dict'),
        (positional, r'positional cannot take "a: int": remove the `/`'),
        (method, r'parameter "self" of tool method .* takes `state: State`'),
        (
            undefined,
            "'Nowhere' is not defined in the annotations of tool undefined: .* module level",
        ),
        (not_json, r'parameter "callback" of tool not_json .* use plain types'),
        (not_known, r'parameter "lock" of tool not_known .* use plain types'),
        (field_default, r"has a Field as its default: write `a: Annotated"),
    ],
)
def test_a_parameter_that_a_model_cannot_pass_is_refused_with_a_remedy(
    function: Callable[..., Any], expected: str
) -> None:
    with pytest.raises(ValueError, match=expected):
        tool(function)


def generator() -> Any:
    yield 1


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: tool(name="no spaces")(google), "cannot be a tool's name"),
        (lambda: tool(lambda: 3), r"cannot be a tool's name.*@tool\(name="),
        (lambda: tool(timeout_s=0)(google), "timeout_s of tool google must be a positive"),
        (lambda: tool(timeout_s=float("nan"))(google), "timeout_s .* got nan"),
        (lambda: tool(memory_mb=0)(google), "memory_mb of tool google must be at least 1, got 0"),
        (lambda: tool(generator), "is a generator: return a list"),
        (lambda: tool(isolated=True)(holds_state), 'isolated tool holds_state cannot take "state"'),
        (lambda: tool(isolated=True, name="f")(lambda: 3), "must be defined at module level"),
    ],
)
def test_an_impossible_option_is_refused_with_a_remedy(
    make: Callable[[], object], expected: str
) -> None:
    with pytest.raises(ValueError, match=expected):
        make()


def holds_state(state: State) -> None: ...


def test_a_missing_attribute_of_the_state_is_named() -> None:
    with pytest.raises(AttributeError, match=r"Basket has no 'size': set it first"):
        _ = Basket().size


def test_a_tool_with_other_options_is_another_tool() -> None:
    quick = add.with_options(timeout_s=1.5, name="plus")
    assert (quick.name, quick.timeout_s, quick.description) == ("plus", 1.5, add.description)
    assert (add.name, add.timeout_s) == ("add", 30.0)
    assert quick(1, 2) == 3
    with pytest.raises(ValueError, match="a tool has no option timeout: it has name, description"):
        add.with_options(timeout=1)
