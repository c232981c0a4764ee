"""What a stage works with: a model, its embedded engine and policy, and its environment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from palestra import envs
from palestra.rollout.chat_format import ChatFormat
from palestra.rollout.driver import Limits
from palestra.rollout.engine_hf import HFEngine
from palestra.rollout.evaluate import Evaluation, evaluate
from palestra.rollout.policy import TokenPolicy
from palestra.rollout.recorder import Recorder
from palestra.trainer.config import StageConfig
from palestra.trainer.load import choose_device, load_policy
from palestra.trainer.tiny import build_policy
from palestra.types import Message, Sampling, Task, ToolSchema

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True, slots=True)
class Session:
    """A loaded policy that generates with the very weights that are trained."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    chat_format: ChatFormat
    engine: HFEngine

    @staticmethod
    def open(
        config: StageConfig,
        demonstrations: Sequence[tuple[list[Message], list[ToolSchema]]] = (),
    ) -> Session:
        """Load `config.model`, or make the tiny model from the demonstrations."""
        tokenizer: PreTrainedTokenizerBase
        if config.model == "tiny":
            if not demonstrations:
                raise ValueError(
                    'model = "tiny" is made from demonstrations: run the SFT stage first and '
                    "name its checkpoint here"
                )
            made, tokenizer = build_policy(demonstrations, seed=config.seed)
            chat_format = ChatFormat.from_tokenizer(tokenizer)
            model = torch.nn.Module.to(made, choose_device(config.device)).eval()
        else:
            model, tokenizer, chat_format = load_policy(
                config.model, device=config.device, dtype=config.dtype
            )
        engine = HFEngine(
            model,
            stop_ids=chat_format.stop_ids,
            max_slots=config.max_concurrent,
            context_length=config.context_length,
        )
        return Session(model=model, tokenizer=tokenizer, chat_format=chat_format, engine=engine)

    @property
    def policy(self) -> TokenPolicy:
        """The policy that samples from the current weights."""
        return TokenPolicy(self.engine, self.chat_format)

    async def evaluate(
        self,
        config: StageConfig,
        *,
        seed: int,
        tasks: Sequence[Task] | None = None,
        recorder: Recorder | None = None,
    ) -> Evaluation:
        """Success on held-out tasks: `tasks`, else the first `config.eval_tasks` of the split."""
        if tasks is None:
            tasks = tasks_of(config, config.eval_split)[: config.eval_tasks]
        return await evaluate(
            make_env(config, config.eval_split),
            tasks,
            self.policy,
            max_concurrent=config.max_concurrent,
            limits=limits_of(config),
            sampling=Sampling(temperature=config.eval_temperature, max_tokens=config.max_tokens),
            seed=seed,
            recorder=recorder,
        )

    def close(self) -> None:
        """Stop the engine."""
        self.engine.close()


def limits_of(config: StageConfig) -> Limits:
    """The bounds of an episode that a configuration sets."""
    return Limits(max_turns=config.max_turns)


def make_env(config: Any, split: str) -> Callable[[], envs.Env]:
    """A function that makes the configured environment with its tasks of `split`."""
    return lambda: envs.make(config.env, split=split, **config.env_args)


def tasks_of(config: Any, split: str) -> Sequence[Task]:
    """The tasks of the configured environment."""
    env = make_env(config, split)()
    try:
        tasks: Sequence[Task] | None = getattr(env, "tasks", None)
    finally:
        env.close()
    if tasks is None:
        raise ValueError(f'"{config.env}" has no `tasks`: training needs a sequence of them')
    return tasks
