import pytest

from palestra.verifiers.code.program import program_in, readings

PROMPT = 'def add(a, b):\n    """Add two numbers."""\n'


def block(content: str, language: str = "python") -> str:
    return f"```{language}\n{content}\n```"


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("x = 1", "x = 1"),
        (f"Here it is:\n{block('x = 1')}\nDone.", "x = 1"),
        (block("x = 1", "Python"), "x = 1"),
        (block("x = 1", "{.python}"), "x = 1"),
        ("~~~py\nx = 1\n~~~", "x = 1"),
        ("````python\n```\n````", "```"),
        # A block of another kind after the program is its output, most likely.
        (f"{block('x = 1')}\nIt prints:\n{block('1', '')}", "x = 1"),
        (f"{block('1', 'text')}\n{block('x = 1', '')}", "x = 1"),
        (f"{block('x = 1')}\n{block('x = 2')}", "x = 2"),
        ("<think>\n" + block("x = 1") + "\n</think>\n" + block("x = 2"), "x = 2"),
        # None at all, or one that was cut off.
        ("", None),
        (" \n\t", None),
        (block(""), None),
        (block("1", "text"), None),
        ("```python\nx = 1\n", None),
        (f"{block('x = 1')}\n```python\nx = ", None),
        ("<think>\n" + block("x = 1"), None),
        ("x" * 1_000_000, None),
    ],
)
def test_the_program_is_the_last_python_block_or_the_whole_reply(
    reply: str, expected: str | None
) -> None:
    assert program_in(reply) == expected


def test_an_example_of_use_may_follow_the_definition() -> None:
    reply = block("def add(a, b):\n    return a + b") + "\nFor example:\n" + block("add(1, 2)")
    assert program_in(reply, "add") == "def add(a, b):\n    return a + b"
    assert program_in(reply, "Solution.add") == "add(1, 2)"


def test_indentation_is_kept_for_a_program_that_goes_on_from_a_prompt() -> None:
    assert program_in("    return a + b", "add") == "    return a + b"


@pytest.mark.parametrize(
    "completion",
    [
        "    c = a + b\n    return c\n",
        "c = a + b\n    return c\n",  # the first indentation was stripped
        "c = a + b\nreturn c\n",
        "def add(a, b):\n    return a + b\n",
        "from __future__ import annotations\ndef add(a: A, b):\n    return a + b\n",
    ],
)
def test_a_completion_is_read_in_the_first_way_that_compiles(completion: str) -> None:
    for source in readings(completion, PROMPT):
        try:
            program = compile(source, "test", "exec", dont_inherit=True)
        except SyntaxError:
            continue
        namespace: dict[str, object] = {}
        exec(program, namespace)
        break
    else:
        pytest.fail("no reading compiles")
    assert namespace["add"](1, 2) == 3  # type: ignore[operator]


def test_without_a_prompt_a_program_has_one_reading() -> None:
    assert readings("x = 1", "") == ["x = 1"]
