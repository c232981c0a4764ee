"""What a stage saves as it trains, so that it can go on where it was interrupted."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palestra.trainer.config import StageConfig, load_config
from palestra.trainer.run_dir import RunDir, settings_of

if TYPE_CHECKING:
    from palestra.trainer.optimizer import Optimizer
    from palestra.trainer.session import Session

# Settings that decide how fast or how long a run trains, not what it learns from.
_MAY_CHANGE = {
    *("out", "device", "steps", "micro_batch_tokens", "max_concurrent"),
    *("engine_urls", "engine_python", "engine_args"),
    *("eval_every", "stop_at_success", "save_every", "checkpoint_every"),
}
_NAME = "last"
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


def begin_run(
    config: StageConfig, run: RunDir | None, state: SavedState | None
) -> AbstractContextManager[RunDir]:
    """A stage's run: one that others began, else its own, which may go on after a state."""
    if run is not None:
        return nullcontext(run)
    return RunDir.begin(config, resumed_after=None if state is None else state.step)


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
        text = json.dumps({"step": step, "values": values}) + "\n"
        (folder / _STATE).write_text(text, encoding="utf-8")

    run.checkpoint(_NAME, save)


def has_state(run: Path) -> bool:
    """Whether a run has saved what it takes to resume it."""
    return RunDir.find_checkpoint(run, _NAME) is not None


def find_state(config: StageConfig) -> SavedState:
    """The last state of the run in `config.out`.

    Raises:
        ValueError: there is no such run, it is finished, has saved no state that can be read, or
            was begun with settings that would have it learn something else.
    """
    out = config.out
    if not (out / "config.toml").is_file():
        raise ValueError(f"there is no run to resume in {out}: start one without --resume")
    earlier = load_config(type(config), out / "config.toml")
    _refuse_other_settings(earlier, config)
    if (out / "summary.json").exists() and config.steps <= earlier.steps:
        raise ValueError(f"the run in {out} is finished: raise steps to train on")
    folder = RunDir.find_checkpoint(out, _NAME)
    if folder is None:
        raise ValueError(
            f"the run in {out} saved no state before it was interrupted (save_every = "
            f"{earlier.save_every}): move it away and start again"
        )
    with readable(folder / _STATE):
        saved = json.loads((folder / _STATE).read_text(encoding="utf-8"))
        state = SavedState(folder=folder, step=int(saved["step"]), values=dict(saved["values"]))
    if state.step >= config.steps:
        raise ValueError(
            f"the run in {out} has taken {state.step} steps of {config.steps}: raise steps to "
            "train on"
        )
    return state


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
