"""What a stage saves as it trains, so that it can go on where it was interrupted."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from palestra.trainer.config import StageConfig, load_config
from palestra.trainer.run_dir import RunDir

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
        ValueError: there is no such run, it has saved no state or taken all its steps, or was begun
            with settings that would have it learn something else.
    """
    began_with = config.out / "config.toml"
    if not began_with.is_file():
        raise ValueError(f"there is no run to resume in {config.out}: start one without --resume")
    earlier = load_config(type(config), began_with)
    for name in type(config).model_fields.keys() - _MAY_CHANGE:
        was, now = getattr(earlier, name), getattr(config, name)
        if was != now:
            raise ValueError(
                f"the run in {config.out} was begun with {name} = {was!r}, not {now!r}: resume it "
                "with the same, or choose another out"
            )
    folder = RunDir.find_checkpoint(config.out, _NAME)
    if folder is None:
        raise ValueError(
            f"the run in {config.out} saved no state before it was interrupted (save_every = "
            f"{earlier.save_every}): move it away and start again"
        )
    saved = json.loads((folder / _STATE).read_text(encoding="utf-8"))
    if saved["step"] >= config.steps:
        raise ValueError(
            f"the run in {config.out} has taken {saved['step']} steps of {config.steps}: raise "
            "steps to train on"
        )
    return SavedState(folder=folder, step=saved["step"], values=saved["values"])
