"""Where rows of tasks come from: lists, JSONL files, generator functions, Hugging Face datasets."""

from __future__ import annotations

import inspect
import itertools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

# A generator function may be infinite; without a limit this many rows say that it is.
_MOST_WITHOUT_LIMIT = 100_000

# (where the row stands, for error messages; the row)
Row = tuple[str, object]


def rows(source: Any, *, split: str, seed: int, limit: int | None) -> Iterator[Row]:
    """The first `limit` rows of a split.

    Raises:
        ValueError: the source cannot be read, or has no such split.
    """
    return itertools.islice(_rows(source, split=split, seed=seed, limit=limit), limit)


def _rows(source: Any, *, split: str, seed: int, limit: int | None) -> Iterator[Row]:
    if isinstance(source, str) and source.startswith("hf:"):
        return _numbered(_hugging_face(source[3:], split), source)
    if isinstance(source, (str, Path)):
        return _jsonl(Path(source), split)
    if isinstance(source, Mapping):  # split -> source; a DatasetDict is one
        if split not in source:
            raise ValueError(f'no split "{split}" among these tasks; they have {_names(source)}')
        return _rows(source[split], split=split, seed=seed, limit=limit)
    if isinstance(source, Iterator):
        raise ValueError(
            "tasks from a generator can be read only once: pass the generator function itself, "
            "without calling it"
        )
    if callable(source):
        return _numbered(_generate(source, split, seed, limit), _name(source))
    if isinstance(source, Iterable):
        return _numbered(source, "tasks")
    raise ValueError(
        f"tasks must be a list, a .jsonl path, a generator function or a dataset, "
        f"got {type(source).__name__}"
    )


def _numbered(items: Iterable[object], name: str) -> Iterator[Row]:
    return ((f"{name}[{index}]", item) for index, item in enumerate(items))


def _names(splits: Mapping[Any, Any]) -> str:
    return ", ".join(f'"{name}"' for name in splits) or "none"


def _name(function: Callable[..., Any]) -> str:
    return str(getattr(function, "__name__", type(function).__name__))


def _jsonl(path: Path, split: str) -> Iterator[Row]:
    """A .jsonl file, or a folder that holds one per split."""
    if path.is_dir():
        path = path / f"{split}.jsonl"
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                where = f"{path}:{number}"
                try:
                    yield where, json.loads(line.decode())
                except (ValueError, RecursionError) as error:
                    raise ValueError(f"{where}: not a line of JSON: {error}") from None
    except OSError as error:
        raise ValueError(f"cannot read tasks from {path}: {error.strerror}") from None


def _generate(
    function: Callable[..., Any], split: str, seed: int, limit: int | None
) -> Iterator[object]:
    """Call with `split` and `seed` as far as the function takes them."""
    parameters = inspect.signature(function).parameters.values()
    takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)
    names = {p.name for p in parameters}
    offered = {"split": split, "seed": seed}
    try:
        made = function(**{k: v for k, v in offered.items() if takes_all or k in names})
    except TypeError as error:
        if any(p.default is p.empty and p.name not in offered for p in parameters):
            raise ValueError(
                f"{error}; a function that makes tasks is called with split and seed, if at all"
            ) from None
        raise
    for index, item in enumerate(made):
        if limit is None and index == _MOST_WITHOUT_LIMIT:
            raise ValueError(
                f"{_name(function)} gave more than {index} tasks; say how many to take with "
                f"limit= (in an environment: task_limit=)"
            )
        yield item


def _hugging_face(name: str, split: str) -> Iterable[object]:
    """`owner/name` or `owner/name:configuration` from the Hub or its local cache."""
    try:
        import datasets
    except ImportError:
        raise ValueError(f"hf:{name} needs datasets: pip install 'palestra[train]'") from None
    path, _, configuration = name.partition(":")
    try:
        found: Iterable[object] = datasets.load_dataset(path, configuration or None, split=split)
    except Exception as error:  # the Hub, the network and the loaders raise many kinds
        reason = " ".join(str(error).split())
        raise ValueError(f'cannot load split "{split}" of hf:{name}: {reason:.200}') from None
    return found
