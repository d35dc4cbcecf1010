"""Action distributions: pure functions of the actor's outputs, for stacked tensors of any leading shape.

Axes: ... any leading shape, A inputs of the distribution (the actor's outputs), k random numbers per action, m
components of an action that has several. Actions are a pure function of (inputs, noise), so that the owner of the
random numbers determines the trajectory.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import gymnasium
import numpy as np
from gymnasium import spaces
from torch import Tensor

from ...common.errors import ConfigError
from .discrete import Bernoulli, Categorical, MultiCategorical
from .gaussian import DiagonalGaussian, SquashedGaussian

Array = np.ndarray[Any, np.dtype[Any]]


class ActionDistribution(Protocol):
    """An action distribution, as the collector and the agents use it."""

    @property
    def input_size(self) -> int:
        """A, the number of actor outputs."""

    def noise(self, generator: np.random.Generator, shape: tuple[int, ...]) -> Array:
        """Random numbers from `generator` for actions of leading shape `shape`: float32 [*shape, k]."""

    def sample(self, inputs: Tensor, noise: Tensor) -> Tensor:
        """The action drawn from π(·|inputs) by `noise`: [..., A], [..., k] -> int64 [...], int64 or float [..., m]."""

    def mode(self, inputs: Tensor) -> Tensor:
        """The most likely action: [..., A] -> int64 [...], int64 or float [..., m]."""

    def log_prob(self, inputs: Tensor, actions: Tensor) -> Tensor:
        """log π(actions|inputs), [...]."""

    def entropy(self, inputs: Tensor) -> Tensor:
        """Entropy of π(·|inputs) in nats, [...]."""

    def to_env(self, actions: Array) -> Array:
        """The actions in the environment's format: [...] or [..., m] -> [..., *action shape]."""


def make_distribution(action_space: gymnasium.Space[Any], squash_output: bool = False) -> ActionDistribution:
    """The distribution that fits ``action_space``.

    `Categorical` for Discrete, `MultiCategorical` for MultiDiscrete, `Bernoulli` for MultiBinary; for a float Box
    `DiagonalGaussian`, or with ``squash_output`` `SquashedGaussian`.

    Raises:
        ConfigError: any other space, or ``squash_output`` where it cannot be.
    """
    if isinstance(action_space, spaces.Box) and np.issubdtype(action_space.dtype, np.floating):
        gaussian = SquashedGaussian if squash_output else DiagonalGaussian
        return gaussian(math.prod(action_space.shape), action_space.low, action_space.high)
    if squash_output:
        raise ConfigError(f"squash_output is for a Box of actions, and the action space is {action_space}.")
    if isinstance(action_space, spaces.Discrete):
        return Categorical(int(action_space.n), int(action_space.start))
    if isinstance(action_space, spaces.MultiDiscrete):
        return MultiCategorical(action_space.nvec, action_space.start)
    if isinstance(action_space, spaces.MultiBinary):
        return Bernoulli(action_space.shape)
    raise ConfigError(
        f"The action space {action_space} is not supported: use Discrete, MultiDiscrete, MultiBinary, or Box with a "
        "floating-point dtype."
    )
