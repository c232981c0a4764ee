"""Every verifier: nothing passes on empty output, no reply hangs, crashes or is blamed on us."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palestra import verifiers
from palestra.tools import State
from palestra.types import Message, Score, Task
from palestra.verifiers import Part, Rubric, all_of, any_of, run_verifier, sequence

MEGABYTE = 1_000_000


class Case(NamedTuple):
    verifier: Any
    right: str  # a reply that is right
    answer: Any


def cases(database: Path) -> dict[str, Case]:
    v = verifiers
    return {
        "number": Case(v.number, "42", "42"),
        "close_to": Case(v.close_to(relative=0.1), "42", "42"),
        "exact": Case(v.exact, "Rome", "Rome"),
        "normalized": Case(v.normalized, "rome", "Rome"),
        "token_f1": Case(v.token_f1, "rome", "Rome"),
        "choice": Case(v.choice, "B", "B"),
        "regex": Case(v.regex(".*", timeout_s=1), "x", None),
        "regex_search": Case(v.regex("x*", whole=False, timeout_s=1), "x", None),
        "list_f1": Case(v.list_f1(), "a1, b1", ["a1", "b1"]),
        "json_schema": Case(v.json_schema({}), "{}", None),
        "json_schema_slow": Case(v.json_schema({"pattern": "(a|b)*"}), "{}", None),
        "json_fields": Case(v.json_fields(), '{"a": 1}', {"a": 1}),
        "sql": Case(v.sql(database), "SELECT 1", "SELECT a FROM t"),
        "tool_calls": Case(v.tool_calls(), "none", []),
        "think_answer_format": Case(
            v.think_answer_format, "<think>a</think><answer>b</answer>", None
        ),
        "repetition_penalty": Case(v.repetition_penalty(), "a b c d", None),
        "language_consistency": Case(v.language_consistency(), "some words", None),
        "all_of": Case(all_of(v.number, v.exact), "42", "42"),
        "any_of": Case(any_of(v.number, v.exact), "42", "42"),
        "sequence": Case(sequence(v.number, v.exact), "42", "42"),
        "rubric": Case(Rubric(Part(v.number), Part(v.exact, 0.5)), "42", "42"),
    }


# Checked elsewhere: they need a sandbox, a state or calls (test_state_checks.py), or whole episodes
# (test_shaping.py), or are what the others are made with.
ELSEWHERE = {
    "acted", "on_file", "table_equals", "state_equals", "tool_call_count", "overlong_penalty",
    "length_reward", "tool_call_cost", "verifier", "Part", "Rubric", "run_verifier",
    "check_verifier", "Score", "Unscorable", "code", "math",
    "instructions",
    "judge", "judge_rubric", "Item", "judge_pairwise", "measure_judge", "measure_pairwise_judge",
    "JudgedReply", "JudgedPair",
}  # fmt: skip
NAMES = list(cases(Path("unused")))

HOSTILE = {
    "space": " \t\n" * 1_000,
    "nul": "\0" * 1_000,
    "surrogates": "\ud800\udfff" * 1_000,
    "right_to_left": "\u202e42\u202c" * 100,
    "controls": "".join(map(chr, range(32))) * 100,
    "combining": "a" + "\u0301" * 100_000,
    "zalgo_digits": "4\u03362" * 10_000,
    "megabyte": "a" * MEGABYTE,
    "words": "ab " * (MEGABYTE // 3),
    "lines": "\n" * MEGABYTE,
    "digits": "9" * MEGABYTE,
    "brackets": "[" * MEGABYTE,
    "braces": "{" * MEGABYTE,
    "closed": "[" * 50_000 + "]" * 50_000,
    "fences": "```json\n" * 100_000,
    "commas": "," * MEGABYTE,
    "quotes": "\"'" * (MEGABYTE // 2),
    "tags": "<think>" * 100_000 + "<answer>" * 10_000,
    "boxes": "\\boxed{" * 100_000,
    "phrases": "the answer is " * 60_000,
    "options": "A or B and C, D / " * 50_000,
    "spaced_phrase": "answer" + " " * MEGABYTE + ": B",
    "semicolons": "'" + ";" * 90_000,
    "bullets": "- a\n" * 200_000,
    "power": "9**9**9**9 1e999999999 1e-999999999",
    "object": json.dumps({str(i): i for i in range(50_000)}),
    "deep_object": '{"a":' * 5_000 + "1" + "}" * 5_000,
    "many_words": " ".join(map(str, range(150_000))),
}


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    path = tmp_path_factory.mktemp("sql") / "a.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript("CREATE TABLE t (a INT); INSERT INTO t VALUES (1)")
    return cases(path)


async def judge(case: Case, reply: str) -> Score:
    message: Message = {"role": "assistant", "content": reply}
    task = Task(id="t", messages=(), answer=case.answer)
    return await run_verifier(case.verifier, task=task, messages=[message], state=State())


def test_every_public_verifier_is_attacked_here_or_elsewhere() -> None:
    missing = set(verifiers.__all__) - ELSEWHERE - set(NAMES)
    assert not missing, "add to `cases`, or to ELSEWHERE with the file that attacks them"


@pytest.mark.parametrize("name", NAMES)
def test_a_right_reply_passes_and_an_empty_one_never_does(
    known: dict[str, Case], name: str
) -> None:
    assert asyncio.run(judge(known[name], known[name].right)).value == 1.0
    for empty in ("", " ", "\n\t \u00a0\u200b", "\0", "\ufeff"):
        assert asyncio.run(judge(known[name], empty)).value == 0.0, ascii(empty)


@pytest.mark.parametrize("name", NAMES)
def test_hostile_replies_are_scored_in_bounded_time(known: dict[str, Case], name: str) -> None:
    for kind, reply in HOSTILE.items():
        started = time.perf_counter()
        score = asyncio.run(judge(known[name], reply))
        assert time.perf_counter() - started < 30, kind
        assert len(score.explanation) < 1_000, kind
        score.explanation.encode("utf-8", "backslashreplace")


@pytest.mark.parametrize(
    "name", [name for name in NAMES if name not in ("sql", "json_schema_slow")]
)
@settings(max_examples=60, deadline=None)
@given(reply=st.text(alphabet=st.characters(), max_size=60))
def test_any_text_is_scored(known: dict[str, Case], name: str, reply: str) -> None:
    assert 0.0 <= asyncio.run(judge(known[name], reply)).value <= 1.0


def test_threads_and_tasks_agree_with_one_at_a_time(known: dict[str, Case]) -> None:
    work = [
        (case, reply)
        for case in known.values()
        for reply in (case.right, "", "42", "B", '{"a": 2}', "SELECT 2", "some words here")
    ] * 3
    one_by_one = [asyncio.run(judge(case, reply)) for case, reply in work[: len(work) // 3]] * 3

    async def at_once() -> list[Score]:
        return await asyncio.gather(*(judge(case, reply) for case, reply in work))

    def in_thread(item: tuple[Case, str]) -> Score:
        return asyncio.run(judge(*item))

    assert asyncio.run(at_once()) == one_by_one
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(in_thread, work)) == one_by_one


def test_no_verifier_changes_what_it_is_given(known: dict[str, Case]) -> None:
    for case in known.values():
        before = json.dumps([case.answer, case.right])
        asyncio.run(judge(case, case.right))
        assert json.dumps([case.answer, case.right]) == before
