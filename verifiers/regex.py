"""`regex`: the reply matches a pattern, in bounded time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from palestra.types import Score, Unscorable
from palestra.verifiers.context import is_blank
from palestra.verifiers.verifier import verifier

_TIMEOUT_S = 1.0


def regex(
    pattern: str | None = None,
    *,
    whole: bool = True,
    ignore_case: bool = False,
    timeout_s: float = _TIMEOUT_S,
) -> Callable[..., Score]:
    """A verifier: 1 if the reply, without space around it, matches; the task's answer if None.

    The `regex` package matches, with its own time limit: a reply that makes the pattern backtrack
    for longer than `timeout_s` does not match. An empty reply never does, whatever the pattern.
    With `whole=False` a match anywhere counts; then a reply that lists every candidate passes.

    Raises:
        ValueError: a pattern that does not compile.
    """
    if pattern is not None:
        _compile(pattern, ignore_case)

    @verifier(name="regex", timeout_s=timeout_s + 10)  # it stops by itself
    def matches(reply: str, answer: Any) -> Score:
        """1 if the reply matches. Raises Unscorable for a reference that is no pattern."""
        try:
            compiled = _compile(answer if pattern is None else pattern, ignore_case)
        except ValueError as error:
            raise Unscorable(str(error)) from None
        text = reply.strip()
        if is_blank(text):
            return Score(value=0.0, explanation="the reply is empty")
        match = compiled.fullmatch if whole else compiled.search
        try:
            found = match(text, timeout=timeout_s)
        except TimeoutError:
            return Score(value=0.0, explanation=f"no match found in {timeout_s:g} s")
        if found:
            return Score(value=1.0)
        return Score(value=0.0, explanation=f"no match of {compiled.pattern!r:.80}")

    return matches


def _compile(pattern: Any, ignore_case: bool) -> Any:
    """Cached by the package. Raises ValueError for what is no pattern."""
    import regex as engine  # type: ignore[import-untyped]

    if not isinstance(pattern, str) or not pattern:
        raise ValueError(f"a pattern is a string, got {pattern!r:.80}")
    try:
        return engine.compile(pattern, engine.IGNORECASE if ignore_case else 0)
    except engine.error as error:
        raise ValueError(f"{pattern!r:.80} is no regular expression: {error}") from None
