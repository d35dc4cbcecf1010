"""Distributions over finitely many actions: one choice, several choices, several yes-or-no.

Axes: ... any leading shape, A inputs of the distribution, k choices of an action.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

from ...common.errors import ConfigError

Array = np.ndarray[Any, np.dtype[Any]]


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

    Raises:
        ConfigError: n is below 1.
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
class MultiCategorical:
    """k independent choices, one of n_i each; inputs: the unnormalised log-probabilities of all, [..., Σ n_i].

    Args:
        counts: n_i, an array of whole numbers in the shape of the environment's action.
        start: the environment's names for the choices 0, likewise (`gymnasium.spaces.MultiDiscrete.start`).

    Raises:
        ConfigError: there is no choice, an n_i is below 1, or the shapes differ.
    """

    counts: Array
    start: Array

    def __post_init__(self) -> None:
        if self.counts.size < 1 or (self.counts < 1).any() or self.counts.shape != self.start.shape:
            raise ConfigError(
                "A distribution over several choices needs n >= 1 for each and starts of the same shape, got n "
                f"{self.counts.tolist()} and starts {self.start.tolist()}."
            )

    @cached_property
    def sizes(self) -> list[int]:
        """n_i, as one list."""
        sizes: list[int] = self.counts.flatten().tolist()
        return sizes

    @property
    def input_size(self) -> int:
        """A = Σ n_i."""
        return sum(self.sizes)

    def noise(self, generator: np.random.Generator, shape: tuple[int, ...]) -> Array:
        """Standard Gumbel noise, float32 [*shape, Σ n_i]."""
        return Categorical(self.input_size).noise(generator, shape)

    def _pairs(self, *tensors: Tensor) -> list[tuple[Tensor, ...]]:
        """The parts [..., n_i] of tensors [..., Σ n_i], choice by choice."""
        return list(zip(*(torch.split(tensor, self.sizes, dim=-1) for tensor in tensors), strict=True))

    def sample(self, inputs: Tensor, noise: Tensor) -> Tensor:
        """A draw of each choice, see `Categorical.sample`: int64 [..., k]."""
        return torch.stack([part.argmax(-1) for (part,) in self._pairs(inputs + noise)], dim=-1)

    def mode(self, inputs: Tensor) -> Tensor:
        """The likeliest of each choice, int64 [..., k]."""
        return torch.stack([part.argmax(-1) for (part,) in self._pairs(inputs)], dim=-1)

    def log_prob(self, inputs: Tensor, actions: Tensor) -> Tensor:
        """Σ over the choices of log softmax(inputs_i)[actions_i], [...]."""
        chosen = zip(self._pairs(inputs), actions.unbind(-1), strict=True)
        return torch.stack([Categorical(part.shape[-1]).log_prob(part, action) for (part,), action in chosen]).sum(0)

    def entropy(self, inputs: Tensor) -> Tensor:
        """Σ over the choices of −Σ p log p, [...]."""
        return torch.stack([Categorical(part.shape[-1]).entropy(part) for (part,) in self._pairs(inputs)]).sum(0)

    def fisher_product(self, inputs: Tensor, tangents: Tensor) -> Tensor:
        """Fisher matrix of the inputs, one block a choice, times tangents: [..., A], [..., A] -> [..., A]."""
        pairs = self._pairs(inputs, tangents)
        return torch.cat([Categorical(part.shape[-1]).fisher_product(part, other) for part, other in pairs], dim=-1)

    def to_env(self, actions: Array) -> Array:
        """Choices counted from their starts: [..., k] -> [..., *action shape], in the dtype of the starts."""
        shaped = actions.reshape(actions.shape[:-1] + self.start.shape)
        return shaped.astype(self.start.dtype) + self.start


@dataclass(frozen=True)
class Bernoulli:
    """k independent switches, on with probability σ(x_i); the inputs are the log-odds x, [..., k].

    Args:
        shape: of the environment's action, with k entries.

    Raises:
        ConfigError: k is 0.
    """

    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if math.prod(self.shape) < 1:
            raise ConfigError(f"A distribution over switches needs at least one, got shape {list(self.shape)}.")

    @property
    def input_size(self) -> int:
        """A = k."""
        return math.prod(self.shape)

    def noise(self, generator: np.random.Generator, shape: tuple[int, ...]) -> Array:
        """Standard logistic noise, float32 [*shape, k]."""
        return generator.logistic(size=(*shape, self.input_size)).astype(np.float32)

    def sample(self, inputs: Tensor, noise: Tensor) -> Tensor:
        """1 where inputs + logistic noise > 0, which has probability σ(inputs): int64 [..., k]."""
        return (inputs + noise > 0).long()

    def mode(self, inputs: Tensor) -> Tensor:
        """1 where that is likelier, int64 [..., k]."""
        return (inputs > 0).long()

    def log_prob(self, inputs: Tensor, actions: Tensor) -> Tensor:
        """Σ over the switches of log σ(±x) = −log(1 + e^∓x), [...]."""
        return -softplus((1 - 2 * actions) * inputs).sum(-1)

    def entropy(self, inputs: Tensor) -> Tensor:
        """Σ over the switches of −p log p − (1 − p) log(1 − p) = log(1 + eˣ) − p x, [...]."""
        return (softplus(inputs) - inputs.sigmoid() * inputs).sum(-1)

    def fisher_product(self, inputs: Tensor, tangents: Tensor) -> Tensor:
        """Fisher matrix diag(p (1 − p)) of the inputs times tangents: [..., k], [..., k] -> [..., k]."""
        probs = inputs.sigmoid()
        return probs * (1 - probs) * tangents

    def to_env(self, actions: Array) -> Array:
        """Switches as the environment has them: [..., k] -> int8 [..., *action shape]."""
        return actions.reshape(actions.shape[:-1] + self.shape).astype(np.int8)
