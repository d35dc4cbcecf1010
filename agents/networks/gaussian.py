"""Distributions over continuous actions: normal ones, clipped to the bounds or squashed into them.

Axes: ... any leading shape, m components of an action.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

from ...common.errors import ConfigError

Array = np.ndarray[Any, np.dtype[Any]]
NODES: Final = 32  # of the quadrature for the entropy of a squashed Gaussian


@dataclass(frozen=True, eq=False)
class DiagonalGaussian:
    """Independent normal components; inputs: the m means, then the m log standard deviations, [..., 2m].

    As in stable-baselines3 the density is that of the unbounded action; only what the environment gets is clipped.

    Args:
        m: number of components.
        low: lower bounds, of the shape of the environment's action (m entries); may be −inf.
        high: upper bounds, likewise.

    Raises:
        ConfigError: m is below 1, or the bounds have not m entries or other shapes than each other.
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
        """Fisher matrix diag(1/σ², 2) of the inputs (μ, log σ) times tangents: [..., 2m], [..., 2m] -> [..., 2m]."""
        _, log_std = inputs.chunk(2, dim=-1)
        mean_tangents, log_std_tangents = tangents.chunk(2, dim=-1)
        return torch.cat([(-2 * log_std).exp() * mean_tangents, 2 * log_std_tangents], dim=-1)

    def to_env(self, actions: Array) -> Array:
        """Actions in the environment's shape and dtype, clipped to its bounds: [..., m] -> [..., *action shape]."""
        shaped = actions.reshape(actions.shape[:-1] + self.low.shape)
        return np.clip(shaped, self.low, self.high).astype(self.low.dtype, copy=False)


@dataclass(frozen=True, eq=False)
class SquashedGaussian(DiagonalGaussian):
    """tanh of independent normal components, stretched to the bounds; the inputs are those of `DiagonalGaussian`.

    The actions here are the normal numbers u; the environment gets a = c + h tanh u, c the middle between the bounds
    and h half their distance. The density is that of a (Haarnoja et al., 2018, arXiv 1801.01290, App. C). It is exact:
    u is known, and need not be found from an a that may have been rounded to a bound. The mode here is where the mean
    goes, as in stable-baselines3: the median of a.

    Args:
        m, low, high: as of `DiagonalGaussian`, low and high [*action shape].

    Raises:
        ConfigError: a bound is infinite.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (np.isfinite(self.low).all() and np.isfinite(self.high).all()):
            raise ConfigError(
                f"squash_output needs actions with finite bounds, got low {self.low.tolist()} and high "
                f"{self.high.tolist()}."
            )

    @cached_property
    def _log_scale(self) -> float:
        """Σ log h over the components."""
        return float(np.log((self.high.astype(np.float64) - self.low) / 2).sum())

    def log_prob(self, inputs: Tensor, actions: Tensor) -> Tensor:
        """log N(u) − Σ log |da/du|, [...]."""
        return super().log_prob(inputs, actions) - log_slope(actions).sum(-1) - self._log_scale

    def entropy(self, inputs: Tensor) -> Tensor:
        """Entropy of u + Σ E log |da/du|, [...]; the mean by Gauss-Hermite quadrature, as there is no closed form.

        With 32 nodes the error of a component stays below 1e-6 nats for σ ≤ 1, 3e-3 for σ ≤ 3 and 0.2 for σ ≤ 10.
        """
        mean, log_std = inputs.chunk(2, dim=-1)
        nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
        total = torch.zeros_like(mean)
        for node, weight in zip(nodes.tolist(), (weights / weights.sum()).tolist(), strict=True):
            total = total + weight * log_slope(mean + node * log_std.exp())
        return super().entropy(inputs) + total.sum(-1) + self._log_scale

    def to_env(self, actions: Array) -> Array:
        """c + h tanh u, in the environment's shape and dtype: [..., m] -> [..., *action shape]."""
        low, high = self.low.astype(np.float64), self.high.astype(np.float64)
        squashed = (low + high) / 2 + (high - low) / 2 * np.tanh(actions.reshape(actions.shape[:-1] + low.shape))
        clipped: Array = np.clip(squashed.astype(self.low.dtype), self.low, self.high)
        return clipped


def log_slope(u: Tensor) -> Tensor:
    """log d tanh(u) / du = log(1 − tanh² u) = 2 (log 2 − u − log(1 + e^−2u)), without the difference near ±1."""
    return 2 * (math.log(2) - u - softplus(-2 * u))
