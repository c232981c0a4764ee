"""AdamW with a learning-rate schedule and gradient clipping: one step for every stage."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from palestra.trainer.config import StageConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel


_FILE = "optimizer.pt"


class Optimizer:
    """Steps a model's weights; the learning rate rises linearly, then falls linearly to its end.

    `updates` is how many steps there will be at most.
    """

    def __init__(self, model: PreTrainedModel, config: StageConfig, *, updates: int) -> None:
        self._parameters = [p for p in model.parameters() if p.requires_grad]
        self._peak = config.learning_rate
        self._end = config.learning_rate_end
        self._last_step = updates
        self._warmup_steps = config.warmup_steps
        self._max_grad_norm = config.max_grad_norm
        self._steps = 0
        self._adamw = torch.optim.AdamW(
            self._parameters,
            lr=config.learning_rate,
            betas=(config.beta1, config.beta2),
            weight_decay=config.weight_decay,
        )

    @property
    def learning_rate(self) -> float:
        """The rate of the step to come."""
        step = self._steps + 1
        if step <= self._warmup_steps:
            return self._peak * step / self._warmup_steps
        left = (self._last_step - step) / max(1, self._last_step - self._warmup_steps)
        return self._peak * (self._end + (1.0 - self._end) * max(0.0, left))

    def step(self) -> float:
        """Clip, update, clear the gradients; returns their norm before clipping.

        Raises:
            RuntimeError: the gradient is not finite; the weights are left as they were.
        """
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, self._max_grad_norm).item()
        if not math.isfinite(norm):
            raise RuntimeError(
                f"the gradient's norm is {norm} at step {self._steps + 1}; lower learning_rate"
            )
        for group in self._adamw.param_groups:
            group["lr"] = self.learning_rate
        self._adamw.step()
        self._adamw.zero_grad(set_to_none=True)
        self._steps += 1
        return norm

    def save(self, folder: Path) -> None:
        """Write `optimizer.pt`: the moments of all parameters and how many steps were taken."""
        torch.save({"steps": self._steps, "adamw": self._adamw.state_dict()}, folder / _FILE)

    def load(self, folder: Path) -> None:
        """Go on from what an optimizer of the same parameters has saved."""
        # AdamW moves the moments to where the parameters are; its counts of steps stay on the CPU.
        saved = torch.load(folder / _FILE, map_location="cpu", weights_only=True)
        self._steps = saved["steps"]
        self._adamw.load_state_dict(saved["adamw"])
