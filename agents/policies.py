"""One policy architecture at N stacked parameter sets: N forward passes as one.

Axes: N points (parameter sets), d parameters, B batch rows, O observation features, A action-distribution inputs.
The flat vector of a policy is the concatenation of `p.reshape(-1)` over `policy.parameters()`; row n of `points`
[N, d] is such a vector.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from ..errors import ConfigError
from .distributions import ActionDistribution
from .mlp import ActorCriticPolicy as ActorCriticPolicy
from .mlp import MlpPolicy as MlpPolicy
from .mlp import encode_observations as encode_observations
from .mlp import observation_size as observation_size


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


class StackedPolicy:
    """Evaluates one architecture at N stacked parameter sets, on the device where these are.

    An `MlpPolicy` is evaluated by batched matrix products of its stacked weights; any other module by
    `torch.func.vmap` over `functional_call`, where the points share the module's buffers, and layers that draw random
    numbers are refused. Of the module's own parameters only the shared ones are read.

    Args:
        policy: a module with `actor(obs) [B, O] -> [B, A]` and, if it has a critic, `critic(obs) [B, O] -> [B]`.
        distribution: what the actor's outputs are inputs of; by default `policy.distribution`.
        shared: parameters of the module that all points have in common, as they are when the policy is bound: no part
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
        # Only the class itself is known to be two perceptrons: a subclass may compute anything.
        if type(self.policy) is MlpPolicy and not transforms:
            return _BoundMlp(self.policy, self.distribution, stacked)
        return _BoundModule(self.policy, self.distribution, self.has_critic, stacked)

    def actor(self, points: Tensor, obs: Tensor) -> Tensor:
        """Row n of `obs` through the actor at row n of `points`: [N, d], [N, B, O] -> [N, B, A]."""
        return self.bind(points).actor(obs)

    def critic(self, points: Tensor, obs: Tensor) -> Tensor:
        """Row n of `obs` through the critic at row n of `points`: [N, d], [N, B, O] -> [N, B]."""
        return self.bind(points).critic(obs)


class _BoundMlp:
    """An `MlpPolicy` at N points: one `baddbmm` per layer."""

    def __init__(self, policy: MlpPolicy, distribution: ActionDistribution, stacked: dict[str, Tensor]) -> None:
        self.distribution, self.has_critic = distribution, policy.has_critic
        activation = _IN_PLACE[policy.activation]
        self._actor = _StackedPerceptron("actor_net", stacked, activation)
        self._critic = _StackedPerceptron("critic_net", stacked, activation) if policy.has_critic else None
        self._log_std = stacked.get("actor_net.gaussian.log_std")

    def actor(self, obs: Tensor) -> Tensor:
        outputs = self._actor(obs)
        if self._log_std is None:
            return outputs
        return torch.cat([outputs, self._log_std.unsqueeze(1).expand_as(outputs)], dim=-1)

    def critic(self, obs: Tensor) -> Tensor:
        if self._critic is None:
            raise ConfigError("This policy was made with critic=False and has no values.")
        return self._critic(obs).squeeze(-1)


class _Head(torch.autograd.Function):
    """Affine layer with few outputs, [N, B, in], [N, out, in], [N, 1, out] -> [N, B, out].

    `torch.baddbmm`, but for the gradient of the weights: the product with the few outputs as its rows, not as its
    columns, took a ninth of the time where measured.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(rows, weight)
        return torch.baddbmm(bias, rows, weight.mT)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        (gradient,), (rows, weight) = grad_outputs, ctx.saved_tensors
        return gradient @ weight, gradient.mT @ rows, gradient.sum(1, keepdim=True)


class _StackedPerceptron:
    """A perceptron at N points; the transposed views of its weights are made once."""

    def __init__(self, network: str, stacked: dict[str, Tensor], activation: Callable[[Tensor], Tensor]) -> None:
        layers = [name.removesuffix(".weight") for name in stacked if name.startswith(network) and "weight" in name]
        # [N, 1, fan_out] and [N, fan_out, fan_in]
        terms = [(stacked[f"{layer}.bias"].unsqueeze(1), stacked[f"{layer}.weight"]) for layer in layers]
        self._hidden = [(bias, weight.mT) for bias, weight in terms[:-1]]
        self._head, self._activation = terms[-1], activation

    def __call__(self, rows: Tensor) -> Tensor:
        for bias, weight in self._hidden:
            rows = self._activation(torch.baddbmm(bias, rows, weight))
        bias, weight = self._head
        if not torch.is_grad_enabled():
            return torch.baddbmm(bias, rows, weight.mT)
        outputs: Tensor = _Head.apply(rows, weight, bias)  # type: ignore[no-untyped-call]  # torch does not annotate apply
        return outputs


class _TanhInPlace(torch.autograd.Function):
    """tanh by NumPy, overwriting its argument: NumPy's is vectorised, torch's took 13 times as long where measured."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        np.tanh(x.numpy(), out=x.numpy())
        ctx.mark_dirty(x)
        ctx.save_for_backward(x)
        return x

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Any) -> Tensor:
        (tanh,) = ctx.saved_tensors
        gradient: Tensor = grad_outputs[0]
        if torch.is_grad_enabled():  # to be differentiated again
            gradient = torch.ops.aten.tanh_backward(gradient, tanh)
        else:
            # In place, as in a perceptron the gradient comes from the next layer's product, and nobody else has it: a
            # new array of this size, not yet mapped, costs several times the arithmetic.
            torch.ops.aten.tanh_backward.grad_input(gradient, tanh, grad_input=gradient)
        return gradient


def _tanh_(x: Tensor) -> Tensor:
    """tanh in place; NumPy's on a CPU, in the two dtypes that it vectorises."""
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64):
        return x.tanh_()
    if x.requires_grad:
        y: Tensor = _TanhInPlace.apply(x)  # type: ignore[no-untyped-call]  # torch does not annotate apply
        return y
    np.tanh(x.numpy(), out=x.numpy())
    return x


_IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {"tanh": _tanh_, "relu": torch.relu_}


class _Call(nn.Module):
    """Makes a named method the forward pass, which is all that `functional_call` can call."""

    def __init__(self, policy: nn.Module) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, method: str, obs: Tensor) -> Tensor:
        result: Tensor = getattr(self.policy, method)(obs)
        return result


class _BoundModule:
    """Any module at N points, through vmap."""

    def __init__(
        self, policy: nn.Module, distribution: ActionDistribution, has_critic: bool, stacked: dict[str, Tensor]
    ) -> None:
        self.distribution, self.has_critic = distribution, has_critic
        self._call = _Call(policy)
        self._stacked = {f"policy.{name}": parameter for name, parameter in stacked.items()}

    def actor(self, obs: Tensor) -> Tensor:
        return self._vmapped("actor", obs, (self.distribution.input_size,))

    def critic(self, obs: Tensor) -> Tensor:
        if not self.has_critic:
            raise ConfigError(f"{type(self._call.policy).__name__} has no critic.")
        return self._vmapped("critic", obs, ())

    def _vmapped(self, method: str, obs: Tensor, trailing: tuple[int, ...]) -> Tensor:
        def one(parameters: dict[str, Tensor], rows: Tensor) -> Any:
            return functional_call(self._call, parameters, (method, rows))

        outputs: Tensor = vmap(one, randomness="error")(self._stacked, obs)
        if outputs.shape[1:] != (obs.shape[1], *trailing):
            expected, given = [obs.shape[1], *trailing], list(outputs.shape[1:])
            raise ConfigError(f"{method}(obs) must return {expected} for {obs.shape[1]} rows, and it returned {given}.")
        return outputs
