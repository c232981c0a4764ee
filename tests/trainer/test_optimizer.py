from pathlib import Path

import pytest
import torch

from palestra.trainer.config import SFTConfig
from palestra.trainer.optimizer import Optimizer
from palestra.trainer.tiny import build_model


def config(**settings: float) -> SFTConfig:
    defaults = {"model": "tiny", "out": Path("o"), "data": Path("d"), "learning_rate": 1e-2}
    return SFTConfig.model_validate({**defaults, **settings})


def rates(**settings: float) -> list[float]:
    model = build_model(16, eos_id=0)
    optimizer = Optimizer(model, config(**settings), updates=int(settings["steps"]))
    seen = []
    for _ in range(int(settings["steps"])):
        seen.append(optimizer.learning_rate)
        model.model.norm.weight.sum().backward()
        optimizer.step()
    return seen


def test_the_learning_rate_rises_linearly_then_stays() -> None:
    seen = rates(steps=5, warmup_steps=2)
    assert seen == pytest.approx([0.005, 0.01, 0.01, 0.01, 0.01])


def test_the_learning_rate_falls_linearly_to_its_end() -> None:
    seen = rates(steps=6, warmup_steps=2, learning_rate_end=0.2)
    assert seen == pytest.approx([0.005, 0.01, 0.008, 0.006, 0.004, 0.002])


def test_gradients_are_scaled_down_to_the_norm() -> None:
    """One Adam step is blind to scale, so the clipped gradient itself is compared."""
    model = build_model(16, eos_id=0)
    optimizer = Optimizer(model, config(max_grad_norm=0.5), updates=1)
    (100 * model.model.norm.weight.sum()).backward()
    before = model.model.norm.weight.detach().clone()
    assert optimizer.step() == pytest.approx(100 * 128**0.5)
    assert not torch.equal(model.model.norm.weight, before)
    assert model.model.norm.weight.grad is None


def test_a_gradient_that_is_not_finite_leaves_the_weights_alone() -> None:
    model = build_model(16, eos_id=0)
    optimizer = Optimizer(model, config(), updates=1)
    (model.model.norm.weight.sum() * float("nan")).backward()
    before = model.model.norm.weight.detach().clone()
    with pytest.raises(RuntimeError, match="gradient's norm is nan at step 1; lower learning_rate"):
        optimizer.step()
    assert torch.equal(model.model.norm.weight, before)
