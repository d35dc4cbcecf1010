"""Action distributions against torch.distributions, and samples against the probabilities they stand for."""

from __future__ import annotations

import math
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from torch import Tensor

from optex_rl.agents.networks.distributions import Categorical, DiagonalGaussian, make_distribution
from optex_rl.common.errors import ConfigError


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def gaussian(m: int) -> DiagonalGaussian:
    return DiagonalGaussian(m, np.full(m, -1, np.float32), np.full(m, 1, np.float32))


def test_categorical_equals_torch_distributions() -> None:
    inputs = 3 * normal(2, 5, 4)
    actions = torch.arange(10).view(2, 5) % 4
    oracle: Any = torch.distributions.Categorical(logits=inputs)
    distribution = Categorical(4)
    torch.testing.assert_close(distribution.log_prob(inputs, actions), oracle.log_prob(actions))
    torch.testing.assert_close(distribution.entropy(inputs), oracle.entropy())
    assert torch.equal(distribution.mode(inputs), oracle.probs.argmax(-1))


def test_gaussian_equals_torch_distributions() -> None:
    mean, log_std, actions = normal(3, 2, 5, 3).unbind()
    inputs = torch.cat([mean, log_std], dim=-1)
    oracle: Any = torch.distributions.Independent(torch.distributions.Normal(mean, log_std.exp()), 1)
    distribution = gaussian(3)
    torch.testing.assert_close(distribution.log_prob(inputs, actions), oracle.log_prob(actions))
    torch.testing.assert_close(distribution.entropy(inputs), oracle.entropy())
    assert torch.equal(distribution.mode(inputs), mean)


def test_categorical_frequencies_are_the_softmax() -> None:
    draws, probabilities = 200_000, torch.tensor([0.5, 0.3, 0.15, 0.05])
    distribution = Categorical(4)
    noise = torch.from_numpy(distribution.noise(np.random.default_rng(0), (draws,)))
    actions = distribution.sample(probabilities.log() + 7.0, noise)
    frequencies = actions.bincount(minlength=4) / draws
    # Five standard errors of a frequency, at most 5·√(¼ / 200,000) = 0.0056.
    assert (frequencies - probabilities).abs().max() < 5 * (0.25 / draws) ** 0.5


def test_gaussian_samples_have_the_mean_and_standard_deviation_of_the_inputs() -> None:
    draws, distribution = 200_000, gaussian(2)
    inputs = torch.tensor([1.0, -2.0, math.log(0.5), math.log(3)])
    actions = distribution.sample(inputs, torch.from_numpy(distribution.noise(np.random.default_rng(0), (draws,))))
    # Five standard errors: σ/√draws of the mean, σ/√(2·draws) of the deviation.
    sigma = torch.tensor([0.5, 3.0])
    assert ((actions.mean(0) - inputs[:2]).abs() < 5 * sigma / draws**0.5).all()
    assert ((actions.std(0) - sigma).abs() < 5 * sigma / (2 * draws) ** 0.5).all()


@pytest.mark.parametrize("distribution", [Categorical(3), gaussian(2)])
def test_noise_is_float32_finite_and_the_generators_alone(distribution: Categorical | DiagonalGaussian) -> None:
    first, second = (distribution.noise(np.random.default_rng(5), (4, 8)) for _ in range(2))
    assert first.dtype == np.float32
    assert first.shape[:2] == (4, 8)
    assert np.isfinite(first).all()
    assert np.array_equal(first, second)


def test_gaussian_without_noise_is_its_mode() -> None:
    inputs = normal(4, 6)
    assert torch.equal(gaussian(3).sample(inputs, torch.zeros(4, 3)), gaussian(3).mode(inputs))


def test_discrete_actions_start_where_the_space_does() -> None:
    distribution = make_distribution(gymnasium.spaces.Discrete(3, start=-1))
    actions = distribution.to_env(np.array([[0, 1], [2, 0]]))
    assert actions.dtype == np.int64
    assert actions.tolist() == [[-1, 0], [1, -1]]
    assert distribution.input_size == 3


def test_box_actions_are_clipped_and_get_the_shape_of_the_space() -> None:
    low = np.array([[-1, -2], [-np.inf, 0]], np.float32)
    space = gymnasium.spaces.Box(low, np.array([[1, 2], [3, np.inf]], np.float32))
    distribution = make_distribution(space)
    assert distribution.input_size == 8
    actions = distribution.to_env(np.array([[5, -5, -100, 100], [0.5, 0.5, 0.5, -0.5]], np.float32))
    assert actions.dtype == np.float32
    assert actions.tolist() == [[[1, -2], [-100, 100]], [[0.5, 0.5], [0.5, 0]]]
    assert all(space.contains(action) for action in actions)


def test_a_float64_box_gets_float64_actions() -> None:
    distribution = make_distribution(gymnasium.spaces.Box(-1, 1, (2,), np.float64))
    assert distribution.to_env(np.zeros((3, 2), np.float32)).dtype == np.float64


@pytest.mark.parametrize(
    "space",
    [gymnasium.spaces.MultiBinary(3), gymnasium.spaces.Box(0, 9, (2,), np.int64), gymnasium.spaces.Text(3)],
    ids=lambda space: type(space).__name__,
)
def test_other_action_spaces_are_refused(space: gymnasium.Space[object]) -> None:
    with pytest.raises(ConfigError, match=r"^The action space .* is not supported: use Discrete, or Box"):
        make_distribution(space)


def test_impossible_distributions_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"n >= 1 actions, got 0"):
        Categorical(0)
    with pytest.raises(ConfigError, match=r"m = 3 components.*low \[2\] and high \[2\]"):
        DiagonalGaussian(3, np.zeros(2), np.zeros(2))
