"""A pool of warm worker processes with sympy that are killed when they exceed time or memory."""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections import deque

from palestra.tools.trouble import TimedOut
from palestra.tools.worker_process import WorkerProcess
from palestra.types import Failure

MAX_WORKERS = max(2, os.cpu_count() or 1)
MEMORY_MB = 512
# Of one comparison; importing sympy is not part of it.
LIMIT_S = 2.0
_JUDGE = {
    "module": "palestra.verifiers.math_forms.sympy_judge",
    "file": None,
    "qualname": "judge",
    "memory_mb": MEMORY_MB,
    "timeout_s": LIMIT_S,
}


class Exhausted(Exception):
    """A comparison took more time or memory than it may."""


class _Worker:
    """A process that gets a first question while it still imports, so as to be warm."""

    def __init__(self) -> None:
        self.process = WorkerProcess()
        self.warm = False
        self._send("1", "1")

    def _send(self, reference: str, answer: str) -> None:
        arguments = json.dumps({"reference": reference, "answer": answer})
        self.process.send({**_JUDGE, "arguments": arguments})

    def wait_until_warm(self, deadline: float) -> None:
        """Raises TimedOut, or OSError if the process has ended."""
        while not self.warm:
            answer = self.process.receive(deadline - time.monotonic())
            if "raised" in answer:
                raise OSError(answer["raised"])
            self.warm = "started" not in answer

    def judge(self, reference: str, answer: str, limit_s: float) -> str:
        """Raises TimedOut, Exhausted, or OSError if the process ends."""
        self._send(reference, answer)
        deadline = time.monotonic() + limit_s
        while True:
            reply = self.process.receive(deadline - time.monotonic())
            if "returned" in reply:
                return reply["returned"]
            if "started" not in reply:
                raise Exhausted(reply.get("resources") or reply.get("raised") or "no verdict")


class _Pool:
    def __init__(self) -> None:
        self.idle: deque[_Worker] = deque()
        self.slots = threading.Semaphore(MAX_WORKERS)


_pool = _Pool()


# What no one writes as an answer but a policy may: towers of powers, numbers of many digits.
_COSTLY = re.compile(
    r"\d\s*\^\s*\{?\s*\d+\s*\^|(?:\^\s*\{?[^\s{}^]{0,20}){2}\^|\d{5}|!\s*!|!\s*\}?\s*\)?\s*!"
)
_OPERATORS = re.compile(r"\\(?:i*int|oint|sum|prod|lim|det|bigcup|bigcap|begin)(?![A-Za-z])")
MAX_COSTLY_CHARS = 300
MAX_OPERATORS = 3
MAX_BRACES = 24


def is_costly(text: str) -> bool:
    """Whether an answer is not worth a worker's time, by its looks."""
    return (
        len(text) > MAX_COSTLY_CHARS
        or text.count("{") > MAX_BRACES
        or len(_OPERATORS.findall(text)) > MAX_OPERATORS
        or _COSTLY.search(text) is not None
    )


def judge_by_sympy(reference: str, answer: str, *, deadline: float) -> str:
    """A verdict of `sympy_judge.judge`, from any thread, by a moment of time.monotonic().

    Raises:
        Exhausted: the comparison took more than LIMIT_S or MEMORY_MB, or killed its process.
        Failure: no worker was ready in time.
    """
    pool = _pool
    if not pool.slots.acquire(timeout=max(0, deadline - time.monotonic())):
        raise Failure("verifier", "no math worker was free in time")
    try:
        return _judge(pool, reference, answer, deadline)
    finally:
        pool.slots.release()


def _judge(pool: _Pool, reference: str, answer: str, deadline: float) -> str:
    while True:
        try:
            worker = pool.idle.pop()
            fresh = False
        except IndexError:
            worker, fresh = _Worker(), True
        try:
            worker.wait_until_warm(deadline)
        except TimedOut:
            pool.idle.append(worker)  # it is still importing: the next call may find it warm
            raise Failure("verifier", "no math worker started in time") from None
        except OSError as error:
            ending = worker.process.end()
            if fresh:
                raise Failure("verifier", f"a math worker cannot start: {ending} {error}") from None
            continue
        try:
            verdict = worker.judge(reference, answer, min(LIMIT_S, deadline - time.monotonic()))
        except (TimedOut, OSError, Exhausted) as error:
            worker.process.end()
            pool.idle.append(_Worker())
            raise Exhausted(f"{type(error).__name__}: {error}") from None
        pool.idle.append(worker)
        return verdict


def close_workers() -> None:
    """End the workers that are idle; the next comparison starts new ones."""
    while _pool.idle:
        _pool.idle.pop().process.end()


def _forget() -> None:
    global _pool
    _pool = _Pool()


# In a forked process the workers are the parent's.
os.register_at_fork(after_in_child=_forget)
