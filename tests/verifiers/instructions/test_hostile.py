"""Every constraint on hostile replies: it ends, says why, and never raises; the same in threads."""

from __future__ import annotations

import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palestra.verifiers.instructions import KINDS, Constraint
from palestra.verifiers.instructions.reply import MAX_CHARS

CONSTRAINTS = {
    case["id"]: Constraint(case["id"], case.get("arguments", {}))
    for path in sorted((Path(__file__).parent / "examples").glob("*.toml"))
    for case in tomllib.loads(path.read_text(encoding="utf-8"))["case"]
}
PIECES = (
    " \t\n", "\0", "\ud800\udfff", "\u202e4\u202c", "\u0301", "a\u0301\u0316", "a", "ab ",
    "a. ", "a.a.", "P. ", "Dr. ", "1. a\n", "- a\n", "* a\n - b\n", "x\n", "x\n\n", "9",
    "1,", "[", "([{", "[a] ", "[a](b)", "```json\n", "``` ", ",", "\"' ", "?\" ", ".", "*",
    "* ", "*a ", "a*", "***\n", "******", "a-", "a'", "_a", "<<a ", "<<a>>", "<i>a", "<a>",
    "😀", "😀\u200d", "👍🏽. ", "你", "你。", "ねこ ", "हिन्दी ", "ß", "İ ", "ABC ", "|-",
    "|a|b|\n|-|-|\n", "# a\n", "Section 1\n", "P.S. a\n", "\\(", "\\[", "$a", "http://",
    "Question 1: a\nA) b\n", "สวัสดี ", "The cat, Dr. Who. Is it? ",
)  # fmt: skip


def hostile(length: int) -> list[str]:
    floods = [(piece * (length // len(piece) + 1))[:length] for piece in PIECES]
    half = length // 2
    return [
        *floods,
        "." * (length - 1) + "x",
        "a." * half + "ab",
        "(" * half + ")" * half,
        '"' + " " * (length - 2) + "x",
        "x" + "\n" * (length - 2) + "x",
        "x." + " " * (length - 3) + "x",
        "{" + '"a":[' * (half // 3) + "1",
    ]


def test_all_kinds_are_attacked() -> None:
    assert set(CONSTRAINTS) == set(KINDS)


@pytest.mark.parametrize("id", CONSTRAINTS)
def test_a_flood_is_judged(id: str) -> None:
    for reply in hostile(3_000):
        verdict = CONSTRAINTS[id].check(reply)
        assert verdict.passed == (verdict.explanation == "")
        assert len(verdict.explanation) <= 200


@pytest.mark.slow
@pytest.mark.parametrize("id", CONSTRAINTS)
def test_a_flood_of_the_greatest_length_is_judged(id: str) -> None:
    for reply in hostile(MAX_CHARS):
        CONSTRAINTS[id].check(reply)
    for reply in hostile(1_000_000):
        assert not CONSTRAINTS[id].check(reply)


@settings(max_examples=150, deadline=None)
@given(
    reply=st.one_of(
        st.text(max_size=80),
        st.lists(st.sampled_from(PIECES), max_size=25).map("".join),
    )
)
def test_any_text_is_judged_and_judged_the_same_again(reply: str) -> None:
    for constraint in CONSTRAINTS.values():
        verdict = constraint.check(reply)
        assert constraint.check(reply) == verdict
        verdict.explanation.encode("utf-8", "backslashreplace")
        if not any(c.isalnum() or (c.isprintable() and not c.isspace()) for c in reply):
            assert not verdict


def test_threads_agree_with_one_at_a_time() -> None:
    work = [(c, reply) for c in CONSTRAINTS.values() for reply in hostile(60)]
    one_by_one = [constraint.check(reply) for constraint, reply in work]
    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(lambda item: item[0].check(item[1]), work)) == one_by_one
