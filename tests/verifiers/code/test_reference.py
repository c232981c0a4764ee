import json
from typing import Any

import pytest

from palestra.types import Unscorable
from palestra.verifiers.code.reference import Suite, read_reference

CASES = {"cases": [{"input": "1", "output": "2"}]}
CALLS = {"function": "f", "calls": [{"args": [1], "expected": 2}]}
TESTS = {"tests": "assert f(1) == 2"}


def suite_of(**answer: Any) -> Suite:
    suite = read_reference(answer, "auto").suite
    assert suite is not None
    return suite


@pytest.mark.parametrize(
    ("answer", "style", "problem"),
    [
        (None, "auto", "mapping"),
        ("def check(", "auto", "JSON"),
        ([], "auto", "mapping"),
        ({}, "auto", "needs cases, calls or tests"),
        ({**CASES, **TESTS}, "auto", "needs cases, calls or tests"),
        (CASES, "calls", "needs calls"),
        (CALLS, "stdin", "needs cases"),
        (CALLS, "pytest", "needs tests"),
        ({"cases": [{"input": "1"}]}, "auto", "a case is"),
        ({"cases": [{"input": 1, "output": "1"}]}, "auto", "a case is"),
        ({"cases": "1"}, "auto", "is a list"),
        ({"calls": [{"args": [], "expected": 1}]}, "auto", 'need a "function"'),
        ({"function": "f", "calls": [{"args": [1]}]}, "auto", "a call is"),
        ({"function": "f", "calls": [{"args": 1, "expected": 1}]}, "auto", "plain data"),
        ({"function": "f", "calls": [{"args": [], "expected": object()}]}, "auto", "plain data"),
        ({"tests": "assert f(1) =="}, "auto", "do not parse"),
        ({"tests": "assert f(1)", "entry_point": 1}, "auto", "is a text"),
        ({"tests": "assert f(1)", "module": "a/b"}, "auto", "name of a module"),
    ],
)
def test_an_answer_in_no_form_is_unscorable(answer: Any, style: str, problem: str) -> None:
    with pytest.raises(Unscorable, match=problem):
        read_reference(answer, style)


def test_an_answer_may_be_json() -> None:
    assert read_reference(json.dumps(CASES), "auto").cases[0].output == "2"
    assert read_reference(CALLS, "auto").calls[0].expected == 2


@pytest.mark.parametrize(
    ("tests", "runner"),
    [
        ("assert f(1) == 2", "asserts"),
        ("def check(candidate):\n    assert candidate(1) == 2", "asserts"),
        (
            "import unittest\nfrom solution import f\nclass T(unittest.TestCase):\n    pass",
            "unittest",
        ),
        ("from solution import f\ndef test_f():\n    assert f(1) == 2", "pytest"),
        ("import pytest\nfrom solution import f\nclass TestF:\n    pass", "pytest"),
    ],
)
def test_the_runner_is_told_from_the_source(tests: str, runner: str) -> None:
    assert suite_of(tests=tests, entry_point="f").runner == runner


def test_names_that_nothing_defines_are_those_of_the_program() -> None:
    tests = "import math\ndef g(x):\n    return x\nassert f(g(1)) == math.pi == h(len([]))"
    assert suite_of(tests=tests).names == ("f", "h")
    assert suite_of(tests=tests, setup="def h(x):\n    return x").names == ("f",)
    assert suite_of(tests="from solution import f\nassert f(1)").names == ()


def test_with_an_entry_point_the_program_has_no_say_in_other_names() -> None:
    tests = "def check(candidate):\n    assert helper(candidate(1)) == 2"
    prompt = "def helper(x):\n    return x\n\ndef f(x):\n    '''f'''\n"
    with pytest.raises(Unscorable, match="the tests use helper"):
        suite_of(tests=tests, entry_point="f")
    assert suite_of(tests=tests, entry_point="f", prompt=prompt).names == ("f",)
    headless = "def helper(x):\n    return x\n\ndef f(x):\n"
    assert suite_of(tests=tests, entry_point="f", prompt=headless).names == ("f",)


def test_a_method_is_named_with_or_without_parentheses() -> None:
    tests = "def check(candidate):\n    assert candidate(1) == 2"
    reference = read_reference({"tests": tests, "entry_point": "Solution().f"}, "auto")
    assert reference.entry_point == "Solution.f"
