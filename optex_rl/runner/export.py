"""Policies as programs of their own: normalisation, network and the form of the actions in one file of torch.export."""

from __future__ import annotations

import io
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from gymnasium import Space, spaces
from torch import Tensor, nn

from ..agents import (
    ActionDistribution,
    Categorical,
    DiagonalGaussian,
    SquashedGaussian,
    StackedPolicy,
    sample_observations,
)
from ..common.errors import ConfigError
from ..common.images import is_image
from ..common.storage import write_atomically
from ..training.rollouts.normalization import CLIP, EPSILON, Normalizer, prior_moments

CHECKED: Final = 64  # observations on which the program must act as the policy does
TOLERANCE: Final = 1e-5  # of continuous actions


class Program(nn.Module):
    """From observations as the task gives them, ``[B, …]``, to the most likely actions as the task takes them.

    Args:
        policy: the network.
        normalizer: its statistics.
        space: of a single observation, Box or Discrete.

    Raises:
        ConfigError: the observations or the actions are of another kind.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, policy: nn.Module, normalizer: Normalizer, space: Space[Any]) -> None:
        super().__init__()
        if not isinstance(space, (spaces.Box, spaces.Discrete)):
            raise ConfigError(f"only policies for Box or Discrete observations can be exported, not for {space}")
        self.policy, self.space, self.normalized = policy, space, normalizer.obs
        self.distribution = StackedPolicy(policy).distribution
        _, mean, var = normalizer.obs_moments if normalizer.obs else prior_moments(1)  # of images they would be empty
        self.register_buffer("mean", torch.as_tensor(mean))
        self.register_buffer("scale", torch.as_tensor(np.sqrt(var + EPSILON)))

    def forward(self, obs: Tensor) -> Tensor:
        """``[B, …]`` -> ``[B, …]``."""
        actor: Any = self.policy.actor
        actions = self.distribution.mode(actor(self.normalize(self.encode(obs))))
        return to_env(self.distribution, actions)

    def encode(self, obs: Tensor) -> Tensor:
        """As `encode_observations`: ``[B, …]`` -> ``[B, O]``, float32, or uint8 of an image."""
        if isinstance(self.space, spaces.Discrete):
            names = torch.arange(int(self.space.start), int(self.space.start + self.space.n), device=obs.device)
            return (obs[:, None] == names).float()
        return obs.flatten(1) if is_image(self.space) else obs.flatten(1).float()

    def normalize(self, rows: Tensor) -> Tensor:
        """As `standardize`, in double precision like it: ``[B, O]`` -> float32 ``[B, O]``."""
        if not self.normalized:
            return rows
        return ((rows - self.mean) / self.scale).clamp(-CLIP, CLIP).float()


def to_env(distribution: ActionDistribution, actions: Tensor) -> Tensor:
    """As ``distribution.to_env``, on tensors.

    Raises:
        ConfigError: it is not known how for this distribution.
    """
    if isinstance(distribution, Categorical):
        return actions + distribution.start
    # Another subclass may do something else with its actions.
    if type(distribution) is DiagonalGaussian or type(distribution) is SquashedGaussian:
        low, high = torch.as_tensor(distribution.low), torch.as_tensor(distribution.high)
        shaped = actions.reshape(-1, *low.shape).to(low.dtype)
        if isinstance(distribution, SquashedGaussian):
            shaped = (low + high) / 2 + (high - low) / 2 * shaped.tanh()
        return shaped.clamp(low.to(actions.device), high.to(actions.device))
    raise ConfigError(f"policies with the action distribution {type(distribution).__name__} cannot be exported")


def export_policy(
    policy: nn.Module, normalizer: Normalizer, space: Space[Any], predict: Callable[[Any], tuple[Any, Any]], path: Path
) -> None:
    """Write a `Program`, once it has been read again and acts as ``predict`` does.

    Args:
        policy: the network.
        normalizer: its statistics.
        space: of a single observation.
        predict: from observations ``[B, …]`` to actions ``[B, …]``.
        path: the file, which ends in .pt2.

    Raises:
        ConfigError: the path ends differently, torch cannot export the network, or the actions differ.
        RunFolderError: the file cannot be written.
    """
    if path.suffix != ".pt2":
        raise ConfigError(f"a policy is exported by torch.export: its path must end in .pt2, got {str(path)!r}")
    obs = sample_observations(space, CHECKED)
    program, buffer = Program(deepcopy(policy), normalizer, space).eval().requires_grad_(False), io.BytesIO()
    try:
        batch = {0: torch.export.Dim("batch", min=1)}
        exported = torch.export.export(program, (torch.from_numpy(obs),), dynamic_shapes=(batch,))
        torch.export.save(exported, buffer)
        read: Any = torch.export.load(io.BytesIO(buffer.getvalue())).module()
    except ConfigError:
        raise
    except Exception as error:  # of any type, since the network may be anything
        reason = (str(error) or type(error).__name__).splitlines()[0]
        if "specialized it to be a constant" in str(error):
            reason = "it works for one number of rows only; obs.shape[0] is kept open, where len(obs) is not"
        raise ConfigError(f"torch cannot export {type(policy).__name__}: {reason}") from error
    for rows in (obs, obs[:1]):
        expected, given = np.asarray(predict(rows)[0]), read(torch.from_numpy(rows)).numpy()
        if expected.dtype != given.dtype or not np.allclose(expected, given, rtol=0, atol=TOLERANCE):
            raise ConfigError(f"the program exported from {type(policy).__name__} does not act as the policy does")
    write_atomically(path, buffer.getvalue())
