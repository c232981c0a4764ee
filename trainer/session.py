"""What a stage works with: a model, where its episodes are played, and its environment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from palestra.rollout.chat_format import ChatFormat
from palestra.rollout.driver import Limits
from palestra.rollout.engine_hf import HFEngine
from palestra.rollout.engine_options import EngineOptions
from palestra.rollout.evaluate import Evaluation, summarize
from palestra.rollout.request import RolloutRequest, read_tasks
from palestra.trainer.config import StageConfig
from palestra.trainer.load import choose_device, load_policy, save_policy
from palestra.trainer.probe import PROBE_TOKENS
from palestra.trainer.rollouts import EmbeddedRollouts, Rollouts, ServedRollouts
from palestra.trainer.run_dir import LOGS
from palestra.trainer.tiny import build_policy
from palestra.types import Message, Sampling, Task, ToolSchema

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, kw_only=True, slots=True)
class Session:
    """A loaded policy, and where it plays with the weights that are trained."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    chat_format: ChatFormat
    rollouts: Rollouts

    @staticmethod
    def open(
        config: StageConfig,
        demonstrations: Sequence[tuple[list[Message], list[ToolSchema]]] = (),
        folder: Path | None = None,
    ) -> Session:
        """Load `config.model`, or make the tiny model from the demonstrations.

        `folder` is loaded instead where the policy has been trained already.

        Raises:
            ValueError: no such model, or an engine that cannot be started or attached to.
        """
        tokenizer: PreTrainedTokenizerBase
        if config.model == "tiny" and folder is None:
            if not demonstrations:
                raise ValueError(
                    'model = "tiny" is made from demonstrations: run the SFT stage first and '
                    "name its checkpoint here"
                )
            made, tokenizer = build_policy(demonstrations, seed=config.seed)
            chat_format = ChatFormat.from_tokenizer(tokenizer)
            dtype = getattr(torch, config.dtype)
            model = torch.nn.Module.to(made, choose_device(config.device), dtype).eval()
        else:
            model, tokenizer, chat_format = load_policy(
                folder or config.model, device=config.device, dtype=config.dtype
            )
        return Session(
            model=model,
            tokenizer=tokenizer,
            chat_format=chat_format,
            rollouts=_open_rollouts(config, model, tokenizer, chat_format),
        )

    async def evaluate(
        self,
        config: Any,
        *,
        seed: int,
        tasks: Sequence[Task] | None = None,
        record_to: Path | None = None,
    ) -> Evaluation:
        """Success on held-out tasks: `tasks`, else the first `config.eval_tasks` of the split."""
        if tasks is None:
            tasks = tasks_of(config, config.eval_split)[: config.eval_tasks]
        request = request_of(
            config,
            tasks,
            config.eval_split,
            sampling=Sampling(temperature=config.eval_temperature, max_tokens=config.max_tokens),
            seed=seed,
            record_to=None if record_to is None else str(record_to),
        )
        return summarize([episode async for episode in self.rollouts.play(request)])

    def save_policy(self, folder: Path) -> None:
        """Write the policy as it is now, see `load.save_policy`."""
        save_policy(self.model, self.tokenizer, self.chat_format, folder)

    def close(self) -> None:
        """End what plays the episodes."""
        self.rollouts.close()


def _open_rollouts(
    config: StageConfig,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    chat_format: ChatFormat,
) -> Rollouts:
    if config.engine == "hf":
        engine = HFEngine(
            model,
            stop_ids=chat_format.stop_ids,
            max_slots=config.max_concurrent,
            context_length=config.context_length,
            tokenizer=tokenizer,
        )
        return EmbeddedRollouts(engine, chat_format)
    if config.context_length <= PROBE_TOKENS:
        raise ValueError(
            f"a served engine needs a context_length above {PROBE_TOKENS}, the length of the text "
            f"that is scored after each update, got {config.context_length}"
        )
    options = EngineOptions(
        kind=config.engine,
        model=config.model,
        context_length=config.context_length,
        max_concurrent=config.max_concurrent,
        dtype=config.dtype,
        urls=tuple(config.engine_urls),
        python=config.engine_python,
        extra_args=tuple(config.engine_args),
        update_mode=config.update_mode,
        kv_after_update=config.kv_after_update,
        log_folder=str(config.out / LOGS),
    )
    return ServedRollouts(options, model, tokenizer, chat_format)


def limits_of(config: StageConfig) -> Limits:
    """The bounds of an episode that a configuration sets."""
    return Limits(max_turns=config.max_turns)


def tasks_of(config: Any, split: str) -> Sequence[Task]:
    """The tasks of the configured environment."""
    return read_tasks(config.env, config.env_args, split)


def request_of(config: Any, tasks: Sequence[Task], split: str, **how: Any) -> RolloutRequest:
    """Episodes of some of the environment's tasks, within the configured bounds.

    `how` is what differs: the sampling, the seed, how many a task, where they are recorded.
    """
    return RolloutRequest(
        env=config.env,
        env_args=config.env_args,
        split=split,
        task_ids=tuple(task.id for task in tasks),
        max_concurrent=config.max_concurrent,
        limits=limits_of(config),
        agent=config.agent,
        **how,
    )
