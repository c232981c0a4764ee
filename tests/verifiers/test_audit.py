"""The audit of verifiers: each hole is found, and a sound verifier has none."""

import random
import threading
import time

import pytest

from palestra import verifiers
from palestra.types import Task, Unscorable
from palestra.verifiers.audit import assert_trustworthy, audit
from palestra.verifiers.probes import probes_of


def task(answer: str, prompt: str = "How much?") -> Task:
    return Task(id=answer, messages=({"role": "user", "content": prompt},), answer=answer)


NUMBERS = [task("42"), task("-7"), task("1234"), task("3/4"), task("0.25")]


def wrong_kinds(verifier: object, tasks: list[Task] = NUMBERS) -> set[str]:
    import asyncio

    found = asyncio.run(audit(verifier, tasks))  # type: ignore[arg-type]
    return {f.kind for f in found.findings if f.wrong and not f.is_right}


def test_exact_accepts_the_reference_and_nothing_else() -> None:
    found = assert_trustworthy(verifiers.exact, NUMBERS)
    assert found.false_positives == 0
    assert found.false_negatives > 0  # other forms of the same number


def test_a_verifier_that_is_paid_by_silence_is_found() -> None:
    def generous(reply: str, answer: str) -> bool:
        return reply in answer

    assert {"empty"} <= wrong_kinds(generous)


def test_a_verifier_that_looks_for_the_reference_anywhere_is_found() -> None:
    def contains(reply: str, answer: str) -> bool:
        return answer in reply

    assert {"shotgun", "hedged", "digit added"} <= wrong_kinds(contains)


def test_one_that_reads_the_first_digits_is_found() -> None:
    def starts_alike(reply: str, answer: str) -> bool:
        return bool(reply) and reply.strip().startswith(answer)

    assert "digit added" in wrong_kinds(starts_alike)


def test_one_that_changes_its_mind_is_found() -> None:
    draw = random.Random(0)

    def moody(reply: str, answer: str) -> bool:
        return reply == answer and draw.random() < 0.5

    with pytest.raises(AssertionError, match="changes its verdict on"):
        assert_trustworthy(moody, [task(str(n)) for n in range(100, 130)])


def test_one_that_works_in_the_main_thread_of_calls_only_is_found() -> None:
    lock = threading.Lock()
    state = {"reply": ""}

    def racy(reply: str, answer: str) -> bool:
        state["reply"] = reply
        time.sleep(0.001)
        with lock:
            return state["reply"] == answer

    with pytest.raises(AssertionError, match="otherwise from threads"):
        assert_trustworthy(racy, NUMBERS)


def test_one_that_breaks_and_one_without_verdict_are_told_apart() -> None:
    def broken(reply: str, answer: str) -> bool:
        raise KeyError(answer)

    def referenceless(reply: str, answer: str) -> bool:
        raise Unscorable("no")

    with pytest.raises(AssertionError, match=r"breaks on 5 of 5 \(reference\)"):
        assert_trustworthy(broken, NUMBERS)
    with pytest.raises(AssertionError, match=r"gives no verdict on 5 of 5 \(reference\)"):
        assert_trustworthy(referenceless, NUMBERS)


def test_no_wrong_probe_is_right() -> None:
    tasks = [*NUMBERS, task("Paris"), task("x + 1"), task("0"), task("True")]
    for one in tasks:
        for probe in probes_of(one):
            if not probe.is_right:
                assert probe.reply.strip() != one.answer, probe.kind


def test_probes_are_the_same_every_time() -> None:
    assert probes_of(task("Paris")) == probes_of(task("Paris"))


def test_an_audit_without_tasks_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one task"):
        assert_trustworthy(verifiers.number, [])
