"""`run_verifier`: call a verifier with what it asks for, and say whose fault its troubles are."""

from __future__ import annotations

import asyncio
import difflib
import inspect
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from palestra.tools.sandboxes.sandbox import Sandbox
from palestra.tools.state import State
from palestra.tools.threads import run_in_thread
from palestra.tools.trouble import OutOfResources, TimedOut, one_line
from palestra.types import BadScore, Failure, Message, Score, Task, Unscorable
from palestra.verifiers.context import KNOWN_PARAMETERS, Compound, Context, last_reply
from palestra.verifiers.verifier import Range, Verifier, declaration_of, name_of, parameters_of


class _Provoked(Exception):
    """The verifier had no verdict, and this answer may be why; the text says what happened."""

    def __init__(self, what: str, *, may_pass: bool = False) -> None:
        super().__init__(what)
        self.may_pass = may_pass


def check_verifier(verifier: Verifier, known: Sequence[str] = KNOWN_PARAMETERS) -> None:
    """Raise ValueError if `run_verifier` could not call this."""
    if not callable(verifier):
        raise ValueError(f"a verifier must be a function, got {verifier!r:.80}")
    if isinstance(verifier, Compound):
        return  # its parts were checked when it was made
    name = name_of(verifier)
    for parameter in parameters_of(verifier).values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            continue
        if parameter.kind in (
            inspect.Parameter.VAR_POSITIONAL,
            inspect.Parameter.POSITIONAL_ONLY,
        ):
            raise ValueError(
                f'verifier {name} cannot take "{parameter}": its arguments are passed by name'
            )
        required = parameter.default is inspect.Parameter.empty
        if required and parameter.name == "episodes":
            raise ValueError(
                f"verifier {name} judges all episodes of a task together: make it a part of a "
                "Rubric, beside one that judges each"
            )
        if required and parameter.name not in known:
            matches = difflib.get_close_matches(parameter.name, known, n=1)
            guess = f' (did you mean "{matches[0]}"?)' if matches else ""
            raise ValueError(
                f'verifier {name} asks for "{parameter.name}"{guess}, but it can only be given '
                f"{', '.join(known)}"
            )


async def run_verifier(
    verifier: Verifier,
    *,
    task: Task,
    messages: Sequence[Message],
    answer: Any = None,
    reply: str | None = None,
    state: State | None = None,
    sandbox: Sandbox | None = None,
    fresh_sandbox: Callable[[], Sandbox] | None = None,
    stop_reason: str = "answer",
    timeout_s: float = 30.0,
) -> Score:
    """The verifier's verdict on one episode.

    A verifier returns a `Score`, a bool, or a number in its range (0 to 1 unless declared
    otherwise); it may be `async`, and gets by name what its parameters ask for
    (`KNOWN_PARAMETERS`). `timeout_s` is for those that declare no time of their own; no verdict
    takes longer than three times its limit.

    Whose fault: one that raises or takes too long is tried again on an empty reply, in a fresh
    sandbox if it asked for one. If it copes with that, or only misses files there, the answer
    provoked the trouble and is worth the least of its range; if not, the verifier or the reference
    is at fault. An exception that a second try on the same answer does not raise was a hiccup. A
    verdict that is NaN, infinite, out of range or none at all is the verifier's fault whatever the
    answer was.

    Raises:
        Unscorable: raised by the verifier, because of the reference or the judge.
        Failure: the verifier is broken (cause "verifier").
    """
    return await judge(
        verifier,
        Context(
            task=task,
            messages=messages,
            answer=task.answer if answer is None else answer,
            reply=last_reply(messages) if reply is None else reply,
            state=state,
            sandbox=sandbox,
            fresh_sandbox=fresh_sandbox,
            stop_reason=stop_reason,
            timeout_s=timeout_s,
        ),
    )


async def judge(verifier: Verifier, context: Context, *, range: Range | None = None) -> Score:
    """`run_verifier` for a context; `range` goes before the one that the verifier declares."""
    declared = declaration_of(verifier)
    range = range or declared.range
    if isinstance(verifier, Compound):
        return _in_range(await verifier.judge(context), range)
    if declared.timeout_s is not None:
        context = context.with_time(declared.timeout_s)
    try:
        return await _verdict(verifier, context, range)
    except _Provoked as problem:
        first = problem
    benign = context.without_answer()
    sandbox = None
    if context.sandbox is not None and context.fresh_sandbox is not None:
        sandbox = context.fresh_sandbox()
        benign = replace(benign, sandbox=sandbox)
    try:
        await _verdict(verifier, benign, range)
    except _Provoked as problem:
        if not _refused_by_sandbox(problem.__cause__):
            raise Failure("verifier", str(problem)) from problem.__cause__
    finally:
        if sandbox is not None:
            await sandbox.kill()
    if first.may_pass:
        try:
            return await _verdict(verifier, context, range)
        except _Provoked as problem:
            first = problem
    return Score(
        value=0.0,
        reward=None if range is None else float(range[0]),
        explanation=f"the verifier failed on this answer: {first}",
    )


async def call_bounded(function: Verifier, arguments: dict[str, Any], timeout_s: float) -> Any:
    """What a plain or asynchronous function returns; TimedOut, or what it raises.

    A plain function runs in a thread that is left to itself when its time is over.
    """
    if not inspect.iscoroutinefunction(function):
        value = await run_in_thread(lambda: function(**arguments), timeout_s=timeout_s)
        if not inspect.isawaitable(value):
            return value
    else:
        value = function(**arguments)
    deadline = asyncio.timeout(timeout_s)
    try:
        async with deadline:
            return await value
    except TimeoutError:
        if deadline.expired():
            raise TimedOut from None
        raise  # the verifier's own, e.g. of a connection


def as_score(value: Any, range: Range | None) -> Score:
    """A verdict as a `Score`. Raises Failure where it is none, or out of range."""
    if isinstance(value, Score):
        return _in_range(value, range)
    low, high = range or (0.0, 1.0)
    number = value.item() if hasattr(value, "item") else value  # numpy's and torch's scalars
    if not isinstance(number, bool | int | float):
        raise Failure(
            "verifier",
            f"a verifier returns a Score, a bool or a number from {low:g} to {high:g}, "
            f"got {value!r:.80}",
        )
    if not low <= number <= high:  # also true for NaN
        raise Failure("verifier", f"a score must be between {low:g} and {high:g}, got {number}")
    return Score(value=(number - low) / (high - low), reward=float(number))


def _in_range(score: Score, range: Range | None) -> Score:
    assert score.reward is not None  # Score sets it
    if range is not None and not range[0] <= score.reward <= range[1]:
        low, high = range
        raise Failure(
            "verifier", f"a reward must be between {low:g} and {high:g}, got {score.reward}"
        )
    return score


async def _verdict(verifier: Verifier, context: Context, range: Range | None) -> Score:
    try:
        value = await call_bounded(verifier, _chosen(verifier, context), context.timeout_s)
        return as_score(value, range)
    except (Unscorable, Failure):
        raise
    except BadScore as error:
        raise Failure("verifier", str(error)) from error
    except TimedOut:
        raise _Provoked(f"no verdict after {context.timeout_s:g} s") from None
    except (Exception, SystemExit) as error:
        resources = isinstance(error, MemoryError | RecursionError | OutOfResources)
        raise _Provoked(one_line(error), may_pass=not resources) from error


def _refused_by_sandbox(error: BaseException | None) -> bool:
    """Whether it is about a file of the sandbox, e.g. one that the policy should have written."""
    return isinstance(error, OSError) and any(
        isinstance(frame.f_locals.get("self"), Sandbox)
        for frame, _ in traceback.walk_tb(error.__traceback__)
    )


def _chosen(verifier: Verifier, context: Context) -> dict[str, Any]:
    parameters = parameters_of(verifier)
    takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    names = KNOWN_PARAMETERS if takes_all else [n for n in KNOWN_PARAMETERS if n in parameters]
    return {name: context.argument(name) for name in names}
