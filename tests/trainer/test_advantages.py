import math

import pytest
import torch

from palestra.trainer.advantages import group_relative


def test_advantages_of_equal_rewards_are_zero() -> None:
    # 0.7 has no exact float32 form: the mean of eight of them differs from it by rounding.
    assert group_relative(torch.tensor([0.7] * 8)).tolist() == [0.0] * 8


def test_advantage_is_the_distance_from_the_mean_in_standard_deviations() -> None:
    advantages = group_relative(torch.tensor([1.0, 0.0, 0.0, 0.0]))
    # mean 1/4, unbiased standard deviation sqrt((9/16 + 3/16) / 3) = 1/2
    assert advantages.tolist() == pytest.approx([1.5, -0.5, -0.5, -0.5])


def test_without_normalization_advantages_are_differences_from_the_mean() -> None:
    advantages = group_relative(torch.tensor([1.0, 0.0, 0.0, 0.0]), normalize=False)
    assert advantages.tolist() == pytest.approx([0.75, -0.25, -0.25, -0.25])


def test_advantages_of_a_group_sum_to_zero() -> None:
    rewards = torch.rand(16, generator=torch.Generator().manual_seed(0))
    assert math.isclose(group_relative(rewards).sum().item(), 0.0, abs_tol=1e-5)


def test_one_attempt_cannot_be_compared() -> None:
    with pytest.raises(ValueError, match="at least 2 attempts to compare, got 1"):
        group_relative(torch.tensor([1.0]))
