"""One policy architecture at N stacked parameter sets: N forward passes as one.

Axes: N points (parameter sets), d parameters, B batch rows, O observation features, A action-distribution inputs.
The flat vector of a policy is the concatenation of `p.reshape(-1)` over `policy.parameters()`; row n of `points`
[N, d] is such a vector.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from ...common.errors import ConfigError
from .batching import convolves_on_cpu, evaluate, find_obstacle
from .cnn import CnnPolicy
from .distributions import ActionDistribution
from .mlp import MlpPolicy
from .stacked_cnn import stack_features
from .stacked_mlp import ACTIVATIONS, StackedMlp

BY_HAND = (MlpPolicy, CnnPolicy)  # these classes themselves: a subclass may compute anything


class BoundPolicy(Protocol):
    """One architecture bound to N parameter sets: what the collector and the agents call."""

    @property
    def has_critic(self) -> bool:
        """Whether `critic` may be called."""

    @property
    def distribution(self) -> ActionDistribution:
        """What the actor's outputs are inputs of."""

    def actor(self, obs: Tensor) -> Tensor:
        """Row n of `obs` through the actor of point n: [N, B, O] -> [N, B, A]."""

    def critic(self, obs: Tensor) -> Tensor:
        """Row n of `obs` through the critic of point n: [N, B, O] -> [N, B]."""

    def act(self, obs: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """`actor(obs)`, and hidden values for `remember`, [N, B, ·] each; to be called in `torch.no_grad` mode."""

    def remember(self, obs: Tensor, steps: Sequence[tuple[Tensor, ...]]) -> None:
        """Reuse what `act` has computed in later calls of `actor(obs)`, for this very tensor and no copy of it.

        Args:
            obs: [N, T·B, O], the observations of T calls of `act`, one after the other.
            steps: what these calls returned beside the actor's outputs.
        """


class StackedPolicy:
    """Evaluates one architecture at N stacked parameter sets, on the device where these are.

    `MlpPolicy` and `CnnPolicy` are evaluated by batched matrix products of stacked weights; any other module by
    `torch.func.vmap` over `functional_call`, or point after point where `examine` has found that vmap cannot, and where
    that is faster, see `convolves_on_cpu`. The points share the module's buffers. Of the module's own parameters only
    the shared ones are read, and by `examine` all.

    Args:
        policy: a module with `actor(obs) [B, O] -> [B, A]` and, if it has a critic, `critic(obs) [B, O] -> [B]`.
        distribution: what the actor's outputs are inputs of; by default `policy.distribution`.
        shared: parameters of the module that all points have in common, read in place at each call: no part
            of the flat vector, and no gradient reaches them.

    Raises:
        ConfigError: the module has no actor, or there is no distribution.
    """

    def __init__(
        self,
        policy: nn.Module,
        distribution: ActionDistribution | None = None,
        shared: Iterable[nn.Parameter] = (),
    ) -> None:
        if not callable(getattr(policy, "actor", None)):
            raise ConfigError(f"A policy needs a method actor(obs), and {type(policy).__name__} has none.")
        distribution = getattr(policy, "distribution", None) if distribution is None else distribution
        if distribution is None:
            raise ConfigError(f"{type(policy).__name__} has no attribute `distribution`: pass one to StackedPolicy.")
        self.policy = policy
        self.distribution: ActionDistribution = distribution
        self.has_critic = bool(getattr(policy, "has_critic", callable(getattr(policy, "critic", None))))
        identities = {id(parameter) for parameter in shared}
        self._shared = {name for name, parameter in policy.named_parameters() if id(parameter) in identities}
        parameters = ((name, p) for name, p in policy.named_parameters() if name not in self._shared)
        self._shapes = {name: parameter.shape for name, parameter in parameters}
        self._sizes = [shape.numel() for shape in self._shapes.values()]
        self._obstacles: dict[str, str] = {}

    @property
    def obstacle(self) -> str | None:
        """Why vmap cannot batch the methods that `examine` has tried, or one of them; None if it can."""
        return next(iter(self._obstacles.values()), None)

    def examine(self, obs: Tensor, critic: bool) -> None:
        """Try whether vmap can batch the actor; what it cannot is evaluated point after point from now on.

        Args:
            obs: [B, O], an example.
            critic: whether to try the critic as well.

        Raises:
            ConfigError: vmap cannot, and point after point would be wrong, see `find_obstacle`.
        """
        if type(self.policy) in BY_HAND:
            return
        obs = obs.to(next(self.policy.parameters()).device)
        for method in ("actor", "critic") if critic else ("actor",):
            obstacle = find_obstacle(_Call(self.policy, method), obs, type(self.policy).__name__)
            if obstacle is not None:
                self._obstacles[method] = obstacle

    def sharing(self, shared: Iterable[nn.Parameter]) -> StackedPolicy:
        """The same module, evaluated in the same way, with other shared parameters."""
        other = StackedPolicy(self.policy, self.distribution, shared)
        other._obstacles = self._obstacles
        return other

    @property
    def num_parameters(self) -> int:
        """d, the length of the flat vector: without what is shared."""
        return sum(self._sizes)

    def unflatten(self, points: Tensor) -> dict[str, Tensor]:
        """Views of `points` [N, d] as stacked parameters [N, *shape], in the order of `policy.named_parameters()`.

        What is shared is not among them.

        Raises:
            ConfigError: `points` is not [N, d].
        """
        if points.dim() != 2 or points.shape[0] == 0 or points.shape[1] != self.num_parameters:
            raise ConfigError(f"Expected points [N, d={self.num_parameters}], got {list(points.shape)}.")
        # One split: its backward pass writes each gradient once, where slices would each fill and add an [N, d].
        pieces = zip(self._shapes.items(), torch.split(points, self._sizes, dim=1), strict=True)
        return {name: piece.reshape(len(points), *shape) for (name, shape), piece in pieces}

    def bind(self, points: Tensor, transforms: bool = False) -> BoundPolicy:
        """The policy at `points` [N, d], prepared for many calls; gradients reach `points` through the views.

        Args:
            points: [N, d].
            transforms: whether `torch.func` must be able to differentiate the calls, any number of times.

        Raises:
            ConfigError: `points` is not [N, d].
        """
        stacked = self.unflatten(points)
        for name, parameter in self.policy.named_parameters():
            if name in self._shared:
                stacked[name] = parameter.detach().expand(len(points), *parameter.shape)
        policy = self.policy
        if isinstance(policy, BY_HAND) and type(policy) in BY_HAND and not transforms:
            return _BoundByHand(policy, self.distribution, stacked)
        one_by_one = convolves_on_cpu(policy)
        batched = {method: not one_by_one and method not in self._obstacles for method in ("actor", "critic")}
        return _BoundModule(self.policy, self.distribution, self.has_critic, stacked, batched)

    def actor(self, points: Tensor, obs: Tensor) -> Tensor:
        """Row n of `obs` through the actor at row n of `points`: [N, d], [N, B, O] -> [N, B, A]."""
        return self.bind(points).actor(obs)

    def critic(self, points: Tensor, obs: Tensor) -> Tensor:
        """Row n of `obs` through the critic at row n of `points`: [N, d], [N, B, O] -> [N, B]."""
        return self.bind(points).critic(obs)


class _BoundByHand:
    """An `MlpPolicy` or `CnnPolicy` at N points: one `baddbmm` per linear layer."""

    def __init__(
        self, policy: MlpPolicy | CnnPolicy, distribution: ActionDistribution, stacked: dict[str, Tensor]
    ) -> None:
        self.distribution, self.has_critic = distribution, policy.has_critic
        if isinstance(policy, CnnPolicy):
            self._actor_features, self._critic_features = stack_features(policy, stacked)
        else:
            self._actor_features = self._critic_features = policy.layout.flat
        activation = ACTIVATIONS[policy.activation]
        self._actor = StackedMlp(_layers("actor_net", stacked), activation)
        self._critic = StackedMlp(_layers("critic_net", stacked), activation) if policy.has_critic else None
        self._log_std = stacked.get("actor_net.gaussian.log_std")
        self._seen: Tensor | None = None
        self._hidden: list[Tensor] = []  # outputs of the actor's hidden layers for `_seen`, [N, B, H] each

    def actor(self, obs: Tensor) -> Tensor:
        known = self._hidden if self._seen is not None and obs.is_set_to(self._seen) else []
        return self._inputs(self._actor(self._actor_features(obs), known))

    def act(self, obs: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        outputs, hidden = self._actor.trace(self._actor_features(obs))
        return self._inputs(outputs), hidden

    def remember(self, obs: Tensor, steps: Sequence[tuple[Tensor, ...]]) -> None:
        self._seen = obs
        self._hidden = [torch.cat(layer, dim=1) for layer in zip(*steps, strict=True)]

    def _inputs(self, outputs: Tensor) -> Tensor:
        """Inputs of the distribution [N, B, A], from outputs of the network."""
        if self._log_std is None:
            return outputs
        return torch.cat([outputs, self._log_std.unsqueeze(1).expand_as(outputs)], dim=-1)

    def critic(self, obs: Tensor) -> Tensor:
        if self._critic is None:
            raise ConfigError("This policy was made with critic=False and has no values.")
        return self._critic(self._critic_features(obs)).squeeze(-1)


def _layers(network: str, stacked: dict[str, Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Weight and bias of each layer whose name begins with `network`, in the order of the layers."""
    for name, weight in stacked.items():
        if name.startswith(network) and name.endswith(".weight"):
            yield weight, stacked[name.removesuffix("weight") + "bias"]


class _Call(nn.Module):
    """Makes a named method the forward pass, which is all that `functional_call` can call."""

    def __init__(self, policy: nn.Module, method: str) -> None:
        super().__init__()
        self.policy, self.method = policy, method

    def forward(self, obs: Tensor) -> Tensor:
        result: Tensor = getattr(self.policy, self.method)(obs)
        return result


class _BoundModule:
    """Any module at N points; `batched` says of actor and critic whether vmap can evaluate them."""

    def __init__(
        self,
        policy: nn.Module,
        distribution: ActionDistribution,
        has_critic: bool,
        stacked: dict[str, Tensor],
        batched: dict[str, bool],
    ) -> None:
        self.distribution, self.has_critic = distribution, has_critic
        self._policy, self._batched = policy, batched
        self._calls = {method: _Call(policy, method) for method in batched}
        self._stacked = {f"policy.{name}": parameter for name, parameter in stacked.items()}

    def actor(self, obs: Tensor) -> Tensor:
        return self._evaluate("actor", obs, (self.distribution.input_size,))

    def critic(self, obs: Tensor) -> Tensor:
        if not self.has_critic:
            raise ConfigError(f"{type(self._policy).__name__} has no critic.")
        return self._evaluate("critic", obs, ())

    def act(self, obs: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        return self.actor(obs), ()

    def remember(self, obs: Tensor, steps: Sequence[tuple[Tensor, ...]]) -> None:
        """Nothing: the module's inner values are its own."""

    def _evaluate(self, method: str, obs: Tensor, trailing: tuple[int, ...]) -> Tensor:
        outputs: Tensor = evaluate(self._calls[method], self._stacked, obs, self._batched[method])
        if outputs.shape[1:] != (obs.shape[1], *trailing):
            expected, given = [obs.shape[1], *trailing], list(outputs.shape[1:])
            raise ConfigError(f"{method}(obs) must return {expected} for {obs.shape[1]} rows, and it returned {given}.")
        return outputs
