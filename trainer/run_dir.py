"""A run is a directory: configuration, metrics, episodes, transcripts, checkpoints, summary.

Every line is written whole and flushed, every other file replaced atomically: whatever stops the
run, what was written stays readable. One process at a time writes to it.
"""

from __future__ import annotations

import fcntl
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
# The checkpoint with what an interrupted run goes on from.
LAST = "last"


class RunDir:
    """Writes one run's files; use it as a context, or call `close`.

    Args:
        exists: the run is there already, and goes on: see `go_on`.

    Raises:
        ValueError: the directory exists and is not empty, or another process writes to its run.
    """

    def __init__(self, path: Path, *, exists: bool = False) -> None:
        if not exists:
            refuse_existing(path)
            path.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._lock: int | None = _lock(path)
        for old in (path / "checkpoints").glob(".*.old"):
            if not (target := old.with_name(old.name[1:].removesuffix(".old"))).exists():
                old.rename(target)  # a crash came between the two
        self._board: SummaryWriter | None = None
        self._purge_step: int | None = None

    @staticmethod
    def begin(config: StageConfig) -> RunDir:
        """The run of one stage, whose `config.toml` can start it again."""
        run = RunDir(config.out)
        run.write_config(settings_of(config))
        return run

    def go_on(self, config: StageConfig, step: int) -> None:
        """Go on after a step: what the run wrote of later ones will be written again."""
        self.write_config(settings_of(config))
        (self.path / "summary.json").unlink(missing_ok=True)
        for name in ("metrics.jsonl", "transcripts.jsonl"):
            self._drop_after(name, step)
        self._purge_step = step + 1

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

            folder = str(self.path / "tensorboard")
            self._board = SummaryWriter(folder, purge_step=self._purge_step)
            self._purge_step = None
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
        old = _old(target)
        for abandoned in (partial, old):
            shutil.rmtree(abandoned, ignore_errors=True)
        partial.mkdir(parents=True)
        save(partial)
        _sync(partial)
        if target.exists():
            os.replace(target, old)
        os.replace(partial, target)
        _sync(target.parent)
        shutil.rmtree(old, ignore_errors=True)
        return target

    @staticmethod
    def find_checkpoint(run: Path, name: str) -> Path | None:
        """A run's checkpoint; the one before it where a crash came between the two."""
        target = run / "checkpoints" / name
        return next((folder for folder in (target, _old(target)) if folder.is_dir()), None)

    def close(self) -> None:
        """Flush TensorBoard's file and let others write to the run."""
        if self._board is not None:
            self._board.close()
            self._board = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _drop_after(self, name: str, step: int) -> None:
        """Keep the rows up to a step; those that a crash cut off go, too."""
        path = self.path / name
        if not path.exists():
            return
        kept = []
        with path.open("rb") as file:
            for line in file:
                try:
                    if line.endswith(b"\n") and json.loads(line)["step"] <= step:
                        kept.append(line.decode("utf-8"))
                except (ValueError, KeyError, TypeError):
                    continue
        self._replace(name, "".join(kept))

    def _replace(self, name: str, text: str) -> None:
        partial = self.path / f".{name}.partial"
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, self.path / name)


def settings_of(config: StageConfig) -> dict[str, Any]:
    """What `config.toml` says of a configuration."""
    return config.model_dump(mode="json", exclude_none=True)


def _old(checkpoint: Path) -> Path:
    """Where a checkpoint is for the moment in which another takes its place."""
    return checkpoint.with_name(f".{checkpoint.name}.old")


def _sync(folder: Path) -> None:
    """Have the disk hold the folder's files before anything relies on them."""
    for path in [*folder.iterdir(), folder]:
        opened = os.open(path, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def _lock(run: Path) -> int:
    """An open file by which others see that a process writes to the run; it ends with it."""
    opened = os.open(run, os.O_RDONLY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(opened)
        raise ValueError(f"another process writes to the run in {run}: let it end first") from None
    return opened


def has_state(run: Path) -> bool:
    """Whether a run has saved what it takes to resume it."""
    return RunDir.find_checkpoint(run, LAST) is not None


def refuse_existing(path: Path) -> None:
    """Raise ValueError if `path` exists and holds anything: nothing written is ever lost.

    Logs may lie there: those of an engine that was started for the run, or could not be.
    """
    if path.exists() and (not path.is_dir() or any(f.name != LOGS for f in path.iterdir())):
        remedy = "go on with it (--resume), " if has_state(path) else ""
        raise ValueError(f"{path} exists already; {remedy}choose another folder or move it away")
