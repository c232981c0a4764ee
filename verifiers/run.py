"""`run_verifier`: call a verifier with what it asks for, and say whose fault its troubles are."""

from __future__ import annotations

import asyncio
import difflib
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

from palestra.tools.state import State
from palestra.tools.threads import run_in_thread
from palestra.tools.trouble import TimedOut, one_line
from palestra.types import Failure, Message, Score, Task, Unscorable

# What a verifier may ask for by parameter name. `reply` is the text of the last assistant message,
# `answer` the task's reference.
KNOWN_PARAMETERS = ("task", "answer", "reply", "messages", "state", "stop_reason")

Verifier = Callable[..., Any]


class _Provoked(Exception):
    """The verifier had no verdict, and this answer may be why; the text says what happened."""

    def __init__(self, what: str, *, may_pass: bool = False) -> None:
        super().__init__(what)
        self.may_pass = may_pass


def check_verifier(verifier: Verifier) -> None:
    """Raise ValueError if `run_verifier` could not call this."""
    if not callable(verifier):
        raise ValueError(f"a verifier must be a function, got {verifier!r:.80}")
    name = getattr(verifier, "__name__", type(verifier).__name__)
    for parameter in inspect.signature(verifier).parameters.values():
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
        if required and parameter.name not in KNOWN_PARAMETERS:
            matches = difflib.get_close_matches(parameter.name, KNOWN_PARAMETERS, n=1)
            guess = f' (did you mean "{matches[0]}"?)' if matches else ""
            raise ValueError(
                f'verifier {name} asks for "{parameter.name}"{guess}, but it can only be given '
                f"{', '.join(KNOWN_PARAMETERS)}"
            )


async def run_verifier(
    verifier: Verifier,
    *,
    task: Task,
    messages: Sequence[Message],
    answer: Any = None,
    reply: str | None = None,
    state: State | None = None,
    stop_reason: str = "answer",
    timeout_s: float = 30.0,
) -> Score:
    """The verifier's verdict on one episode.

    A verifier returns a `Score`, a bool, or a number in [0, 1]; it may be `async`, and gets by name
    what its parameters ask for (`KNOWN_PARAMETERS`).

    One that raises, takes too long or returns NaN is tried again on an empty reply. If it copes
    with that, the answer provoked the trouble and is worth 0; if not, the verifier or the reference
    is at fault. An exception that a second try on the same answer does not raise was a hiccup.

    Raises:
        Unscorable: raised by the verifier, because of the reference or the judge.
        Failure: the verifier is broken (cause "verifier").
    """
    available: dict[str, Any] = {
        "task": task,
        "answer": task.answer if answer is None else answer,
        "reply": last_reply(messages) if reply is None else reply,
        "messages": messages,
        "state": state,
        "stop_reason": stop_reason,
    }
    try:
        return await _verdict(verifier, available, timeout_s)
    except _Provoked as problem:
        first = problem
    benign = {**available, "reply": "", "messages": _without_answer(messages)}
    try:
        await _verdict(verifier, benign, timeout_s)
    except _Provoked as problem:
        raise Failure("verifier", str(problem)) from problem.__cause__
    if first.may_pass:
        try:
            return await _verdict(verifier, available, timeout_s)
        except _Provoked as problem:
            first = problem
    return Score(value=0.0, explanation=f"the verifier failed on this answer: {first}")


def last_reply(messages: Sequence[Message]) -> str:
    """The text of the last assistant message, its thinking left out; "" if there is none."""
    for message in reversed(messages):
        if message.get("role") == "assistant":
            content = message.get("content") or ""
            if isinstance(content, str):
                return content
            return "".join(part.get("text") or "" for part in content if isinstance(part, dict))
    return ""


def _without_answer(messages: Sequence[Message]) -> list[Message]:
    prompt: list[Message] = []
    for message in messages:
        if message.get("role") == "assistant":
            break
        prompt.append(message)
    return [*prompt, {"role": "assistant", "content": ""}]


async def _verdict(verifier: Verifier, available: dict[str, Any], timeout_s: float) -> Score:
    try:
        return _score(await _call(verifier, _chosen(verifier, available), timeout_s))
    except (Unscorable, Failure, _Provoked):
        raise
    except TimedOut:
        raise _Provoked(f"no verdict after {timeout_s:g} s") from None
    except (Exception, SystemExit) as error:
        resources = isinstance(error, MemoryError | RecursionError)
        raise _Provoked(one_line(error), may_pass=not resources) from error


async def _call(verifier: Verifier, arguments: dict[str, Any], timeout_s: float) -> Any:
    if not inspect.iscoroutinefunction(verifier):
        value = await run_in_thread(lambda: verifier(**arguments), timeout_s=timeout_s)
        if not inspect.isawaitable(value):
            return value
    else:
        value = verifier(**arguments)
    deadline = asyncio.timeout(timeout_s)
    try:
        async with deadline:
            return await value
    except TimeoutError:
        if deadline.expired():
            raise TimedOut from None
        raise  # the verifier's own, e.g. of a connection


def _chosen(verifier: Verifier, available: dict[str, Any]) -> dict[str, Any]:
    parameters = inspect.signature(verifier).parameters
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return available
    return {name: available[name] for name in parameters if name in available}


def _score(value: Any) -> Score:
    if isinstance(value, Score):
        return value
    number = value.item() if hasattr(value, "item") else value  # numpy's and torch's scalars
    if not isinstance(number, bool | int | float):
        raise Failure(
            "verifier",
            f"a verifier returns a Score, a bool or a number from 0 to 1, got {value!r:.80}",
        )
    if math.isnan(number):
        raise _Provoked("it returned nan")
    if not 0 <= number <= 1:
        raise Failure("verifier", f"a score must be between 0 and 1, got {number}")
    return Score(value=float(number))
