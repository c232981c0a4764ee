import asyncio
import dataclasses
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from palestra.tools.sandboxes import SAFE, Guarantee, SandboxSpec, close_pools, pool_of
from palestra.types import Failure, Score, Task
from palestra.verifiers import run_verifier
from palestra.verifiers.code import code

CASES = {"cases": [{"input": "1", "output": "2"}]}
CALLS = {"function": "f", "calls": [{"args": [1], "expected": 2}]}
TESTS = {"tests": "assert f(1) == 2"}
RIGHT = "def f(x):\n    return x + 1\n\nif __name__ == '__main__':\n    print(f(int(input())))"
WRONG = "def f(x):\n    return x\n\nif __name__ == '__main__':\n    print(f(int(input())))"
SLOW = "import time\ntime.sleep(60)\ndef f(x):\n    return x"


async def verdict(verifier: Callable[..., Any], program: str, answer: Any) -> Score:
    prompt = {"role": "user", "content": "?"}
    messages = [prompt, {"role": "assistant", "content": program}]
    task = Task(id="t", messages=(prompt,), answer=answer)
    return await run_verifier(verifier, task=task, messages=messages)


@pytest.mark.parametrize("answer", [CASES, CALLS, TESTS], ids=["stdin", "calls", "tests"])
def test_without_a_sandbox_it_is_the_infrastructures_fault(answer: Any) -> None:
    spec = SandboxSpec(backend="namespace", packages=(), requires=SAFE | {Guarantee.OWN_KERNEL})
    for broken in (spec, SandboxSpec(backend="namespace", image="/nonexistent", warm=0)):
        with pytest.raises(Failure) as failure:
            asyncio.run(verdict(code(sandbox=broken), RIGHT, answer))
        assert failure.value.cause.startswith("sandbox")


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"style": "doctest"}, "unknown style"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"timeout_s": float("inf")}, "timeout_s"),
        ({"total_timeout_s": -1}, "total_timeout_s"),
        ({"tolerance": -1}, "tolerance"),
        ({"tolerance": float("nan")}, "tolerance"),
        ({"memory_mb": 1}, "memory_mb"),
    ],
)
def test_an_option_out_of_range_is_refused_at_once(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        code(**options)


def test_many_at_once_are_judged_as_one_by_one(spec: SandboxSpec) -> None:
    verifier = code(sandbox=spec, timeout_s=20.0)
    work = [(p, a) for a in (CASES, CALLS, TESTS) for p in (RIGHT, WRONG, "", RIGHT)] * 2
    expected = [float(program == RIGHT) for program, _ in work]

    async def together() -> list[float]:
        scores = await asyncio.gather(*(verdict(verifier, *one) for one in work))
        return [score.value for score in scores]

    assert asyncio.run(together()) == expected

    def alone(one: tuple[str, Any]) -> float:
        return asyncio.run(verdict(verifier, *one)).value

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(alone, work)) == expected
    assert pool_of(spec).counts()["taken"] == 0
    assert pool_of(spec).counts()["waiting"] == 0


@pytest.mark.parametrize("answer", [CASES, CALLS, TESTS], ids=["stdin", "calls", "tests"])
def test_who_gives_up_waiting_leaves_nothing_running(spec: SandboxSpec, answer: Any) -> None:
    spec = dataclasses.replace(spec, warm=0, max_live=1)
    verifier = code(sandbox=spec, timeout_s=60.0)

    async def give_up() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1.0):
                await verdict(verifier, SLOW, answer)
        assert pool_of(spec).counts()["taken"] == 0
        assert (await verdict(verifier, RIGHT, answer)).value == 1.0

    asyncio.run(give_up())


def test_pools_may_be_closed_between_two_verdicts(spec: SandboxSpec) -> None:
    verifier = code(sandbox=spec, timeout_s=20.0)
    for _ in range(2):
        assert asyncio.run(verdict(verifier, RIGHT, TESTS)).value == 1.0
        close_pools()
