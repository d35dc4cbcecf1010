"""Policies of one parameter set, as plain modules, and the observations as they take them.

Axes: B batch rows, O observation features, A action-distribution inputs, m components of a continuous action.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector.utils import batch_space
from torch import Tensor, nn

from ...common.errors import ConfigError
from .distributions import ActionDistribution, Array, DiagonalGaussian, make_distribution

ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU}


def observation_size(space: gymnasium.Space[Any]) -> int:
    """O, the number of features that `encode_observations` makes of one observation.

    Raises:
        ConfigError: the space is neither Box nor Discrete.
    """
    if isinstance(space, gymnasium.spaces.Box):
        return math.prod(space.shape)
    if isinstance(space, gymnasium.spaces.Discrete):
        return int(space.n)
    raise ConfigError(f"The observation space {space} is not supported: use Box or Discrete.")


def encode_observations(space: gymnasium.Space[Any], obs: Array) -> Array:
    """Observations as the networks take them: Box flattened (values are not rescaled), Discrete one-hot.

    Args:
        space: the space of a single observation.
        obs: [..., *space.shape].

    Returns:
        float32 [..., O]; of a float32 Box a view, not a copy.

    Raises:
        ConfigError: the space is neither Box nor Discrete.
    """
    size = observation_size(space)
    if isinstance(space, gymnasium.spaces.Discrete):
        first = int(space.start)
        return np.equal(obs[..., None], np.arange(first, first + size)).astype(np.float32)
    leading = obs.shape[: obs.ndim - len(space.shape or ())]
    return obs.reshape((*leading, size)).astype(np.float32, copy=False)


def sample_observations(space: gymnasium.Space[Any], rows: int, seed: int = 0) -> Any:
    """``rows`` random observations of a space, as a vector environment returns them; `space` is not changed."""
    batched = batch_space(space, rows)
    batched.seed(seed)
    return batched.sample()


class ActorCriticPolicy(nn.Module):
    """What a policy offers. Any module with these methods will do; inheriting only says so to type checkers.

    Attributes:
        has_critic: whether `critic` may be called. A module without this attribute has one if it has the method.
        distribution: what the actor's outputs are inputs of.
    """

    has_critic: bool = True
    distribution: ActionDistribution

    def actor(self, obs: Tensor) -> Tensor:
        """Inputs of the action distribution, [B, O] -> [B, A]."""
        raise NotImplementedError(f"{type(self).__name__} does not define actor(obs).")

    def critic(self, obs: Tensor) -> Tensor:
        """Values of the observations, [B, O] -> [B]."""
        raise NotImplementedError(f"{type(self).__name__} does not define critic(obs).")


class MlpPolicy(ActorCriticPolicy):
    """Separate actor and critic MLPs, initialised orthogonally as in stable-baselines3.

    Gains are √2 in the hidden layers, 0.01 in the actor's head and 1 in the critic's; biases are 0. For a Box of
    actions the log standard deviations are parameters that do not depend on the observation. The order of the
    parameters is actor, log_std, critic.

    Args:
        observation_space: Box or Discrete; the networks take what `encode_observations` makes of it.
        action_space: Discrete, or Box with a floating-point dtype.
        net_arch: widths of the hidden layers of each network.
        activation: "tanh" or "relu".
        critic: whether there is a critic.
        log_std_init: initial log standard deviation.
        generator: source of the initial weights (the global one is never used); by default a new one seeded with 0.

    Raises:
        ConfigError: an unsupported space, width or activation.
    """

    def __init__(
        self,
        observation_space: gymnasium.Space[Any],
        action_space: gymnasium.Space[Any],
        net_arch: Sequence[int] = (64, 64),
        activation: str = "tanh",
        critic: bool = True,
        log_std_init: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ConfigError(f"Unknown activation {activation!r}: choose one of {', '.join(ACTIVATIONS)}.")
        if any(width < 1 for width in net_arch):
            raise ConfigError(f"net_arch must hold widths of at least 1, got {list(net_arch)}.")
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        self.observation_space, self.action_space = observation_space, action_space
        self.distribution = distribution = make_distribution(action_space)
        self.has_critic, self.activation = critic, activation
        trunk = [observation_size(observation_space), *net_arch]
        outputs = distribution.m if isinstance(distribution, DiagonalGaussian) else distribution.input_size
        self.actor_net = _mlp([*trunk, outputs], activation, 0.01, generator)
        if isinstance(distribution, DiagonalGaussian):
            self.actor_net.add_module("gaussian", AppendLogStd(outputs, log_std_init))
        if critic:
            self.critic_net = _mlp([*trunk, 1], activation, 1.0, generator)

    def actor(self, obs: Tensor) -> Tensor:
        """Inputs of the action distribution, [B, O] -> [B, A]."""
        inputs: Tensor = self.actor_net(obs)
        return inputs

    def critic(self, obs: Tensor) -> Tensor:
        """Values of the observations, [B, O] -> [B].

        Raises:
            ConfigError: the policy was made with `critic=False`.
        """
        if not self.has_critic:
            raise ConfigError("This policy was made with critic=False and has no values.")
        values: Tensor = self.critic_net(obs)
        return values.squeeze(-1)

    def parameter_groups(self) -> list[tuple[str, list[nn.Parameter]]]:
        """The contiguous blocks of the flat vector: "actor" (log_std included) and, if there is one, "critic"."""
        groups = [("actor", list(self.actor_net.parameters()))]
        return [*groups, ("critic", list(self.critic_net.parameters()))] if self.has_critic else groups


class AppendLogStd(nn.Module):
    """Appends a learnt log_std [m], the same for all rows, to the means [B, m]: the inputs of a Gaussian, [B, 2m].

    A module of its own, and the last of the actor, so that log_std comes after the actor's weights in the flat vector.
    """

    def __init__(self, m: int, initial: float) -> None:
        super().__init__()
        self.log_std = nn.Parameter(torch.full((m,), float(initial)))

    def forward(self, mean: Tensor) -> Tensor:
        """[B, m] -> [B, 2m]."""
        return torch.cat([mean, self.log_std.expand_as(mean)], dim=-1)


def _mlp(sizes: list[int], activation: str, head_gain: float, generator: torch.Generator) -> nn.Sequential:
    """Linear layers of widths `sizes` with activations in between."""
    network = nn.Sequential()
    head = len(sizes) - 2
    for layer, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
        # Made on the meta device, where the constructor's own initialisation draws nothing from the global generator.
        linear = nn.Linear(fan_in, fan_out, device="meta").to_empty(device="cpu")
        nn.init.orthogonal_(linear.weight, head_gain if layer == head else math.sqrt(2), generator)
        nn.init.zeros_(linear.bias)
        network.append(linear)
        if layer < head:
            network.append(ACTIVATIONS[activation]())
    return network
