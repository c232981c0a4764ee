"""Progress bars of training stages in the terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

_SHOWN = ("loss", "success", "reward_mean", "heldout")


class StageProgress:
    """One bar per stage, with its newest figures. Use as a context."""

    def __init__(self, console: Console | None = None) -> None:
        self._bars = Bars(
            TextColumn("{task.description:<12}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[figures]}"),
            console=console or Console(stderr=True),
        )

    def __enter__(self) -> StageProgress:
        self._bars.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def stage(self, name: str, steps: int | None) -> Callable[[int, Mapping[str, Any]], None]:
        """Begin a stage; call the result with each step's number and metrics."""
        bar = self._bars.add_task(name, total=steps, figures="")
        newest: dict[str, float] = {}

        def update(step: int, metrics: Mapping[str, Any]) -> None:
            newest.update({key: metrics[key] for key in _SHOWN if key in metrics})
            figures = "  ".join(f"{key} {value:.3f}" for key, value in newest.items())
            self._bars.update(bar, completed=step, figures=figures)

        return update
