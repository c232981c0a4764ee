"""What a stage saves as it trains, so that it can go on where it was interrupted."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from palestra.trainer.config import StageConfig, load_config
from palestra.trainer.run_dir import LAST, RunDir, refuse_existing, settings_of

if TYPE_CHECKING:
    from palestra.trainer.optimizer import Optimizer
    from palestra.trainer.session import Session

C = TypeVar("C", bound=StageConfig)

# Settings that decide how fast or how long a run trains, not what it learns from.
_MAY_CHANGE = {
    *("out", "device", "steps", "micro_batch_tokens", "max_concurrent"),
    *("engine_urls", "engine_python", "engine_args"),
    *("eval_every", "stop_at_success", "save_every", "checkpoint_every"),
}
_STATE = "state.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class SavedState:
    """Where a stage stood after `step` steps.

    `folder` holds the policy, with the optimizer's state beside it; `values` is what else the
    stage noted, as JSON has it.
    """

    folder: Path
    step: int
    values: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage(Generic[C]):
    """A stage about to train: from the beginning, or after a saved state."""

    config: C
    session: Session
    run: RunDir
    state: SavedState | None


@contextmanager
def open_stage(
    config: C, run: RunDir | None, *, resume: bool, open_session: Callable[[Path | None], Session]
) -> Iterator[Stage[C]]:
    """Open a stage's run and session, and close them.

    Args:
        run: one that others began takes the stage in, which then saves no state.
        open_session: of the policy in a folder, or of the one that the configuration names.

    Raises:
        ValueError: the run directory exists, or holds no run that could be resumed.
    """
    state: SavedState | None = None
    with ExitStack() as stack:
        if resume:
            # Nobody else writes to it from before it is read.
            run = stack.enter_context(RunDir(_require_run(config.out), exists=True))
            state = find_state(config)
        elif run is not None:
            config = config.model_copy(update={"save_every": 0})
        else:
            refuse_existing(config.out)
        session = open_session(None if state is None else state.folder)
        stack.callback(session.close)
        if run is None:
            run = stack.enter_context(RunDir.begin(config))
        if state is not None:
            run.go_on(config, state.step)
        yield Stage(config=config, session=session, run=run, state=state)


def is_due(config: StageConfig, step: int) -> bool:
    """Whether the state after `step` is to be saved: not after the last one, which ends all."""
    return config.save_every > 0 and step % config.save_every == 0 and step < config.steps


def save_state(
    run: RunDir, session: Session, optimizer: Optimizer, step: int, values: Mapping[str, Any]
) -> None:
    """Replace `checkpoints/last` by the state after `step` steps."""

    def save(folder: Path) -> None:
        session.save_policy(folder)
        optimizer.save(folder)
        saved = {"step": step, "values": values, "files": _sizes(folder)}
        (folder / _STATE).write_text(json.dumps(saved) + "\n", encoding="utf-8")

    run.checkpoint(LAST, save)


def find_state(config: StageConfig) -> SavedState:
    """The last state of the run in `config.out`.

    Raises:
        ValueError: there is no such run, it is finished, has saved no state that can be read, or
            was begun with settings that would have it learn something else.
    """
    out = _require_run(config.out)
    try:
        earlier = load_config(type(config), out / "config.toml")
    except ValueError as error:
        raise ValueError(f"{out} holds no run of this stage: {error}") from None
    _refuse_other_settings(earlier, config)
    if (out / "summary.json").exists() and config.steps <= earlier.steps:
        raise ValueError(f"the run in {out} is finished: raise steps to train on")
    folder = RunDir.find_checkpoint(out, LAST)
    if folder is None:
        raise ValueError(
            f"the run in {out} has saved no state (save_every = {earlier.save_every}): move it "
            "away and start again"
        )
    with readable(folder / _STATE):
        saved = json.loads((folder / _STATE).read_text(encoding="utf-8"))
        state = SavedState(folder=folder, step=int(saved["step"]), values=dict(saved["values"]))
        files = dict(saved["files"])
    found = _sizes(folder)
    for name, size in files.items():
        if found.get(name) != size:
            raise ValueError(
                f"{folder / name} is missing or damaged: move the run away and start again"
            )
    if state.step >= config.steps:
        raise ValueError(
            f"the run in {out} has taken {state.step} steps of {config.steps}: raise steps to "
            "train on"
        )
    return state


def _require_run(path: Path) -> Path:
    if not (path / "config.toml").is_file():
        raise ValueError(f"there is no run to resume in {path}: start one without --resume")
    return path


def _sizes(folder: Path) -> dict[str, int]:
    """The files of a state but the one that lists them, in bytes."""
    return {file.name: file.stat().st_size for file in folder.iterdir() if file.name != _STATE}


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Whatever goes wrong while part of a saved state is read becomes a ValueError that says so."""
    try:
        yield
    except Exception as error:
        what = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(
            f"{path} cannot be read ({what}): move the run away and start again"
        ) from error


def _refuse_other_settings(earlier: StageConfig, config: StageConfig) -> None:
    was_set, is_set = _comparable(earlier), _comparable(config)
    for name in type(config).model_fields:
        was, now = was_set.get(name), is_set.get(name)
        # The learning rate falls towards the last step, unless it stays.
        may_change = name in _MAY_CHANGE and (name != "steps" or config.learning_rate_end == 1)
        if was != now and not may_change:
            raise ValueError(
                f"the run in {config.out} was begun with {name} = {was!r}, not {now!r}: resume it "
                "with the same, or choose another out"
            )


def _comparable(config: StageConfig) -> dict[str, Any]:
    """The settings as TOML has them; a file or folder is the same by any name."""
    settings = settings_of(config)
    for name in ("model", "data"):
        if name in settings and Path(settings[name]).exists():
            settings[name] = str(Path(settings[name]).resolve())
    return settings
