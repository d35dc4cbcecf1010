"""Policies of one parameter set, as plain modules: what they offer, and the one that is two MLPs.

Axes: B batch rows, O entries of an observation's row, A action-distribution inputs, m components of a continuous
action.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, TypeVar

import gymnasium
import torch
from torch import Tensor, nn

from ...common.errors import ConfigError
from .distributions import ActionDistribution, make_distribution
from .gaussian import DiagonalGaussian
from .observations import ObservationLayout

ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU}
Layer = TypeVar("Layer", nn.Linear, nn.Conv2d)


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
        observation_space: see `ObservationLayout`; images are flattened, and divided by 255.
        action_space: see `make_distribution`.
        net_arch: widths of the hidden layers of each network.
        activation: "tanh" or "relu".
        critic: whether there is a critic.
        log_std_init: initial log standard deviation.
        generator: source of the initial weights (the global one is never used); by default a new one seeded with 0.
        squash_output: whether continuous actions go through tanh, to the bounds of their space.

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
        squash_output: bool = False,
    ) -> None:
        super().__init__()
        check_architecture(net_arch, activation)
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        self.observation_space, self.action_space = observation_space, action_space
        self.layout = ObservationLayout(observation_space)
        self.distribution = make_distribution(action_space, squash_output)
        self.has_critic, self.activation = critic, activation
        trunk = [self.layout.features, *net_arch]
        self.actor_net = make_actor(trunk, self.distribution, activation, log_std_init, generator)
        if critic:
            self.critic_net = make_mlp([*trunk, 1], activation, 1.0, generator)

    def actor(self, obs: Tensor) -> Tensor:
        """Inputs of the action distribution, [B, O] -> [B, A]."""
        inputs: Tensor = self.actor_net(self.layout.flat(obs))
        return inputs

    def critic(self, obs: Tensor) -> Tensor:
        """Values of the observations, [B, O] -> [B].

        Raises:
            ConfigError: the policy was made with `critic=False`.
        """
        if not self.has_critic:
            raise ConfigError("This policy was made with critic=False and has no values.")
        values: Tensor = self.critic_net(self.layout.flat(obs))
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


def check_architecture(net_arch: Sequence[int], activation: str) -> None:
    """Raise a ConfigError unless the activation is known and all widths are at least 1."""
    if activation not in ACTIVATIONS:
        raise ConfigError(f"Unknown activation {activation!r}: choose one of {', '.join(ACTIVATIONS)}.")
    if any(width < 1 for width in net_arch):
        raise ConfigError(f"net_arch must hold widths of at least 1, got {list(net_arch)}.")


def make_actor(
    trunk: list[int], distribution: ActionDistribution, activation: str, log_std_init: float, generator: torch.Generator
) -> nn.Sequential:
    """The MLP from features to the inputs of a distribution, a Gaussian's log standard deviations last.

    Args:
        trunk: widths of features and hidden layers.
        distribution: what the outputs are inputs of.
        activation: of the hidden layers.
        log_std_init: initial log standard deviation.
        generator: source of the initial weights.
    """
    outputs = distribution.m if isinstance(distribution, DiagonalGaussian) else distribution.input_size
    network = make_mlp([*trunk, outputs], activation, 0.01, generator)
    if isinstance(distribution, DiagonalGaussian):
        network.add_module("gaussian", AppendLogStd(outputs, log_std_init))
    return network


def make_mlp(sizes: list[int], activation: str, head_gain: float, generator: torch.Generator) -> nn.Sequential:
    """Linear layers of widths `sizes` with activations in between, see `orthogonal`."""
    network = nn.Sequential()
    head = len(sizes) - 2
    for layer, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
        linear = nn.Linear(fan_in, fan_out, device="meta")
        network.append(orthogonal(linear, head_gain if layer == head else math.sqrt(2), generator))
        if layer < head:
            network.append(ACTIVATIONS[activation]())
    return network


def orthogonal(layer: Layer, gain: float, generator: torch.Generator) -> Layer:
    """A layer with orthogonal weights and zero biases.

    Args:
        layer: made on the meta device, where the constructor's own initialisation draws nothing from the global
            generator.
        gain: of the weights.
        generator: source of the weights.
    """
    layer = layer.to_empty(device="cpu")
    nn.init.orthogonal_(layer.weight, gain, generator)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer
