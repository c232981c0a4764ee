"""A run is a directory: configuration, metrics, episodes, transcripts, checkpoints, summary.

Every line is written whole and flushed, every other file replaced atomically: whatever stops the
run, what was written stays readable.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomli_w

from palestra.trainer.config import StageConfig

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


# The folder of a run for what other processes print.
LOGS = "logs"


class RunDir:
    """Writes one run's files; use it as a context, or call `close`.

    Raises:
        ValueError: the directory exists and is not empty, unless its run is resumed.
    """

    def __init__(self, path: Path, *, resume: bool = False) -> None:
        if resume:
            _end_torn_lines(path)
        else:
            refuse_existing(path)
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        self._board: SummaryWriter | None = None

    @staticmethod
    def begin(config: StageConfig, *, resume: bool = False) -> RunDir:
        """The run of one stage, whose `config.toml` can start it again."""
        run = RunDir(config.out, resume=resume)
        run.write_config(_values(config))
        return run

    def __enter__(self) -> RunDir:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def write_config(self, values: Mapping[str, Any]) -> None:
        """Write `config.toml`."""
        self._replace("config.toml", tomli_w.dumps(values))

    def log(self, stage: str, step: int, metrics: Mapping[str, Any]) -> None:
        """Append a line to `metrics.jsonl`, and its numbers to TensorBoard."""
        self.append("metrics.jsonl", {"stage": stage, "step": step, **metrics})
        if self._board is None:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(self.path / "tensorboard"))
        for name, value in metrics.items():
            if isinstance(value, (int, float)):
                self._board.add_scalar(f"{stage}/{name}", value, step)

    def append(self, name: str, record: Mapping[str, Any]) -> None:
        """Append one JSON line to a file of the run."""
        line = json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n"
        with open(self.path / name, "a", encoding="utf-8") as file:
            file.write(line)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write `summary.json`, a flat object."""
        self._replace("summary.json", json.dumps(summary, indent=2) + "\n")

    def checkpoint(self, name: str, save: Callable[[Path], None]) -> Path:
        """Write `checkpoints/NAME` by `save(folder)`; it appears complete or not at all."""
        target = self.path / "checkpoints" / name
        partial = target.with_name(f".{name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save(partial)
        if target.exists():
            old = _old(target)
            shutil.rmtree(old, ignore_errors=True)
            os.replace(target, old)
            os.replace(partial, target)
            shutil.rmtree(old)
        else:
            os.replace(partial, target)
        return target

    @staticmethod
    def find_checkpoint(run: Path, name: str) -> Path | None:
        """A run's checkpoint; the one before it where a crash came between the two."""
        target = run / "checkpoints" / name
        return next((folder for folder in (target, _old(target)) if folder.is_dir()), None)

    def close(self) -> None:
        """Flush TensorBoard's file; a later `log` opens another."""
        if self._board is not None:
            self._board.close()
            self._board = None

    def _replace(self, name: str, text: str) -> None:
        partial = self.path / f".{name}.partial"
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, self.path / name)


def _values(config: StageConfig) -> dict[str, Any]:
    return config.model_dump(mode="json", exclude_none=True)


def _old(checkpoint: Path) -> Path:
    """Where a checkpoint is for the moment in which another takes its place."""
    return checkpoint.with_name(f".{checkpoint.name}.old")


def _end_torn_lines(run: Path) -> None:
    """End the last lines that a crash has cut off, so that the next one is whole."""
    for path in run.glob("*.jsonl"):
        with path.open("rb+") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 1))
            if file.read() not in {b"", b"\n"}:
                file.write(b"\n")


def refuse_existing(path: Path) -> None:
    """Raise ValueError if `path` exists and holds anything: nothing written is ever lost.

    Logs may lie there: those of an engine that was started for the run, or could not be.
    """
    if path.exists() and (not path.is_dir() or any(f.name != LOGS for f in path.iterdir())):
        raise ValueError(f"{path} exists already; choose another --out or move it away")
