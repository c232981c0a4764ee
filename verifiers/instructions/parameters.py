"""What the arguments of an instruction may be: each kind of parameter and what reads it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from palestra.verifiers.instructions.relations import RELATIONS
from palestra.verifiers.instructions.reply import composed

_MAX_COUNT = 1_000_000
_MAX_PHRASE_CHARS = 100_000
_MAX_PHRASES = 1_000

Reader = Callable[[Any], Any]


def _whole_number(least: int) -> Reader:
    def read(value: Any) -> int:
        # Published tables hold counts as floats: 3.0.
        is_whole = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_whole or value != value or not least <= value <= _MAX_COUNT or value % 1:
            raise ValueError(f"a whole number from {least} to {_MAX_COUNT:,}")
        return int(value)

    return read


def _percentage(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 100:
        raise ValueError("a percentage from 0 to 100")
    return float(value)


def _phrase(value: Any) -> str:
    if isinstance(value, list | tuple) and len(value) == 1:  # as some published rows have it
        value = value[0]
    if not isinstance(value, str) or not value.strip() or len(value) > _MAX_PHRASE_CHARS:
        raise ValueError(f"a text of 1 to {_MAX_PHRASE_CHARS:,} characters")
    return composed(value.strip())


def _phrases(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not 1 <= len(value) <= _MAX_PHRASES:
        raise ValueError(f"a list of 1 to {_MAX_PHRASES:,} texts")
    return tuple(_phrase(item) for item in value)


def _character(value: Any) -> str:
    if not isinstance(value, str) or len(composed(value.strip())) != 1:
        raise ValueError("one letter or other character")
    return composed(value.strip())


def _relation(value: Any) -> str:
    if value not in RELATIONS:
        raise ValueError(f"one of {', '.join(RELATIONS)}")
    return str(value)


Count = Annotated[int, _whole_number(1)]
Natural = Annotated[int, _whole_number(0)]
Percentage = Annotated[float, _percentage]
Phrase = Annotated[str, _phrase]
Phrases = Annotated[tuple[str, ...], _phrases]
Character = Annotated[str, _character]
Relation = Annotated[str, _relation]
