"""Where a stage's episodes come from: the trainer's own process, or one with a served engine."""

from __future__ import annotations

import shutil
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import torch

from palestra.rollout.engine_hf import HFEngine
from palestra.rollout.engine_options import EngineOptions
from palestra.rollout.policy import TokenPolicy
from palestra.rollout.process import RolloutProcess
from palestra.rollout.request import RolloutRequest, TaskIndex, play
from palestra.trainer.load import save_policy
from palestra.trainer.probe import make_probe
from palestra.trainer.weights_folder import WeightsFolder
from palestra.types import Episode

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from palestra.rollout.chat_format import ChatFormat


# Two implementations of one model differ by so much: in bfloat16 by up to a third (measured).
_TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 0.75}


class Rollouts(Protocol):
    """Episodes in, weights out: all that a trainer knows of whoever plays (DESIGN §6)."""

    def play(self, request: RolloutRequest) -> AsyncGenerator[Episode, None]:
        """The request's episodes, as they end."""

    async def publish(self, version: int) -> None:
        """From now on, sample from the trainer's present weights, under this version."""

    def close(self) -> None:
        """End what was started."""


class EmbeddedRollouts:
    """Plays in this process, on the very weights that are trained."""

    def __init__(self, engine: HFEngine, chat_format: ChatFormat) -> None:
        self.policy = TokenPolicy(engine, chat_format)
        self._engine = engine
        self._tasks = TaskIndex()

    def play(self, request: RolloutRequest) -> AsyncGenerator[Episode, None]:
        """See `Rollouts`."""
        return play(request, self.policy, self._tasks)

    async def publish(self, version: int) -> None:
        """Forget the keys that older weights computed."""
        await self._engine.update_weights(version)

    def close(self) -> None:
        """Stop the engine's thread."""
        self._engine.close()


class ServedRollouts:
    """Plays in another process on a served engine, which loads each version from a folder.

    `options.model` is set here: to a folder with the policy as it is now.
    """

    def __init__(
        self,
        options: EngineOptions,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        chat_format: ChatFormat,
    ) -> None:
        self._folder = WeightsFolder()
        self._model = model
        self._published: Path | None = None
        # What the engine starts with, and starts with again should it die.
        self._served = self._folder.path / "served"
        try:
            save_policy(model, tokenizer, chat_format, self._served)
            self._process = RolloutProcess(replace(options, model=str(self._served)))
        except BaseException:
            self._folder.close()
            raise

    def play(self, request: RolloutRequest) -> AsyncGenerator[Episode, None]:
        """See `Rollouts`."""
        return self._process.play(request)

    async def publish(self, version: int) -> None:
        """Save, have the engine load, and compare what it serves with these weights.

        Raises:
            StaleWeights: the engine serves something else.
        """
        folder = self._folder.path / f"v{version}"
        self._model.save_pretrained(folder)
        await self._process.update_weights(
            version, folder, make_probe(self._model, tolerance=_TOLERANCES[self._model.dtype])
        )
        # A server that is started again needs the last one; all before it go, the first as well:
        # they may take up memory.
        for file in folder.glob("model*"):
            newest = self._served / f"{file.name}.new"
            newest.hardlink_to(file)
            newest.replace(self._served / file.name)
        if self._published is not None and self._published != folder:
            shutil.rmtree(self._published)
        self._published = folder

    def close(self) -> None:
        """End the process, its engine and the saved weights."""
        self._process.close()
        self._folder.close()
