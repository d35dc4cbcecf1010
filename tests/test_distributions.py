"""Action distributions against torch.distributions, and samples against the probabilities they stand for."""

from __future__ import annotations

import math
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from torch import Tensor

from optex_rl.agents import (
    Bernoulli,
    Categorical,
    DiagonalGaussian,
    MultiCategorical,
    SquashedGaussian,
    make_distribution,
)
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


def test_several_choices_equal_torch_distributions() -> None:
    space = gymnasium.spaces.MultiDiscrete(np.array([[2, 4], [3, 1]]), start=np.array([[5, 0], [-1, 7]]))
    distribution = make_distribution(space)
    inputs, sizes = 3 * normal(2, 5, 10), [2, 4, 3, 1]
    actions = torch.stack([torch.arange(10).view(2, 5) % n for n in sizes], dim=-1)
    oracles: Any = [torch.distributions.Categorical(logits=part) for part in torch.split(inputs, sizes, dim=-1)]
    expected = sum(oracle.log_prob(actions[..., i]) for i, oracle in enumerate(oracles))
    torch.testing.assert_close(distribution.log_prob(inputs, actions), expected)
    torch.testing.assert_close(distribution.entropy(inputs), sum(oracle.entropy() for oracle in oracles))
    assert torch.equal(distribution.mode(inputs), torch.stack([o.probs.argmax(-1) for o in oracles], dim=-1))
    given = distribution.to_env(np.array([1, 3, 0, 0]))
    assert given.tolist() == [[6, 3], [-1, 7]]
    assert space.contains(given)


def test_switches_equal_torch_distributions() -> None:
    distribution = Bernoulli((3, 2))
    inputs, actions = 3 * normal(4, 6), (normal(4, 6) > 0).long()
    oracle: Any = torch.distributions.Independent(torch.distributions.Bernoulli(logits=inputs), 1)
    torch.testing.assert_close(distribution.log_prob(inputs, actions), oracle.log_prob(actions.float()))
    torch.testing.assert_close(distribution.entropy(inputs), oracle.entropy())
    assert torch.equal(distribution.mode(inputs), (inputs > 0).long())
    given = distribution.to_env(actions.numpy())
    assert gymnasium.spaces.MultiBinary((3, 2)).contains(given[0])
    assert given.reshape(4, 6).tolist() == actions.tolist()
    # Odds of e^±200 are beyond what single precision divides.
    far = torch.tensor([200.0, -200.0]).expand(6, 2).T
    assert distribution.log_prob(far, (far > 0).long()).tolist() == [0.0, 0.0]
    assert distribution.entropy(far).tolist() == [0.0, 0.0]


def squashed(low: list[float], high: list[float]) -> SquashedGaussian:
    return SquashedGaussian(len(low), np.array(low, np.float64), np.array(high, np.float64))


def transformed(distribution: SquashedGaussian, inputs: Tensor) -> Any:
    """torch's distribution of what the environment gets, in double precision."""
    mean, log_std = inputs.double().chunk(2, dim=-1)
    low, high = torch.from_numpy(distribution.low), torch.from_numpy(distribution.high)
    stretch = torch.distributions.AffineTransform((low + high) / 2, (high - low) / 2, event_dim=1)
    normals = torch.distributions.Independent(torch.distributions.Normal(mean, log_std.exp()), 1)
    return torch.distributions.TransformedDistribution(normals, [torch.distributions.TanhTransform(), stretch])


def test_squashed_density_equals_torch_distributions() -> None:
    distribution, inputs = squashed([-2, 0, -1], [2, 5, 1]), normal(50, 6) / 2
    noise = torch.from_numpy(distribution.noise(np.random.default_rng(0), (50,)))
    actions = distribution.sample(inputs, noise).double()
    given = distribution.to_env(actions.numpy())
    expected = transformed(distribution, inputs).log_prob(torch.from_numpy(given))
    torch.testing.assert_close(distribution.log_prob(inputs.double(), actions), expected, rtol=1e-6, atol=1e-6)
    assert ((given >= distribution.low) & (given <= distribution.high)).all()


def test_squashed_density_far_out_and_on_the_bounds() -> None:
    # u = 40: tanh u = 1 in every precision, and log da/du = 2 (log 2 − 40) = −78.613706; log N(40; 40, 1) = −0.918939.
    log_prob = squashed([-1], [1]).log_prob(torch.tensor([40.0, 0.0]), torch.tensor([40.0]))
    torch.testing.assert_close(log_prob, torch.tensor(-0.918939 + 78.613706))
    assert squashed([-1], [1]).to_env(np.array([40.0, -40.0])[:, None]).tolist() == [[1], [-1]]


def test_squashed_entropy_is_the_mean_of_minus_the_log_density() -> None:
    distribution, draws = squashed([-2, 0], [2, 5]), 400_000
    for inputs in (torch.zeros(4), torch.tensor([1.0, -2.0, -1.0, 0.5]), torch.tensor([0.3, 0.0, 1.0, 1.0])):
        noise = torch.from_numpy(distribution.noise(np.random.default_rng(0), (draws,)))
        sampled = -distribution.log_prob(inputs, distribution.sample(inputs, noise))
        # Five standard errors of the mean, and what the quadrature may be off: σ is up to e.
        limit = 5 * float(sampled.std()) / draws**0.5 + 3e-3
        assert abs(float(distribution.entropy(inputs) - sampled.mean())) < limit


@pytest.mark.parametrize(("sigma", "limit"), [(0.1, 1e-6), (1.0, 1e-6), (3.0, 3e-3), (10.0, 0.2)])
def test_accuracy_of_the_quadrature(sigma: float, limit: float) -> None:
    distribution = squashed([-1], [1])
    u = torch.linspace(-12, 12, 200_001, dtype=torch.float64) * sigma
    for mean in (0.0, 0.7, 3.0):
        inputs = torch.tensor([mean, math.log(sigma)], dtype=torch.float64)
        log_probs = distribution.log_prob(inputs, (u + mean)[:, None])
        normals = torch.exp(gaussian(1).log_prob(inputs, (u + mean)[:, None]))
        expected = -(normals * log_probs).sum() * (u[1] - u[0])
        assert abs(float(distribution.entropy(inputs) - expected)) < limit


@pytest.mark.parametrize(
    "distribution",
    [Categorical(3), MultiCategorical(np.array([2, 3]), np.zeros(2, np.int64)), Bernoulli((3,)), squashed([-1], [3])],
)
def test_fisher_matrix_is_the_mean_of_the_scores_products(distribution: Any) -> None:
    draws, A = 400_000, distribution.input_size
    inputs = normal(A).double().requires_grad_()
    noise = torch.from_numpy(distribution.noise(np.random.default_rng(0), (draws,))).double()
    rows = inputs.detach().expand(draws, A).clone().requires_grad_()
    actions = distribution.sample(rows.detach(), noise)
    (scores,) = torch.autograd.grad(distribution.log_prob(rows, actions).sum(), rows)
    expected = scores.T @ scores / draws
    products = distribution.fisher_product(inputs.detach().expand(A, A), torch.eye(A, dtype=torch.float64))
    torch.testing.assert_close(products, expected, rtol=0, atol=0.05)


def test_frequencies_of_choices_and_switches_are_their_probabilities() -> None:
    draws, generator = 200_000, np.random.default_rng(0)
    limit = 5 * (0.25 / draws) ** 0.5  # five standard errors of a frequency
    switches, inputs = Bernoulli((3,)), torch.tensor([0.0, 1.5, -2.0])
    actions = switches.sample(inputs, torch.from_numpy(switches.noise(generator, (draws,))))
    assert (actions.float().mean(0) - inputs.sigmoid()).abs().max() < limit
    cases: list[tuple[Any, Tensor, list[int]]] = [
        (Categorical(4), torch.tensor([0.5, 0.3, 0.15, 0.05]).log() + 7.0, [4]),
        (MultiCategorical(np.array([2, 3]), np.zeros(2, np.int64)), torch.tensor([0.0, 1.0, 0.5, 0.0, -1.0]), [2, 3]),
    ]
    for choices, inputs, sizes in cases:
        actions = choices.sample(inputs, torch.from_numpy(choices.noise(generator, (draws,)))).reshape(draws, -1)
        for i, part in enumerate(torch.split(inputs, sizes)):
            frequencies = actions[:, i].bincount(minlength=len(part)) / draws
            assert (frequencies - part.softmax(-1)).abs().max() < limit


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
    ("space", "message"),
    [
        (gymnasium.spaces.Discrete(3), r"squash_output is for a Box of actions, and the action space is Discrete\(3\)"),
        (gymnasium.spaces.Box(-np.inf, 1, (1,)), r"finite bounds, got low \[-inf\] and high \[1.0\]"),
    ],
)
def test_what_cannot_be_squashed_is_refused(space: gymnasium.Space[object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_distribution(space, squash_output=True)


def test_impossible_distributions_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"n >= 1 actions, got 0"):
        Categorical(0)
    with pytest.raises(ConfigError, match=r"m = 3 components.*low \[2\] and high \[2\]"):
        DiagonalGaussian(3, np.zeros(2), np.zeros(2))
