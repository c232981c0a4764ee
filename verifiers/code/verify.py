"""`code`: the reply is a program that passes the task's tests."""

from __future__ import annotations

import hashlib
import math
import os
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from palestra.tools.sandboxes import Limits, SandboxSpec
from palestra.types import Score, Unscorable
from palestra.verifiers.code.calls import run_calls
from palestra.verifiers.code.limits import CodeLimits
from palestra.verifiers.code.program import program_in, readings
from palestra.verifiers.code.reference import STYLES, Reference, read_reference
from palestra.verifiers.code.stdio import run_cases
from palestra.verifiers.code.suites import run_suite
from palestra.verifiers.code.verdict import Fault, Verdict
from palestra.verifiers.isolated import QUEUE_TIMEOUT_S
from palestra.verifiers.verifier import verifier

OUTPUT_BYTES = 4 << 20
_CACHED_SOLUTIONS = 4096


def code(
    *,
    style: str = "auto",
    timeout_s: float = 5.0,
    total_timeout_s: float = 60.0,
    memory_mb: int = 512,
    partial: bool = False,
    tolerance: float = 1e-9,
    strict_tuples: bool = False,
    sandbox: SandboxSpec | None = None,
) -> Callable[..., Any]:
    """A verifier: 1 if the reply's program passes the tests in the task's answer.

    The answer is a mapping, or its JSON, in one of these forms ("style"):

        {"cases": [{"input": "1 2\\n", "output": "3\\n"}, ...]}                        # stdin
        {"function": "add", "calls": [{"args": [1, 2], "expected": 3}, ...]}          # calls
        {"tests": "def check(candidate): ...", "entry_point": "add", "prompt": ...}   # asserts
        {"tests": ["assert add(1, 2) == 3", ...], "setup": "import math"}             # asserts
        {"tests": "import unittest\\nfrom solution import add\\n..."}                   # unittest
        {"tests": "from solution import add\\ndef test_add(): ..."}                    # pytest

    Each may have "prompt", code that the program may go on from, and "solution", a program that has
    to pass: where it does not, the task is unscorable. A function may be "Solution.add", a method.
    Test files import the module "solution" (or "module"), or use the program's names as they are.

    The program runs in a fresh sandbox of its own. Expected values stay in this process, and tests
    that are code run in another sandbox, to which the program gives nothing but plain values (None,
    numbers, texts, bytes, lists, tuples, sets, dictionaries); its other objects stay where they
    are, can be called and looked into from there, and equal nothing. Arguments pass by value: what
    the program changes in them, the tests do not see. Tests that pass functions or objects of their
    own to the program are unscorable.

    `timeout_s` is for one case or call, `total_timeout_s` for all tests together; the time that
    tests take by themselves counts, too. `tolerance` is for floats, relative and absolute, where
    this process compares (cases and calls); tuples are lists there unless `strict_tuples`. With
    `partial` the value is the share of tests that pass. `sandbox` replaces the default one, and
    `memory_mb` with it; its tests in pytest's style need the package there.

    Raises:
        ValueError: an unknown style, or a number out of range.
    """
    if style not in STYLES:
        raise ValueError(f'unknown style "{style}": use {", ".join(STYLES)}')
    for name, number in {"timeout_s": timeout_s, "total_timeout_s": total_timeout_s}.items():
        if not 0 < number < math.inf:
            raise ValueError(f"{name} must be a positive number of seconds, got {number}")
    if not 0 <= tolerance < 1:
        raise ValueError(f"tolerance must be at least 0 and less than 1, got {tolerance}")
    limits = CodeLimits(
        spec=_default_spec(memory_mb) if sandbox is None else sandbox,
        timeout_s=timeout_s,
        total_timeout_s=total_timeout_s,
        tolerance=tolerance,
        strict_tuples=strict_tuples,
        stop_early=not partial,
    )
    sound: OrderedDict[bytes, Verdict] = OrderedDict()

    async def check_solution(reference: Reference, answer: Any) -> None:
        """Raise Unscorable if the reference's own solution fails."""
        if not reference.solution:
            return
        key = hashlib.sha256(repr(answer).encode("utf-8", "replace")).digest()
        verdict = sound.get(key)
        if verdict is None:
            verdict = await _run(reference.solution, reference, limits)
            if verdict.fault is not Fault.TIMEOUT:  # the next time it may be quicker
                sound[key] = verdict
            while len(sound) > _CACHED_SOLUTIONS:
                sound.popitem(last=False)
        if verdict.fault is not None:
            said = verdict.score(partial=False).explanation
            raise Unscorable(f"the tests fail on the reference's own solution: {said}")

    # Waiting for a sandbox is not the program's time, which has limits of its own.
    @verifier(name="code", timeout_s=QUEUE_TIMEOUT_S)
    async def passes_tests(reply: str, answer: Any) -> Score:
        """1 if the program passes. Raises Unscorable for tests that are at fault themselves."""
        reference = read_reference(answer, style)
        program = program_in(reply, reference.entry_point)
        if program is None:
            verdict = Verdict(fault=Fault.NO_PROGRAM)
        else:
            verdict = await _run(program, reference, limits)
        if verdict.fault is not None:
            await check_solution(reference, answer)
        return verdict.score(partial=partial)

    return passes_tests


async def _run(program: str, reference: Reference, limits: CodeLimits) -> Verdict:
    sources = readings(program, reference.prompt)
    if reference.cases:
        return await run_cases(sources[-1], reference.cases, limits)
    if reference.calls:
        assert reference.entry_point is not None
        return await run_calls(sources, reference.entry_point, reference.calls, limits)
    assert reference.suite is not None
    return await run_suite(sources, reference.suite, reference.entry_point, limits)


def _default_spec(memory_mb: int) -> SandboxSpec:
    # More programs at once than processors would only make each of them late.
    at_once = max(2, os.cpu_count() or 1)
    limits = Limits(memory_mb=memory_mb, output_bytes=OUTPUT_BYTES)
    return SandboxSpec(limits=limits, warm=min(2, at_once), max_live=2 * at_once)
