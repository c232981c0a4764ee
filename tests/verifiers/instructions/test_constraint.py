"""Every constraint by example: what follows it, what nearly does, what is empty or an echo."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from palestra.verifiers.instructions import KINDS, Constraint


class Case(NamedTuple):
    constraint: Constraint
    yes: list[str]
    no: list[str]


def read_cases() -> list[Case]:
    found = []
    for path in sorted((Path(__file__).parent / "examples").glob("*.toml")):
        for case in tomllib.loads(path.read_text(encoding="utf-8"))["case"]:
            constraint = Constraint(case["id"], case.get("arguments", {}))
            found.append(Case(constraint, case["yes"], case["no"]))
    return found


CASES = read_cases()
IDS = [case.constraint.id for case in CASES]
by_case = pytest.mark.parametrize("case", CASES, ids=IDS)


def test_every_constraint_has_examples() -> None:
    assert set(IDS) == set(KINDS)
    assert len(KINDS) >= 40
    for id in KINDS:
        cases = [case for case in CASES if case.constraint.id == id]
        assert sum(len(case.yes) for case in cases) >= 2, id
        assert sum(len(case.no) for case in cases) >= 2, id


@by_case
def test_what_follows_an_instruction_passes(case: Case) -> None:
    for reply in case.yes:
        verdict = case.constraint.check(reply)
        assert verdict, (reply, verdict.explanation)
        assert verdict.explanation == ""


@by_case
def test_what_nearly_follows_it_fails_and_says_why(case: Case) -> None:
    for reply in case.no:
        verdict = case.constraint.check(reply)
        assert not verdict, reply
        assert verdict.explanation and len(verdict.explanation) <= 200


@by_case
@pytest.mark.parametrize(
    "empty", ["", " ", "\n\t \u00a0\u200b", "\0", "\ufeff", ".", "***", "...\n\n---", "\u0301"]
)
def test_nothing_passes_that_says_nothing(case: Case, empty: str) -> None:
    assert not case.constraint.check(empty)


@by_case
def test_an_echo_of_the_prompt_follows_nothing_but_an_instruction_to_repeat(case: Case) -> None:
    for reply in case.yes:
        if not case.constraint.may_echo:
            assert not case.constraint.check(reply, prompts=[reply])
            assert not case.constraint.check(reply.upper(), prompts=[reply])
        else:
            assert case.constraint.check(reply, prompts=[reply])


@by_case
def test_a_prompt_around_the_answer_does_not_make_it_an_echo(case: Case) -> None:
    prompt = "Is there a way to do this well? I should like to know in the end, please: now"
    for reply in case.yes:
        assert case.constraint.check(reply, prompts=[prompt])


@by_case
def test_a_reply_that_is_too_long_follows_nothing(case: Case) -> None:
    verdict = case.constraint.check(case.yes[0] + " " * 200_000 + "x")
    assert not verdict
    assert "more than 200,000 characters" in verdict.explanation


@by_case
def test_windows_line_ends_do_not_matter(case: Case) -> None:
    for reply in case.yes:
        assert case.constraint.check(reply.replace("\n", "\r\n"))


BAD: list[tuple[str, dict[str, Any], str]] = [
    (
        "keywords:existance",
        {},
        'unknown instruction "keywords:existance": did you mean "keywords:e',
    ),
    ("nothing like it", {}, 'unknown instruction "nothing like it"$'),
    ("words:start_verb", {}, "cannot be checked here: it needs a part-of-speech tagger"),
    ("keywords:existence", {}, 'instruction "keywords:existence" needs keywords'),
    ("keywords:existence", {"keywords": None}, "needs keywords"),
    ("keywords:existence", {"keywords": []}, "keywords of .* must be a list of 1 to 1,000 texts"),
    ("keywords:existence", {"keywords": "rome"}, "must be a list .*, got 'rome'"),
    ("keywords:existence", {"keywords": ["a", " "]}, "must be a text of 1 to"),
    ("keywords:existence", {"keyword": ["a"]}, 'takes keywords, not "keyword": did you mean "key'),
    ("punctuation:no_comma", {"N": 1}, 'takes no arguments, not "N"'),
    ("keywords:letter_frequency", {"letter": "ab"}, "needs let_frequency, let_relation"),
    (
        "keywords:letter_frequency",
        {"letter": "ab", "let_frequency": 1, "let_relation": "at least"},
        "letter of .* must be one letter or other character, got 'ab'",
    ),
    (
        "length_constraints:number_words",
        {"num_words": 5, "relation": "about"},
        "relation of .* must be one of at least, .*, got 'about'",
    ),
    ("count:numbers", {"N": -1}, "N of .* must be a whole number from 0 to 1,000,000, got -1"),
    ("count:numbers", {"N": 1.5}, "whole number"),
    ("count:numbers", {"N": True}, "whole number"),
    ("count:numbers", {"N": "3"}, "whole number"),
    ("count:numbers", {"N": float("nan")}, "whole number"),
    ("count:numbers", {"N": float("inf")}, "whole number"),
    ("count:numbers", {"count": 3}, 'takes N, relation, not "count"'),
    ("ratio:stop_words", {"percentage": 101}, "a percentage from 0 to 100, got 101"),
    ("language:response_language", {"language": "xx"}, "must be a language that is told apart"),
    ("count:word_count_range", {"min_words": 9, "max_words": 8}, "at least 9 and at most 8 words"),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 3, "first_word": "a"},
        "cannot be followed: 2 paragraphs have no paragraph 3",
    ),
    (
        "repeat:repeat_span",
        {"prompt_to_repeat": "one two", "n_start": 2, "n_end": 4},
        "the request has no words from 2 to 4",
    ),
    (
        "new:copy_span_idx",
        {"prompt_to_repeat": "one", "n_start": 2, "n_end": 1},
        "the request has no characters from 2 to 1",
    ),
    ("copy:repeat_phrase", {"phrase": "one two", "small_n": 2}, "has fewer than three words"),
    ("detectable_format:xml", {"tag": "a b"}, '"a b" is no name of an XML element'),
    (
        "length_constraints:number_words",
        {"num_words": 0, "relation": "less than"},
        "no count is less than 0",
    ),
    ("words:palindrome", {"count": 1}, 'takes no arguments, not "count"'),
]


@pytest.mark.parametrize(("id", "arguments", "message"), BAD)
def test_a_bad_constraint_is_refused_by_name(
    id: str, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        Constraint(id, arguments)
    assert "\n" not in str(error.value)


def test_arguments_that_are_none_are_left_out() -> None:
    assert Constraint("punctuation:no_comma", {"N": None}) == Constraint("punctuation:no_comma")
