import asyncio
import contextlib
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from palestra.types import Unscorable
from palestra.verifiers.math import TIMEOUT_S, clear_caches, equal, math
from palestra.verifiers.math_forms.workers import LIMIT_S, close_workers

REFERENCES = ["42", "\\sqrt{2}", "x^2+1", "(1,2)", "x>3", "\\{1,2\\}", "y=2x+1", "B", "\\text{yes}"]
HOSTILE = [
    "9^" * 500 + "9",
    "9^{" * 39 + "9" + "}" * 39,
    "(" * 100_000 + "1" + ")" * 100_000,
    "\\sqrt{" * 39 + "2" + "}" * 39,
    "1/" * 700 + "2",
    "5" + "!" * 700,
    "1000000!",
    "2^{1000000}",
    "1e999999",
    "\\binom{1000000}{500000}",
    "\\sin(10^{5000})",
    "0." + "1" * 5_000,
    "9" * 1_000_000,
    "\\boxed{" * 100_000,
    "1," * 500_000,
    "a " * 500_000,
    " " * 1_000_000,
    "=1" * 2_000,
    "\\frac12" * 800,
    "\\frac" * 1_000 + "1",
    "\\sqrt" * 1_000 + "2",
    "\\sin " * 1_000 + "x",
    "-" * 1_000 + "1",
    "2^" * 1_000 + "1",
    "|" * 1_000 + "x" + "|" * 1_000,
    "x_" * 1_000 + "1",
    "\\log_" * 1_000 + "1",
    "\\{x \\mid " * 300,
    "1 \\pm " * 200 + "1",
    "(0,1)\\cup" * 200 + "(1,2)",
    "+".join(f"x^{{{n}}}" for n in range(300)),
    "+".join(f"\\sin {n}x" for n in range(300)),
    ",".join(f"\\sqrt{{{n}}}" for n in range(300)),
    "\\text{" + "a" * 5_000,
    "x" * 5_000,
    "\u202e\u200f42\ufeff\x00\x1b[31m",
    "\ud7ff\uffff" * 100,
    "\\sum_{k=1}^{10000000} \\frac{1}{k^2}",
    "\\int " * 100 + "x",
    "$" * 10_001,
]


@pytest.mark.parametrize("answer", HOSTILE, ids=lambda answer: repr(answer[:16]))
def test_a_hostile_answer_is_wrong_at_once(answer: str) -> None:
    start = time.process_time()
    for reference in REFERENCES:
        for reply in (answer, f"\\boxed{{{answer}}}", f"The answer is {answer}."):
            assert math(reply, reference).value == 0.0
    assert time.process_time() - start < 5.0  # 27 comparisons


def test_a_call_ends_by_its_limit() -> None:
    # What sympy computes for ever, and looks harmless.
    answer = "\\int_0^1 \\sin(x^x) \\ln(1+\\tan(x^{x+1})) dx"
    math("1/3", "\\int_0^1 x^2 dx")  # the worker has started
    start = time.monotonic()
    assert math(answer, "\\int_0^1 x^3 dx").value == 0.0
    assert time.monotonic() - start < TIMEOUT_S + 1.0  # 0.1 on a machine that is not shared
    assert LIMIT_S < TIMEOUT_S
    # The worker that was killed is replaced.
    assert equal("\\int_0^1 x^4 dx", "1/5")


def test_workers_that_were_closed_are_gone() -> None:
    def workers() -> set[str]:
        tasks = Path(f"/proc/{os.getpid()}/task").iterdir()
        children = [pid for task in tasks for pid in (task / "children").read_text().split()]
        return {pid for pid in children if "isolation_worker" in read_command(pid)}

    close_workers()
    others = workers()  # idle workers of isolated tools
    assert equal("\\int_0^1 x^5 dx", "1/6")
    close_workers()
    assert workers() <= others


def read_command(pid: str) -> str:
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""


def verdict(pair: dict[str, str]) -> float | None:
    try:
        return math(pair["answer"], pair["gold"]).value
    except Unscorable:
        return None


def test_threads_and_asyncio_agree_with_a_serial_run() -> None:
    data = Path(__file__).parent / "data" / "math_pairs.jsonl"
    pairs = [json.loads(line) for line in data.read_text().splitlines()]
    pairs = (pairs + pairs)[:1000]
    clear_caches()
    serial = [verdict(pair) for pair in pairs]
    clear_caches()
    with ThreadPoolExecutor(32) as pool:
        assert list(pool.map(verdict, pairs)) == serial
    clear_caches()

    async def gather() -> list[float | None]:
        return list(await asyncio.gather(*[asyncio.to_thread(verdict, pair) for pair in pairs]))

    assert asyncio.run(gather()) == serial
