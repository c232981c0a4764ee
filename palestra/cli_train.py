"""`palestra train STAGE CONFIG.toml [key=value …]`: read the configuration, then run the stage."""

from __future__ import annotations

import importlib
import json
import textwrap
from pathlib import Path

from palestra.trainer.config import RLConfig, SFTConfig, StageConfig, load_config
from palestra.trainer.model_folder import find_model_folder
from palestra.trainer.run_dir import has_state, refuse_existing
from palestra.trainer.saved_state import find_state
from palestra.view.progress import StageProgress
from palestra.view.report import write_report

STAGES: dict[str, type[StageConfig]] = {"sft": SFTConfig, "rl": RLConfig}


def run_stage(stage: str, path: Path, overrides: list[str], *, resume: bool) -> int:
    """Run one stage to its end, or with `resume` what is left of it.

    Raises:
        ValueError: a configuration that is wrong, told before torch is imported.
    """
    config = load_config(STAGES[stage], path, overrides)
    if resume:
        find_state(config)
    else:
        refuse_existing(config.out)
    if config.model != "tiny" and not resume:
        find_model_folder(config.model)
    module = importlib.import_module(f"palestra.trainer.train_{stage}")
    importlib.import_module("palestra.trainer.load").silence_transformers()
    try:
        with StageProgress() as progress:
            shown = progress.stage(stage, config.steps)
            result = module.train(config, resume=resume, progress=shown)
    except KeyboardInterrupt:
        if has_state(config.out):
            raise KeyboardInterrupt("the same command with --resume goes on") from None
        raise
    print(f"checkpoint: {result.checkpoint}")
    print(f"report:     {write_report(config.out)}")
    return 0


def describe_settings(stage: str) -> str:
    """Every setting of a stage with its default and its meaning, for `--help`."""
    lines = ["settings (in CONFIG.toml, or as key=value in TOML's syntax):"]
    for name, field in STAGES[stage].model_fields.items():
        if field.is_required():
            default = "required"
        elif field.default_factory is not None:
            default = "default: empty"
        else:
            shown = "none" if field.default is None else json.dumps(field.default)
            default = f"default: {shown}"
        text = textwrap.wrap(f"{field.description} ({default})", width=68)
        head = f"  {name:<24}"
        if len(name) > 22:
            lines.append(head.rstrip())
            head = " " * 26
        lines += [f"{head}{text[0]}", *(" " * 26 + more for more in text[1:])]
    return "\n".join(lines) + "\n"
