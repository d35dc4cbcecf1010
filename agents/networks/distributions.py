"""Action distributions: pure functions of the actor's outputs, for stacked tensors of any leading shape.

Axes: ... any leading shape, A inputs of the distribution (the actor's outputs), k random numbers per action,
m components of a continuous action. Actions are a pure function of (inputs, noise), so that the owner of the random
numbers determines the trajectory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import gymnasium
import numpy as np
import torch
from torch import Tensor

from ...common.errors import ConfigError

Array = np.ndarray[Any, np.dtype[Any]]


class ActionDistribution(Protocol):
    """An action distribution, as the collector and the agents use it."""

    @property
    def input_size(self) -> int:
        """A, the number of actor outputs."""

    def noise(self, generator: np.random.Generator, shape: tuple[int, ...]) -> Array:
        """Random numbers for actions of leading shape `shape`: float32 [*shape, k]."""

    def sample(self, inputs: Tensor, noise: Tensor) -> Tensor:
        """The action drawn from π(·|inputs) by `noise`: [..., A], [..., k] -> int64 [...] or float [..., m]."""

    def mode(self, inputs: Tensor) -> Tensor:
        """The most likely action: [..., A] -> int64 [...] or float [..., m]."""

    def log_prob(self, inputs: Tensor, actions: Tensor) -> Tensor:
        """log π(actions|inputs), [...]."""

    def entropy(self, inputs: Tensor) -> Tensor:
        """Entropy of π(·|inputs) in nats, [...]."""

    def to_env(self, actions: Array) -> Array:
        """The actions in the environment's format."""


def log_softmax(inputs: Tensor) -> Tensor:
    """log softmax over the last axis, [..., A] -> [..., A], via a copy with this axis first.

    torch's kernel takes one short row at a time; along the first axis it is vectorised over all the others, which took
    an eighth of the time for two actions.
    """
    return inputs.movedim(-1, 0).contiguous().log_softmax(0).movedim(0, -1)


@dataclass(frozen=True)
class Categorical:
    """One of n actions; the inputs are unnormalised log-probabilities [..., n].

    Args:
        n: number of actions.
        start: the environment's name for action 0 (`gymnasium.spaces.Discrete.start`).
    """

    n: int
    start: int = 0

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ConfigError(f"A categorical distribution needs n >= 1 actions, got {self.n}.")

    @property
    def input_size(self) -> int:
        """A = n."""
        return self.n

    def noise(self, generator: np.random.Generator, shape: tuple[int, ...]) -> Array:
        """Standard Gumbel noise, float32 [*shape, n]."""
        # Drawn in float64: numpy's float32 exponentials and uniforms can be exactly 0, whose logarithm is infinite.
        return generator.gumbel(size=(*shape, self.n)).astype(np.float32)

    def sample(self, inputs: Tensor, noise: Tensor) -> Tensor:
        """argmax(inputs + Gumbel noise), a draw from softmax(inputs) (Gumbel, 1954): int64 [...]."""
        return (inputs + noise).argmax(-1)

    def mode(self, inputs: Tensor) -> Tensor:
        """The likeliest action, int64 [...]."""
        return inputs.argmax(-1)

    def log_prob(self, inputs: Tensor, actions: Tensor) -> Tensor:
        """log softmax(inputs)[actions], [...]."""
        return log_softmax(inputs).gather(-1, actions.unsqueeze(-1)).squeeze(-1)

    def entropy(self, inputs: Tensor) -> Tensor:
        """−Σ p log p, [...]."""
        log_probs = log_softmax(inputs)
        return -(log_probs.exp() * log_probs).sum(-1)

    def fisher_product(self, inputs: Tensor, tangents: Tensor) -> Tensor:
        """Fisher matrix diag(p) − p pᵀ of the inputs times tangents: [..., n], [..., n] -> [..., n]."""
        probs = inputs.softmax(-1)
        return probs * (tangents - (probs * tangents).sum(-1, keepdim=True))

    def to_env(self, actions: Array) -> Array:
        """Actions counted from `start`, int64 [...]."""
        return actions.astype(np.int64) + self.start


@dataclass(frozen=True, eq=False)
class DiagonalGaussian:
    """Independent normal components; inputs: the m means, then the m log standard deviations, [..., 2m].

    As in stable-baselines3 the density is that of the unbounded action; only what the environment gets is clipped.

    Args:
        m: number of components.
        low: lower bounds, of the shape of the environment's action (m entries); may be −inf.
        high: upper bounds, likewise.
    """

    m: int
    low: Array
    high: Array

    def __post_init__(self) -> None:
        if self.m < 1 or self.low.size != self.m or self.low.shape != self.high.shape:
            raise ConfigError(
                f"A Gaussian over m = {self.m} components needs m >= 1 and bounds of one shape with m entries, got low "
                f"{list(self.low.shape)} and high {list(self.high.shape)}."
            )

    @property
    def input_size(self) -> int:
        """A = 2m."""
        return 2 * self.m

    def noise(self, generator: np.random.Generator, shape: tuple[int, ...]) -> Array:
        """Standard normal noise, float32 [*shape, m]."""
        return generator.standard_normal((*shape, self.m), dtype=np.float32)

    def sample(self, inputs: Tensor, noise: Tensor) -> Tensor:
        """Mean + standard deviation · noise, [..., m]."""
        mean, log_std = inputs.chunk(2, dim=-1)
        return mean + log_std.exp() * noise

    def mode(self, inputs: Tensor) -> Tensor:
        """The mean, [..., m]."""
        return inputs[..., : self.m]

    def log_prob(self, inputs: Tensor, actions: Tensor) -> Tensor:
        """Σ over the components of −½ ((a − μ) / σ)² − log σ − ½ log 2π, [...]."""
        mean, log_std = inputs.chunk(2, dim=-1)
        scaled = (actions - mean) * (-log_std).exp()
        return (-0.5 * scaled.square() - log_std).sum(-1) - 0.5 * self.m * math.log(2 * math.pi)

    def entropy(self, inputs: Tensor) -> Tensor:
        """Σ over the components of log σ + ½ log 2πe, [...]."""
        return inputs[..., self.m :].sum(-1) + 0.5 * self.m * math.log(2 * math.pi * math.e)

    def fisher_product(self, inputs: Tensor, tangents: Tensor) -> Tensor:
        """Fisher matrix diag(1/σ², 2) of means and log σ times tangents: [..., 2m], [..., 2m] -> [..., 2m]."""
        _, log_std = inputs.chunk(2, dim=-1)
        mean_tangents, log_std_tangents = tangents.chunk(2, dim=-1)
        return torch.cat([(-2 * log_std).exp() * mean_tangents, 2 * log_std_tangents], dim=-1)

    def to_env(self, actions: Array) -> Array:
        """Actions in the environment's shape and dtype, clipped to its bounds: [..., m] -> [..., *action shape]."""
        shaped = actions.reshape(actions.shape[:-1] + self.low.shape)
        return np.clip(shaped, self.low, self.high).astype(self.low.dtype, copy=False)


def make_distribution(action_space: gymnasium.Space[Any]) -> ActionDistribution:
    """The distribution that fits an action space: `Categorical` for Discrete, `DiagonalGaussian` for a float Box.

    Raises:
        ConfigError: any other space.
    """
    if isinstance(action_space, gymnasium.spaces.Discrete):
        return Categorical(int(action_space.n), int(action_space.start))
    if isinstance(action_space, gymnasium.spaces.Box) and np.issubdtype(action_space.dtype, np.floating):
        return DiagonalGaussian(math.prod(action_space.shape), action_space.low, action_space.high)
    raise ConfigError(
        f"The action space {action_space} is not supported: use Discrete, or Box with a floating-point dtype."
    )
