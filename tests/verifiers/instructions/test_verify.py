"""The verifier: where it finds instructions, how it scores, and what makes a task unscorable."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import pytest

from palestra.types import Score, Task, Unscorable
from palestra.verifiers import Part, Rubric, all_of, run_verifier
from palestra.verifiers.instructions import instructions
from palestra.verifiers.instructions.verify import loosened

PROMPT = "Write about Rome. Do not use any commas."
NO_COMMA = {"id": "punctuation:no_comma"}
ROME = {"id": "keywords:existence", "keywords": ["rome"]}
SHORT = {"id": "length_constraints:number_words", "num_words": 5, "relation": "less than"}


def judge(
    reply: str,
    info: Mapping[str, Any] | None = None,
    answer: Any = None,
    verifier: Any = None,
    prompt: str = PROMPT,
) -> Score:
    task = Task(
        id="t",
        messages=({"role": "user", "content": prompt},),
        answer=answer,
        info=info or {},
    )
    messages = [*task.messages, {"role": "assistant", "content": reply}]
    return asyncio.run(run_verifier(verifier or instructions(), task=task, messages=messages))


def test_all_instructions_have_to_be_followed() -> None:
    info = {"instructions": [NO_COMMA, ROME]}
    assert judge("Rome is old.", info).value == 1.0
    score = judge("Rome, it is old.", info)
    assert score.value == 0.0
    assert score.parts == {"punctuation:no_comma": 0.0, "keywords:existence": 1.0}
    assert score.explanation == "punctuation:no_comma: with a comma"


def test_partial_scoring_gives_the_share() -> None:
    info = {"instructions": [NO_COMMA, ROME, SHORT, NO_COMMA]}
    partial = instructions(partial=True)
    assert judge("Rome is old.", info, verifier=partial).value == 1.0
    assert judge("Paris is old.", info, verifier=partial).value == 0.75
    assert judge("Rome, that is what I wrote about.", info, verifier=partial).value == 0.25
    assert judge("", info, verifier=partial).value == 0.0


def test_an_id_that_comes_twice_counts_twice() -> None:
    at_least = {**SHORT, "num_words": 3, "relation": "at least"}
    score = judge("One two", {"instructions": [at_least, SHORT, SHORT]}, verifier=None)
    assert score.value == 0.0
    assert score.parts == {
        "length_constraints:number_words": 0.0,
        "length_constraints:number_words#2": 1.0,
        "length_constraints:number_words#3": 1.0,
    }


PUBLISHED = {
    "key": 1000,
    "instruction_id_list": ["punctuation:no_comma", "keywords:existence"],
    # Tables fill all columns: the arguments of other instructions are None.
    "kwargs": [{"keywords": None, "num_words": None}, {"keywords": ["rome"], "num_words": None}],
}
IF_RLVR = {
    "instruction_id": ["punctuation:no_comma", "keywords:existence"],
    "kwargs": [None, {"keywords": ["rome"]}],
}
SAME = [NO_COMMA, ROME]
AS_PUBLISHED: list[tuple[str, dict[str, Any], Any]] = [
    ("info", PUBLISHED, "an answer"),
    ("info instructions", {"instructions": PUBLISHED}, None),
    ("info instructions list", {"instructions": SAME}, "an answer"),
    ("answer list", {}, SAME),
    ("answer", {}, PUBLISHED),
    ("answer json", {}, json.dumps(PUBLISHED)),
    ("answer python", {}, str([IF_RLVR])),
    ("answer json in a list", {}, [json.dumps(IF_RLVR)]),
    ("answer json in a list in a text", {}, str([json.dumps(IF_RLVR)])),
    ("info if-rlvr", IF_RLVR, None),
    ("kwargs as text", {**PUBLISHED, "kwargs": json.dumps(PUBLISHED["kwargs"])}, None),
]


@pytest.mark.parametrize(
    ("info", "answer"), [(i, a) for _, i, a in AS_PUBLISHED], ids=[n for n, _, _ in AS_PUBLISHED]
)
def test_published_data_works_as_it_is(info: dict[str, Any], answer: Any) -> None:
    assert judge("Rome is old.", info, answer).value == 1.0
    assert judge("Rome, it is old.", info, answer).value == 0.0
    assert judge("Paris is old.", info, answer).value == 0.0


UNSCORABLE: list[tuple[dict[str, Any], Any, str]] = [
    ({}, None, "instructions needs"),
    ({}, "42", "instructions needs"),
    ({}, "not data", "got the text 'not data'"),
    ({"instructions": []}, None, "1 to 100 of them, got 0"),
    ({"instructions": [NO_COMMA] * 101}, None, "got 101"),
    ({"instructions": ["punctuation:no_comma"]}, None, "got the text"),
    ({"instructions": [{"ID": "x"}]}, None, "instructions needs"),
    (
        {"instructions": [{"id": "punctuation:no_coma"}]},
        None,
        'did you mean "punctuation:no_comma"',
    ),
    ({"instructions": [NO_COMMA, {"id": "keywords:existence"}]}, None, "needs keywords"),
    ({"instructions": [{**ROME, "keywords": []}]}, None, "must be a list"),
    ({"instructions": [{"id": "words:start_verb"}]}, None, "part-of-speech"),
    ({**PUBLISHED, "kwargs": [{}]}, None, "kwargs must be one dictionary per instruction"),
    ({**PUBLISHED, "kwargs": [{}, 3]}, None, "kwargs must be"),
    ({**PUBLISHED, "instruction_id_list": [1, 2]}, None, "must be a list of ids"),
    ({"instruction_id_list": ["keywords:existence"]}, None, "needs keywords"),
    ({}, "x" * 300_000, "more than 200,000 characters"),
    ({}, "[" * 100_000, "instructions needs"),
]


@pytest.mark.parametrize(("info", "answer", "message"), UNSCORABLE)
@pytest.mark.parametrize("reply", ["Rome is old.", ""])
def test_bad_instructions_are_unscorable_whatever_the_reply_is(
    info: dict[str, Any], answer: Any, message: str, reply: str
) -> None:
    with pytest.raises(Unscorable, match=message):
        judge(reply, info, answer)


def test_thinking_does_not_count() -> None:
    info = {"instructions": [NO_COMMA, ROME]}
    assert judge("<think>One, two, three.</think>Rome is old.", info).value == 1.0
    assert judge("<think>Rome.</think>Paris is old.", info).value == 0.0
    assert judge("<think>Rome is old.", info).value == 0.0


def test_an_echo_of_the_prompt_follows_nothing() -> None:
    info = {"instructions": [NO_COMMA]}
    for echo in (PROMPT, PROMPT.lower(), "Do not use any commas.", f"> {PROMPT}", PROMPT * 3):
        score = judge(echo, info)
        assert score.value == 0.0
        assert score.explanation == "punctuation:no_comma: the reply is an echo of the prompt"
    assert judge(f"{PROMPT} Rome is old.", info).value == 1.0
    assert judge("Commas.", info).value == 1.0


def test_to_rewrite_the_prompt_is_no_echo() -> None:
    prompt = "Rewrite in capitals:\nThe sky is blue, and so am I."
    info = {"instructions": [{"id": "change_case:english_capital"}]}
    assert judge("THE SKY IS BLUE, AND SO AM I.", info, prompt=prompt).value == 1.0
    prompt = "Rewrite without commas:\nThe sky is blue, and so am I."
    assert judge("The sky is blue and so am I.", {"instructions": [NO_COMMA]}, prompt=prompt).value


def test_a_task_to_repeat_allows_the_echo() -> None:
    copy = {"id": "copy:copy", "prompt_to_repeat": "Write about Rome."}
    info = {"instructions": [copy, NO_COMMA]}
    assert judge("Write about Rome.", info, prompt="Write about Rome.").value == 1.0
    assert judge("Write about Paris.", info, prompt="Write about Rome.").value == 0.0


def test_the_loose_reading_leaves_out_the_first_and_last_line_and_asterisks() -> None:
    info = {"instructions": [{"id": "detectable_format:json_format"}]}
    reply = 'Here you are:\n{"a": 1}\nAnything else?'
    loose = instructions(loose=True)
    assert judge(reply, info).value == 0.0
    assert judge(reply, info, verifier=loose).value == 1.0
    assert judge('{"a": 1}', info, verifier=loose).value == 1.0
    assert judge("Here you are:\n{'a': 1}", info, verifier=loose).value == 0.0
    quoted = {"instructions": [{"id": "startend:quotation"}]}
    assert judge('**"Rome is old."**', quoted).value == 0.0
    assert judge('**"Rome is old."**', quoted, verifier=loose).value == 1.0


def test_each_instruction_is_read_loosely_on_its_own() -> None:
    info = {"instructions": [NO_COMMA, {"id": "detectable_format:title"}]}
    reply = "Sure, here it is:\n<<Rome>>\nRome is old."
    assert judge(reply, info).parts == {
        "punctuation:no_comma": 0.0,
        "detectable_format:title": 1.0,
    }
    assert judge(reply, info, verifier=instructions(loose=True)).value == 1.0


def test_nothing_passes_loosely_that_says_nothing() -> None:
    info = {"instructions": [NO_COMMA]}
    for empty in ("", "***", "\n\n", ",\n***\n,", "a, b"):
        assert judge(empty, info, verifier=instructions(loose=True)).value == 0.0


def test_the_eight_readings_are_those_of_ifeval() -> None:
    assert loosened("a\n*b*\nc") == [
        "a\n*b*\nc",
        "*b*\nc",
        "a\n*b*",
        "*b*",
        "a\nb\nc",
        "b\nc",
        "a\nb",
        "b",
    ]
    assert loosened("a") == ["a", ""]


def test_it_goes_into_rubrics_and_combinators() -> None:
    info = {"instructions": [NO_COMMA, ROME]}
    rubric = Rubric(Part(instructions(partial=True)), Part(instructions(), 0, name="all"))
    score = judge("Paris is old.", info, verifier=rubric)
    assert score.value == 0.5
    assert score.parts == {"instructions": 0.5, "all": 0.0}
    assert judge("Rome is old.", info, verifier=all_of(instructions())).value == 1.0


def test_an_explanation_is_short_whatever_fails() -> None:
    info = {"instructions": [{**ROME, "keywords": ["x" * 5_000] * 50}] * 100}
    assert len(judge("Paris is old.", info).explanation) <= 900
