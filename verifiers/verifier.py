"""`@verifier`: declare a verifier's name, range and time limit; plain functions may go without."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, overload

Verifier = Callable[..., Any]
F = TypeVar("F", bound=Verifier)

Range = tuple[float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Declaration:
    """What a verifier says of itself.

    `range` is the least and the greatest reward it gives; None: a value from 0 to 1, or whatever
    reward its `Score` holds. `shaping` parts of a rubric add to the reward and never to the value.

    Raises:
        ValueError: no name, a range that is not finite or empty, or a time that is not positive.
    """

    name: str
    range: Range | None = None
    timeout_s: float | None = None
    shaping: bool = False

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("a verifier needs a name: pass name=…")
        if self.range is not None:
            check_range(self.name, self.range)
        if self.timeout_s is not None and not 0 < self.timeout_s < math.inf:
            raise ValueError(
                f"timeout_s of verifier {self.name} must be a positive number of seconds, "
                f"got {self.timeout_s}"
            )


@overload
def verifier(function: F, /) -> F: ...


@overload
def verifier(
    *,
    name: str | None = None,
    range: Range | None = None,
    timeout_s: float | None = None,
    shaping: bool = False,
) -> Callable[[F], F]: ...


def verifier(
    function: Verifier | None = None,
    /,
    *,
    name: str | None = None,
    range: Range | None = None,
    timeout_s: float | None = None,
    shaping: bool = False,
) -> Any:
    """Declare what a verifier is called, which rewards it gives and how long it may take.

        @verifier(range=(-1, 0), timeout_s=5, shaping=True)
        def brief(reply: str) -> float:
            '''-1 for a reply of 1,000 characters or more.'''
            return -min(1.0, len(reply) / 1000)

    The function itself is returned. A number from it is a reward within its range, and its value is
    where in the range it lies; outside the range it is the verifier's fault, and the episode fails.
    Without a declaration the range is 0 to 1 and the time that of the environment.

    Raises:
        ValueError: see `Declaration`.
    """
    if function is None:
        return lambda decorated: _declare(decorated, name, range, timeout_s, shaping)
    return _declare(function, name, range, timeout_s, shaping)


def declaration_of(verifier: Verifier) -> Declaration:
    """What a verifier says of itself, or what holds for one that says nothing."""
    declared = getattr(verifier, "declaration", None)
    return declared if isinstance(declared, Declaration) else Declaration(name=name_of(verifier))


def name_of(verifier: Verifier) -> str:
    """The function's own name, or its type's."""
    return str(getattr(verifier, "__name__", type(verifier).__name__))


def parameters_of(verifier: Verifier) -> dict[str, inspect.Parameter]:
    """Its parameters by name."""
    return dict(inspect.signature(verifier).parameters)


def check_range(name: str, range: Range) -> None:
    """Raise ValueError unless this is a finite range with something in it."""
    low, high = range
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(
            f"range of verifier {name} must be two finite numbers, the smaller first, got {range}"
        )


def _declare(
    function: F, name: str | None, range: Range | None, timeout_s: float | None, shaping: bool
) -> F:
    declaration = Declaration(
        name=name or name_of(function), range=range, timeout_s=timeout_s, shaping=shaping
    )
    try:
        function.declaration = declaration  # type: ignore[attr-defined]
    except AttributeError:
        raise ValueError(
            f"{declaration.name} cannot carry a declaration: write a function that calls it"
        ) from None
    return function
