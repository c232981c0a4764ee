"""Configuration of the training stages: small typed models, read from TOML.

This file imports neither torch nor transformers: a wrong configuration is told at once.
"""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from palestra.rollout.engine import KvAfterUpdate, UpdateMode

T = TypeVar("T", bound="StageConfig")

EngineName = Literal["hf", "vllm", "sglang"]


class StageConfig(BaseModel):
    """What every stage has."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(
        description='model folder, Hugging Face id, "smollm2", or "tiny" (made on the spot)'
    )
    out: Path = Field(description="run directory; must not exist yet, unless resumed")
    seed: int = Field(default=0, ge=0, description="seeds weights, task order and sampling")
    device: str = Field(default="auto", description='"auto", "cpu", "cuda" or "cuda:N"')
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32", description="type of the weights"
    )

    steps: int = Field(ge=1, description="most optimizer steps")
    learning_rate: float = Field(gt=0, lt=1, description="peak AdamW learning rate")
    warmup_steps: int = Field(default=10, ge=0, description="steps of linear warm-up")
    learning_rate_end: float = Field(
        default=1.0, ge=0, le=1, description="share of the peak that is left at the last step"
    )
    weight_decay: float = Field(default=0.0, ge=0, description="AdamW weight decay")
    beta1: float = Field(default=0.9, ge=0, lt=1, description="AdamW: decay of the gradient's mean")
    beta2: float = Field(
        default=0.95, ge=0, lt=1, description="AdamW: decay of the gradient's square"
    )
    max_grad_norm: float = Field(
        default=1.0, gt=0, description="gradients are scaled down to this norm"
    )
    save_every: int = Field(
        default=25, ge=0, description="steps between saves of what --resume goes on from; 0: never"
    )
    micro_batch_tokens: int = Field(
        default=16384, ge=1, description="most packed tokens in one forward and backward pass"
    )

    engine: EngineName = Field(
        default="hf", description='what samples: "hf" in this process, the others as servers'
    )
    engine_urls: list[str] = Field(
        default_factory=list, description="servers that run already; none: one is started"
    )
    engine_python: str | None = Field(
        default=None, description="interpreter that has the engine installed; none: it is found"
    )
    engine_args: list[str] = Field(
        default_factory=list, description="more of the arguments that a server is started with"
    )
    update_mode: UpdateMode = Field(
        default="wait", description="generations in progress while a server's weights change"
    )
    kv_after_update: KvAfterUpdate = Field(
        default="recompute", description="keys that older weights have computed"
    )

    agent: str | None = Field(
        default=None,
        description='agent program that plays the episodes, as "module:function"; none: the policy '
        "talks to the environment",
    )
    context_length: int = Field(default=512, ge=8, description="most tokens of a conversation")
    max_tokens: int = Field(default=128, ge=1, description="most tokens of one reply")
    max_turns: int = Field(default=8, ge=1, description="most replies of an episode")
    max_concurrent: int = Field(default=256, ge=1, description="episodes that run at once")
    eval_every: int = Field(default=10, ge=1, description="steps between evaluations")
    eval_tasks: int = Field(
        default=250, ge=1, description="how many held-out tasks an evaluation uses"
    )
    eval_split: str = Field(default="test", description="split of the tasks that are held out")
    eval_temperature: float = Field(
        default=1.0, ge=0, description="sampling temperature of evaluations"
    )
    stop_at_success: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="end the stage once an evaluation reaches this mean score",
    )


class SFTConfig(StageConfig):
    """Supervised fine-tuning on demonstrations (RLHF Book, chapter 4)."""

    data: Path = Field(description='JSONL of {"messages": […], "tools": […]}')
    env: str | None = Field(default=None, description="environment to evaluate in; none: never")
    env_args: dict[str, Any] = Field(default_factory=dict, description="its keyword arguments")
    steps: int = Field(default=1000, ge=1, description="most optimizer steps")
    batch_rows: int = Field(default=64, ge=1, description="demonstrations per optimizer step")
    eval_below_loss: float | None = Field(
        default=None,
        gt=0,
        description="evaluate only after steps of a lower loss: earlier it costs time to see 0",
    )
    learning_rate: float = Field(default=1e-5, gt=0, lt=1, description="peak AdamW learning rate")


class RLConfig(StageConfig):
    """GRPO in an environment: group-relative advantages, clipped ratio, global token mean."""

    env: str = Field(description="environment id, e.g. palestra/Arithmetic-v0")
    env_args: dict[str, Any] = Field(default_factory=dict, description="its keyword arguments")
    split: str = Field(default="train", description="split of the tasks to train on")
    steps: int = Field(default=100, ge=1, description="most optimizer steps")
    tasks_per_step: int = Field(default=32, ge=1, description="tasks sampled for a step")
    group_size: int = Field(default=8, ge=2, description="attempts at each task")
    revisit: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of a step's tasks drawn from those not always solved (Kimi k1.5)",
    )
    learning_rate: float = Field(default=1e-6, gt=0, lt=1, description="peak AdamW learning rate")
    temperature: float = Field(default=1.0, gt=0, description="sampling temperature")
    updates_per_step: int = Field(
        default=1, ge=1, description="passes over each step's episodes (PPO epochs)"
    )
    minibatches: int = Field(
        default=1, ge=1, description="parts of a pass, an optimizer update each (PPO)"
    )
    normalize_advantages: bool = Field(
        default=True, description="divide by the group's standard deviation (GRPO); false: Dr. GRPO"
    )
    clip_low: float = Field(
        default=0.2, gt=0, lt=1, description="the ratio is clipped at 1 - clip_low"
    )
    clip_high: float = Field(
        default=0.28, gt=0, description="the ratio is clipped at 1 + clip_high"
    )
    kl_coefficient: float = Field(
        default=0.0, ge=0, description="weight of the KL to the first policy"
    )
    log_kl: bool = Field(default=False, description="measure that KL even where its weight is 0")
    shuffle_rewards: bool = Field(
        default=False,
        description="control run: rewards are dealt out at random, nothing can be learned",
    )
    checkpoint_every: int | None = Field(
        default=None,
        ge=1,
        description="steps between checkpoints beside the best; none: only the best",
    )


def load_config(kind: type[T], path: Path, overrides: list[str] | None = None) -> T:
    """Read a stage's configuration from TOML, with `key=value` overrides in TOML's syntax.

    Raises:
        ValueError: no such file, malformed TOML, an unknown key (the nearest is named), or a
            value that is missing, of the wrong type or out of range; one line each.
    """
    if not path.is_file():
        raise ValueError(f"no configuration file {path}")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid TOML: {error}") from None
    for override in overrides or []:
        key, equals, text = override.removeprefix("--").partition("=")
        if not equals:
            raise ValueError(f"overrides are written key=value, got {override!r}")
        values[key.strip().replace("-", "_")] = _toml_value(text)
    return validate_config(kind, values, source=str(path))


def validate_config(kind: type[T], values: dict[str, Any], *, source: str) -> T:
    """Build a configuration; raises ValueError with one line that names the key and the remedy."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            near = difflib.get_close_matches(key, kind.model_fields, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f'{source}: unknown key "{key}"{hint}') from None
        if problem["type"] == "missing":
            about = kind.model_fields[key].description
            raise ValueError(f'{source}: "{key}" is missing ({about})') from None
        said = problem["msg"][0].lower() + problem["msg"][1:]
        raise ValueError(f'{source}: "{key}": {said}, got {problem["input"]!r}') from None


def _toml_value(text: str) -> Any:
    """A TOML value; a bare word is a string."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
