"""Policies with convolutional networks on images, as plain modules.

Axes: B batch rows, O entries of an observation's row, C channels, H × W pixels, A action-distribution inputs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import gymnasium
import torch
from gymnasium import spaces
from torch import Tensor, nn

from ...common.errors import ConfigError
from ...common.images import has_channels_first
from .distributions import make_distribution
from .mlp import ActorCriticPolicy, check_architecture, make_actor, make_mlp, orthogonal
from .observations import ObservationLayout

# Output channels, kernel and stride of each convolution, without padding.
CNNS: Final = {
    "nature": ((32, 8, 4), (64, 4, 2), (64, 3, 1)),  # Mnih et al., 2015, Nature 518
    "small": ((16, 3, 2), (32, 3, 2)),
}


class CnnPolicy(ActorCriticPolicy):
    """Actor and critic on images, initialised as in stable-baselines3.

    Each image goes through convolutions with ReLU, by default those of Mnih et al. (2015, Nature 518), and a linear
    layer with ReLU; what else is in a Dict is taken as it is, and MLPs for actor and critic follow: ``CnnPolicy`` and
    ``MultiInputPolicy`` of stable-baselines3. Gains are √2 in all layers but the heads, 0.01 in the actor's and 1 in
    the critic's; biases are 0. The order of the parameters is features, actor, log_std, critic, or with features for
    each: actor with its features, log_std, critic with its.

    Args:
        observation_space: Box or Dict with at least one image, see `is_image`.
        action_space: see `make_distribution`.
        net_arch: widths of the hidden layers behind the features; by default none for an image, (64, 64) for a Dict.
        activation, critic, log_std_init, generator, squash_output: as of `MlpPolicy`.
        cnn: "nature", for images of at least 36 × 36, or "small", at least 7 × 7.
        features_dim: outputs for each image; by default 512, in a Dict 256.
        share_features_extractor: whether actor and critic have one.

    Raises:
        ConfigError: there is no image, it is too small, or an unsupported space, width or name.
    """

    def __init__(
        self,
        observation_space: gymnasium.Space[Any],
        action_space: gymnasium.Space[Any],
        net_arch: Sequence[int] | None = None,
        activation: str = "tanh",
        critic: bool = True,
        log_std_init: float = 0.0,
        generator: torch.Generator | None = None,
        squash_output: bool = False,
        cnn: str = "nature",
        features_dim: int | None = None,
        share_features_extractor: bool = True,
    ) -> None:
        super().__init__()
        is_dict = isinstance(observation_space, spaces.Dict)
        net_arch = ((64, 64) if is_dict else ()) if net_arch is None else net_arch
        features_dim = (256 if is_dict else 512) if features_dim is None else features_dim
        check_architecture(net_arch, activation)
        generator = torch.Generator().manual_seed(0) if generator is None else generator
        self.observation_space, self.action_space = observation_space, action_space
        self.layout = layout = ObservationLayout(observation_space)
        self.distribution = make_distribution(action_space, squash_output)
        self.has_critic, self.activation = critic, activation
        self.shares_features = critic and share_features_extractor
        self.features = Features(layout, cnn, features_dim, generator)
        trunk = [self.features.size, *net_arch]
        self.actor_net = make_actor(trunk, self.distribution, activation, log_std_init, generator)
        if critic:
            if not self.shares_features:
                self.critic_features = Features(layout, cnn, features_dim, generator)
            self.critic_net = make_mlp([*trunk, 1], activation, 1.0, generator)

    def actor(self, obs: Tensor) -> Tensor:
        """Inputs of the action distribution, [B, O] -> [B, A]."""
        inputs: Tensor = self.actor_net(self.features(obs))
        return inputs

    def critic(self, obs: Tensor) -> Tensor:
        """Values of the observations, [B, O] -> [B].

        Raises:
            ConfigError: the policy was made with `critic=False`.
        """
        if not self.has_critic:
            raise ConfigError("This policy was made with critic=False and has no values.")
        features = self.features if self.shares_features else self.critic_features
        values: Tensor = self.critic_net(features(obs))
        return values.squeeze(-1)

    def parameter_groups(self) -> list[tuple[str, list[nn.Parameter]]]:
        """The contiguous blocks of the flat vector: "features" if they are shared, "actor", and "critic" if any."""
        features, actor = list(self.features.parameters()), list(self.actor_net.parameters())
        if self.shares_features:
            return [("features", features), ("actor", actor), ("critic", list(self.critic_net.parameters()))]
        groups = [("actor", [*features, *actor])]
        if self.has_critic:
            groups.append(("critic", [*self.critic_features.parameters(), *self.critic_net.parameters()]))
        return groups


class Features(nn.Module):
    """The numbers of an observation as they are, and `features_dim` outputs for each of its images.

    Args:
        layout: of the observations.
        cnn: name of the convolutions.
        features_dim: outputs for each image.
        generator: source of the initial weights.

    Attributes:
        size: number of features.
        cnns: one network for each image, in the order of the layout.

    Raises:
        ConfigError: there is no image, or one that is too small.
    """

    def __init__(self, layout: ObservationLayout, cnn: str, features_dim: int, generator: torch.Generator) -> None:
        super().__init__()
        if not layout.images:
            raise ConfigError(f"A CNN needs images (a Box of three axes, uint8 from 0 to 255), not {layout.space}.")
        self.layout = layout
        networks = [make_cnn(_image_shape(part.space), cnn, features_dim, generator) for part in layout.images]
        self.cnns = nn.ModuleList(networks)
        self.size = layout.numbers + features_dim * len(networks)

    def forward(self, rows: Tensor) -> Tensor:
        """[B, O] -> [B, size]."""
        numbers, images = self.layout.split(rows)
        outputs = [cnn(image) for cnn, image in zip(self.cnns, images, strict=True)]
        return torch.cat([numbers, *outputs], dim=-1)


def _image_shape(space: gymnasium.Space[Any]) -> tuple[int, int, int]:
    """C, H, W."""
    first, second, third = space.shape or ()
    return (first, second, third) if has_channels_first(space) else (third, first, second)


def make_cnn(image: tuple[int, int, int], name: str, features_dim: int, generator: torch.Generator) -> nn.Sequential:
    """Convolutions with ReLU and a linear layer with ReLU, [B, C, H, W] -> [B, features_dim].

    Args:
        image: C, H, W.
        name: of the convolutions, one of `CNNS`.
        features_dim: number of outputs.
        generator: source of the initial weights.

    Raises:
        ConfigError: an unknown name, or an image that is too small.
    """
    if name not in CNNS:
        raise ConfigError(f"Unknown CNN {name!r}: choose one of {', '.join(CNNS)}.")
    channels, *pixels = image
    network = nn.Sequential()
    for outputs, kernel, stride in CNNS[name]:
        if min(pixels) < kernel:
            least = smallest_image(name)
            raise ConfigError(
                f"An image of {image[1]} × {image[2]} is too small for the CNN {name!r}, which takes {least} × {least} "
                "and more: choose cnn 'small', or 'none' for an MLP."
            )
        convolution = nn.Conv2d(channels, outputs, kernel, stride, device="meta")
        network.append(orthogonal(convolution, math.sqrt(2), generator)).append(nn.ReLU())
        channels, pixels = outputs, [(n - kernel) // stride + 1 for n in pixels]
    linear = nn.Linear(channels * math.prod(pixels), features_dim, device="meta")
    return network.append(nn.Flatten()).append(orthogonal(linear, math.sqrt(2), generator)).append(nn.ReLU())


def smallest_image(name: str) -> int:
    """The least height and width that convolutions take, so that one pixel is left."""
    size = 1
    for _, kernel, stride in reversed(CNNS[name]):
        size = (size - 1) * stride + kernel
    return size
