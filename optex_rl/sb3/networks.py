"""The networks of a stable-baselines3 policy at N stacked parameter sets: N forward passes as one.

Axes: N points (parameter sets), d parameters, M rows of observations a point, A inputs of the action distribution.
The flat vector of a policy is the concatenation of ``p.reshape(-1)`` over ``policy.parameters()``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from stable_baselines3.common.distributions import DiagGaussianDistribution, Distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.torch_layers import FlattenExtractor, MlpExtractor
from stable_baselines3.common.utils import obs_as_tensor
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from ..agents import sample_observations
from ..agents.networks.batching import Rows, evaluate, find_obstacle
from ..agents.networks.stacked_mlp import ACTIVATIONS, StackedMlp
from ..common.errors import ConfigError

# Methods that define what a policy computes; an override of one of them would be ignored silently.
ASSUMED: Final = ("forward", "evaluate_actions", "predict_values", "extract_features", "_get_action_dist_from_latent")
ACTIVATION_NAMES: Final = {nn.Tanh: "tanh", nn.ReLU: "relu"}


def check_policy(policy: ActorCriticPolicy) -> None:
    """Refuse policies whose networks cannot be evaluated at several parameter sets at once.

    Raises:
        ConfigError: the policy explores by gSDE, whose noise belongs to one parameter set, or computes in its own way.
    """
    if policy.use_sde:
        raise ConfigError("gSDE draws its noise for one parameter set; use parallelism=1 or use_sde=False")
    own = [name for name in ASSUMED if getattr(type(policy), name) is not getattr(ActorCriticPolicy, name)]
    if own:
        raise ConfigError(
            f"{type(policy).__name__} has its own {', '.join(own)}, which cannot be evaluated at several parameter sets"
        )


def find_obstacle_in(policy: ActorCriticPolicy) -> str | None:
    """Why the networks need N passes for N points, in torch's words; None if they do not.

    Raises:
        ConfigError: N passes would be wrong, too, see `find_obstacle`.
    """
    if StackedNetworks(policy, parameters_to_vector(policy.parameters()).detach()[None]).are_mlps:
        return None
    obs = obs_as_tensor(sample_observations(policy.observation_space, 2), policy.device)
    rows = preprocess_obs(obs, policy.observation_space, normalize_images=policy.normalize_images)
    obstacles = []
    for training in (False, True):  # rollouts and gradients
        policy.set_training_mode(training)
        obstacles.append(find_obstacle(_Networks(policy), rows, type(policy).__name__))
    return obstacles[0] or obstacles[1]


class StackedNetworks:
    """Action distributions and values of one policy at N points; its own parameters are never read.

    MLPs with tanh or ReLU on flat observations go through batched matrix products, anything else through
    `torch.func.vmap`, or point after point.

    Args:
        policy: gives architecture, observation space and action distribution.
        points: ``[N, d]``; gradients reach them.
        batched: whether vmap can evaluate the networks, see `find_obstacle_in`.
    """

    def __init__(self, policy: ActorCriticPolicy, points: Tensor, batched: bool = True) -> None:
        self.policy, self._batched = policy, batched
        self._networks = _Networks(policy)
        named = dict(policy.named_parameters())
        pieces = torch.split(points, [p.numel() for p in named.values()], dim=1)
        self._N = len(points)
        self._stacked = {
            name: piece.reshape(self._N, *p.shape) for (name, p), piece in zip(named.items(), pieces, strict=True)
        }
        mlps = self._mlps()
        self.are_mlps = mlps is not None
        self._outputs = mlps or self._evaluate

    def __call__(self, obs: Rows) -> tuple[Distribution, Tensor]:
        """Row ``n·M + m`` of ``obs [N·M, ...]`` at point n: distribution over N·M actions, values ``[N·M]``."""
        space = self.policy.observation_space
        rows = preprocess_obs(obs, space, normalize_images=self.policy.normalize_images)
        if isinstance(rows, dict):
            outputs, values = self._outputs({key: self._by_point(value) for key, value in rows.items()})
        else:
            outputs, values = self._outputs(self._by_point(rows))
        return self._distribution(outputs), values.flatten()

    def _by_point(self, rows: Tensor) -> Tensor:
        """``[N·M, ...]`` as ``[N, M, ...]``."""
        return rows.reshape(self._N, -1, *rows.shape[1:])

    def _distribution(self, outputs: Tensor) -> Distribution:
        """The policy's distribution with inputs ``[N, M, A]``, as N·M rows."""
        distribution: Distribution = self.policy.action_dist
        rows = outputs.flatten(0, 1)
        if isinstance(distribution, DiagGaussianDistribution):
            log_std = self._stacked["log_std"].unsqueeze(1).expand_as(outputs)
            return distribution.proba_distribution(rows, log_std.flatten(0, 1))
        made: Distribution = distribution.proba_distribution(action_logits=rows)
        return made

    def _evaluate(self, obs: Rows) -> tuple[Tensor, Tensor]:
        stacked = {f"policy.{name}": value for name, value in self._stacked.items()}
        outputs, values = evaluate(self._networks, stacked, obs, self._batched)
        return outputs, values

    def _mlps(self) -> Callable[[Any], tuple[Tensor, Tensor]] | None:
        """Actor and critic as batched matrix products; None if they are not two plain MLPs with tanh or ReLU."""
        policy = self.policy
        extractors = (policy.pi_features_extractor, policy.vf_features_extractor)
        mlp = policy.mlp_extractor
        if type(mlp) is not MlpExtractor or any(type(extractor) is not FlattenExtractor for extractor in extractors):
            return None
        actor = self._mlp([*mlp.policy_net, policy.action_net])
        critic = self._mlp([*mlp.value_net, policy.value_net])
        if actor is None or critic is None:
            return None
        return lambda obs: (actor(obs.flatten(2)), critic(obs.flatten(2)))

    def _mlp(self, layers: Sequence[nn.Module]) -> StackedMlp | None:
        stacked = {id(p): self._stacked[name] for name, p in self.policy.named_parameters()}
        linear = [layer for layer in layers[::2] if type(layer) is nn.Linear]
        kinds = {type(layer) for layer in layers[1::2]} or {nn.Tanh}
        # Weight and spectral normalisation compute the weight from parameters: it is none itself.
        plain = all(id(p) in stacked for layer in linear for p in (layer.weight, layer.bias))
        if not plain or len(linear) < len(layers[::2]) or len(kinds) > 1 or not kinds <= ACTIVATION_NAMES.keys():
            return None
        pairs = [(stacked[id(layer.weight)], stacked[id(layer.bias)]) for layer in linear]
        return StackedMlp(pairs, ACTIVATIONS[ACTIVATION_NAMES[kinds.pop()]])


class _Networks(nn.Module):
    """A policy's networks from preprocessed observations to the distribution's inputs and the values."""

    def __init__(self, policy: ActorCriticPolicy) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, obs: Any) -> tuple[Tensor, Tensor]:
        policy = self.policy
        actor = policy.pi_features_extractor(obs)
        critic = actor if policy.share_features_extractor else policy.vf_features_extractor(obs)
        outputs: Tensor = policy.action_net(policy.mlp_extractor.forward_actor(actor))
        values: Tensor = policy.value_net(policy.mlp_extractor.forward_critic(critic))
        return outputs, values
