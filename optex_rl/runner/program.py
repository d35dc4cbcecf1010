"""A policy as one torch module: from observations as the task gives them to actions as the task takes them.

Axes: B rows of a batch, O entries of an observation's row, F numbers of a Box.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import Space, spaces
from torch import Tensor, nn

from ..agents import (
    ActionDistribution,
    Bernoulli,
    Categorical,
    DiagonalGaussian,
    MultiCategorical,
    ObservationLayout,
    SquashedGaussian,
    StackedPolicy,
)
from ..common.errors import ConfigError
from ..training.rollouts.normalization import CLIP, EPSILON, Normalizer


class Program(nn.Module):
    """Normalisation, network and the form of the actions, with nothing of NumPy in its forward pass.

    Args:
        policy: the network.
        normalizer: its statistics.
        space: of a single observation, see `ObservationLayout`.

    Raises:
        ConfigError: the policy has an action distribution of one's own.
    """

    def __init__(self, policy: nn.Module, normalizer: Normalizer, space: Space[Any]) -> None:
        super().__init__()
        self.policy, self.layout, self.normalized = policy, ObservationLayout(space), normalizer.obs
        _, mean, var = normalizer.obs_moments
        self.mean, self.scale = torch.as_tensor(mean), torch.as_tensor(np.sqrt(var + EPSILON))
        self.numbers = nn.ModuleList(Numbers(part.space) for part in self.layout.plain)
        distribution = StackedPolicy(policy).distribution
        self.mode, self.to_env = distribution.mode, ToEnv(distribution)

    def forward(self, obs: Tensor | dict[str, Tensor]) -> Tensor:
        """``[B, …]``, of a Dict a dictionary of such, -> ``[B, …]``."""
        actor: Any = self.policy.actor
        actions: Tensor = self.to_env(self.mode(actor(self.rows(obs))))
        return actions

    def rows(self, obs: Tensor | dict[str, Tensor]) -> Tensor:
        """As `ObservationLayout.encode` and `Normalizer.observations`: -> ``[B, O]``, float32 or uint8."""
        parts: dict[Any, Tensor] = obs if isinstance(obs, dict) else {None: obs}
        plain = [read(parts[part.key]) for read, part in zip(self.numbers, self.layout.plain, strict=True)]
        numbers = [self.normalize(torch.cat(plain, 1))] if plain else []
        if not self.layout.images:
            return numbers[0]
        images = [parts[part.key].flatten(1) for part in self.layout.images]
        rows = torch.cat([*(part.view(torch.uint8) for part in numbers), *images], 1)
        return nn.functional.pad(rows, (0, self.layout.size - rows.shape[1]))

    def normalize(self, numbers: Tensor) -> Tensor:
        """As `standardize`, in double precision like it, of the first F numbers: float32 ``[B, …]`` -> ``[B, …]``."""
        if not self.normalized:
            return numbers
        size = self.layout.box_numbers
        scaled = ((numbers[:, :size] - self.mean) / self.scale).clamp(-CLIP, CLIP).float()
        return torch.cat([scaled, numbers[:, size:]], 1)


class Numbers(nn.Module):
    """The numbers of one part of an observation that is no image: ``[B, …]`` -> float32 ``[B, numbers]``.

    Args:
        space: of the part: Box, Discrete, MultiDiscrete or MultiBinary.
    """

    def __init__(self, space: Space[Any]) -> None:
        super().__init__()
        # What stands for an entry, and which entry: the ones and zeros of Discrete and MultiDiscrete.
        self.values: Tensor | None = None
        if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
            counts = np.ravel(space.n if isinstance(space, spaces.Discrete) else space.nvec)
            names = [np.arange(n) + first for n, first in zip(counts, np.ravel(space.start), strict=True)]
            self.values = torch.from_numpy(np.concatenate(names))
            self.entries = torch.from_numpy(np.repeat(np.arange(len(counts)), counts))

    def forward(self, obs: Tensor) -> Tensor:
        """``[B, …]`` -> float32 ``[B, numbers]``."""
        flat = obs.reshape(obs.shape[0], -1)
        return flat.float() if self.values is None else (flat[:, self.entries] == self.values).float()


class ToEnv(nn.Module):
    """``to_env`` of a distribution, on tensors.

    Args:
        distribution: one of `optex_rl.agents`.

    Raises:
        ConfigError: it is another: a subclass, too, may do anything with its actions.
    """

    def __init__(self, distribution: ActionDistribution) -> None:
        super().__init__()
        self.kind = type(distribution)
        if isinstance(distribution, (Categorical, MultiCategorical)):
            self.start = torch.as_tensor(distribution.start)
        elif isinstance(distribution, DiagonalGaussian):
            self.low, self.high = torch.as_tensor(distribution.low), torch.as_tensor(distribution.high)
        elif isinstance(distribution, Bernoulli):
            self.shape = distribution.shape
        if self.kind not in (Categorical, MultiCategorical, Bernoulli, DiagonalGaussian, SquashedGaussian):
            raise ConfigError(f"policies with the action distribution {self.kind.__name__} cannot be exported")

    def forward(self, actions: Tensor) -> Tensor:
        """Actions as sampled, ``[B]`` or ``[B, m]``, -> ``[B, *action shape]``."""
        if self.kind is Bernoulli:
            return actions.reshape(-1, *self.shape).to(torch.int8)
        if self.kind in (Categorical, MultiCategorical):
            return actions.reshape(-1, *self.start.shape).to(self.start.dtype) + self.start
        shaped = actions.reshape(-1, *self.low.shape)
        if self.kind is SquashedGaussian:
            low, high = self.low.double(), self.high.double()
            shaped = (low + high) / 2 + (high - low) / 2 * shaped.tanh()
        return shaped.to(self.low.dtype).clamp(self.low, self.high)
