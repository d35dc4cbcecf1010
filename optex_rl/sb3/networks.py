"""The networks of a stable-baselines3 policy at N stacked parameter sets: N forward passes as one.

Axes: N points (parameter sets), d parameters, M rows of observations a point, A actions or inputs of a distribution.
The flat vector of a policy is the concatenation of ``p.reshape(-1)`` over ``policy.parameters()``. To these classes the
Q-network of DQN is a policy.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from stable_baselines3.common.distributions import DiagGaussianDistribution, Distribution
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.torch_layers import FlattenExtractor, MlpExtractor
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.dqn.policies import QNetwork
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from ..agents import sample_observations
from ..agents.networks.batching import Rows, convolves_on_cpu, evaluate, find_obstacle, warn_of_passes
from ..agents.networks.stacked_mlp import ACTIVATIONS, StackedMlp
from ..common.errors import ConfigError

ACTIVATION_NAMES: Final = {nn.Tanh: "tanh", nn.ReLU: "relu"}


def refuse_own_methods(policy: BasePolicy, cls: type[BasePolicy], assumed: Sequence[str]) -> None:
    """Refuse policies with methods of their own in place of those that define what ``cls`` computes.

    Raises:
        ConfigError: the policy overrides one of them, which would be ignored silently.
    """
    own = [name for name in assumed if getattr(type(policy), name) is not getattr(cls, name)]
    if own:
        raise ConfigError(
            f"{type(policy).__name__} has its own {', '.join(own)}, which cannot be evaluated at several parameter sets"
        )


class StackedPolicy(ABC):
    """What the networks of one policy give at N points; its own parameters are never read.

    MLPs with tanh or ReLU on flat observations go through batched matrix products, anything else through
    `torch.func.vmap`, or point after point.

    Args:
        policy: gives architecture and observation space.
        points: ``[N, d]``; gradients reach them.
        batched: whether vmap can evaluate the networks, see `can_batch`.
    """

    def __init__(self, policy: Any, points: Tensor, batched: bool = True) -> None:
        self.policy = policy
        self.networks = _Networks(policy, self.compute)
        self._batched = batched
        self._named = dict(policy.named_parameters())
        pieces = torch.split(points, [p.numel() for p in self._named.values()], dim=1)
        self._N = len(points)
        self._stacked = {
            name: piece.reshape(self._N, *p.shape) for (name, p), piece in zip(self._named.items(), pieces, strict=True)
        }
        mlps = self._mlps()
        self.are_mlps = mlps is not None
        self._outputs = mlps or self._evaluate

    @staticmethod
    @abstractmethod
    def check(policy: Any) -> None:
        """Refuse policies whose networks cannot be evaluated at several parameter sets at once.

        Raises:
            ConfigError: with the reason.
        """

    @staticmethod
    @abstractmethod
    def compute(policy: Any, obs: Any) -> Any:
        """What is wanted, from preprocessed observations ``[M, ...]`` by the policy's networks."""

    @abstractmethod
    def _mlps(self) -> Callable[[Any], Any] | None:
        """The networks as batched matrix products; None if they are not plain MLPs with tanh or ReLU."""

    def outputs(self, obs: Rows) -> Any:
        """What the networks give, ``[N, M, ...]``, for row ``n·M + m`` of ``obs [N·M, ...]`` at point n."""
        policy = self.policy
        rows = preprocess_obs(obs, policy.observation_space, normalize_images=policy.normalize_images)
        if isinstance(rows, dict):
            return self._outputs({key: self._by_point(value) for key, value in rows.items()})
        return self._outputs(self._by_point(rows))

    def _by_point(self, rows: Tensor) -> Tensor:
        """``[N·M, ...]`` as ``[N, M, ...]``."""
        return rows.reshape(self._N, -1, *rows.shape[1:])

    def _evaluate(self, obs: Rows) -> Any:
        stacked = {f"policy.{name}": value for name, value in self._stacked.items()}
        return evaluate(self.networks, stacked, obs, self._batched)

    def _mlp(self, layers: Sequence[nn.Module]) -> StackedMlp | None:
        stacked = {id(p): self._stacked[name] for name, p in self._named.items()}
        linear = [layer for layer in layers[::2] if type(layer) is nn.Linear]
        kinds = {type(layer) for layer in layers[1::2]} or {nn.Tanh}
        # Weight and spectral normalisation compute the weight from parameters: it is none itself.
        plain = all(id(p) in stacked for layer in linear for p in (layer.weight, layer.bias))
        if not plain or len(linear) < len(layers[::2]) or len(kinds) > 1 or not kinds <= ACTIVATION_NAMES.keys():
            return None
        pairs = [(stacked[id(layer.weight)], stacked[id(layer.bias)]) for layer in linear]
        return StackedMlp(pairs, ACTIVATIONS[ACTIVATION_NAMES[kinds.pop()]])


def can_batch(stack: type[StackedPolicy], policy: BasePolicy, num_points: int, stacklevel: int) -> bool:
    """Whether the networks of a policy are to be evaluated by one pass for all points, and not point after point.

    Args:
        stack: what is to be evaluated.
        policy: whose networks.
        num_points: N.
        stacklevel: frames from here to the caller that a warning is for.

    Raises:
        ConfigError: N points cannot be evaluated, or N passes would be wrong, too, see `find_obstacle`.

    Warns:
        PerformanceWarning: N passes are made where one was possible but for what vmap cannot batch.
    """
    stack.check(policy)
    obstacle = _find_obstacle_in(stack, policy)
    warn_of_passes(type(policy).__name__, num_points, obstacle, stacklevel + 1)
    return obstacle is None and not convolves_on_cpu(policy)


def _find_obstacle_in(stack: type[StackedPolicy], policy: BasePolicy) -> str | None:
    """Why the networks need N passes for N points, in torch's words; None if they do not."""
    stacked = stack(policy, parameters_to_vector(policy.parameters()).detach()[None])
    if stacked.are_mlps:
        return None
    obs = obs_as_tensor(sample_observations(policy.observation_space, 2), policy.device)
    rows = preprocess_obs(obs, policy.observation_space, normalize_images=policy.normalize_images)
    obstacles = []
    for training in (False, True):  # rollouts and gradients
        policy.set_training_mode(training)
        obstacles.append(find_obstacle(stacked.networks, rows, type(policy).__name__))
    return obstacles[0] or obstacles[1]


class StackedNetworks(StackedPolicy):
    """Action distributions and values of an actor-critic policy at N points."""

    @staticmethod
    def check(policy: ActorCriticPolicy) -> None:
        """Refuse gSDE, whose noise belongs to one parameter set, and policies that compute in their own way."""
        if policy.use_sde:
            raise ConfigError("gSDE draws its noise for one parameter set; use parallelism=1 or use_sde=False")
        methods = ("forward", "evaluate_actions", "predict_values", "extract_features", "_get_action_dist_from_latent")
        refuse_own_methods(policy, ActorCriticPolicy, methods)

    @staticmethod
    def compute(policy: ActorCriticPolicy, obs: Any) -> tuple[Tensor, Tensor]:
        """The inputs of the distribution ``[M, A]``, and the values ``[M, 1]``."""
        actor = policy.pi_features_extractor(obs)
        critic = actor if policy.share_features_extractor else policy.vf_features_extractor(obs)
        outputs: Tensor = policy.action_net(policy.mlp_extractor.forward_actor(actor))
        values: Tensor = policy.value_net(policy.mlp_extractor.forward_critic(critic))
        return outputs, values

    def __call__(self, obs: Rows) -> tuple[Distribution, Tensor]:
        """Row ``n·M + m`` of ``obs [N·M, ...]`` at point n: distribution over N·M actions, values ``[N·M]``."""
        outputs, values = self.outputs(obs)
        return self._distribution(outputs), values.flatten()

    def _distribution(self, outputs: Tensor) -> Distribution:
        """The policy's distribution with inputs ``[N, M, A]``, as N·M rows."""
        distribution: Distribution = self.policy.action_dist
        rows = outputs.flatten(0, 1)
        if isinstance(distribution, DiagGaussianDistribution):
            log_std = self._stacked["log_std"].unsqueeze(1).expand_as(outputs)
            return distribution.proba_distribution(rows, log_std.flatten(0, 1))
        made: Distribution = distribution.proba_distribution(action_logits=rows)
        return made

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


class StackedQNetwork(StackedPolicy):
    """Values of all actions by a Q-network of DQN at N points."""

    @staticmethod
    def check(policy: QNetwork) -> None:
        """Refuse networks that compute in their own way."""
        refuse_own_methods(policy, QNetwork, ("forward", "extract_features"))

    @staticmethod
    def compute(policy: QNetwork, obs: Any) -> Tensor:
        """The values of the actions, ``[M, A]``."""
        values: Tensor = policy.q_net(policy.features_extractor(obs))
        return values

    def __call__(self, obs: Rows) -> Tensor:
        """Row ``n·M + m`` of ``obs [N·M, ...]`` at point n: the values of its actions, ``[N·M, A]``."""
        values: Tensor = self.outputs(obs).flatten(0, 1)
        return values

    def _mlps(self) -> Callable[[Any], Tensor] | None:
        layers = self.policy.q_net
        plain = type(layers) is nn.Sequential and type(self.policy.features_extractor) is FlattenExtractor
        mlp = self._mlp([*layers]) if plain else None
        return None if mlp is None else lambda obs: mlp(obs.flatten(2))


class _Networks(nn.Module):
    """A policy whose forward pass is from preprocessed observations on, as `functional_call` needs it."""

    def __init__(self, policy: BasePolicy, compute: Callable[[Any, Any], Any]) -> None:
        super().__init__()
        self.policy, self._compute = policy, compute

    def forward(self, obs: Any) -> Any:
        return self._compute(self.policy, obs)
