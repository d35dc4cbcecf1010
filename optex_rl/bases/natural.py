"""Natural gradient: steps preconditioned by the inverse Fisher matrix of the policy at the iterate."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..agents import StackedPolicy
from ..common.errors import ConfigError, NonFiniteError
from ..common.linear_algebra import conjugate_gradients, fisher_product
from ..common.torch_private import flatten, split
from .protocols import Objective


class Preconditioned(Optimizer, ABC):
    """θ ← θ − lr · P g, P being computed at a refresh and frozen until the next one; see `RefreshedBase`.

    Args:
        params: parameters or parameter groups.
        defaults: of the groups; ``"lr"`` is at least 0, ``"damping"``, which is added to the curvature, positive.

    Raises:
        ValueError: a number is outside what is allowed.
    """

    _objective: Objective | None = None

    def __init__(self, params: Iterable[Tensor] | Iterable[dict[str, Any]], defaults: dict[str, Any]) -> None:
        if not defaults["lr"] >= 0:
            raise ValueError(f"lr must be at least 0, got {defaults['lr']}")
        if not defaults["damping"] > 0:
            raise ValueError(f"damping must be positive, got {defaults['damping']}")
        super().__init__(params, defaults)

    def bind(self, objective: Objective) -> None:
        """Set the objective, whose policy has the parameters of this optimizer; its other parameters stay fixed.

        Raises:
            ConfigError: there is no policy, it does not have these parameters, or it cannot be used here.
        """
        name = type(self).__name__
        if objective.policy is None:
            raise ConfigError(f"{name} needs the policy: bind an Objective with one")
        own = [id(p) for p in self._parameters()]
        if own != [id(p) for p in objective.policy.parameters() if id(p) in set(own)]:
            raise ConfigError(f"{name} must have parameters of the policy, in the order of policy.parameters()")
        self._check_policy(objective.policy)
        self._objective = objective

    def _bound(self) -> tuple[nn.Module, Objective]:
        if self._objective is None or self._objective.policy is None:
            raise ConfigError(f"{type(self).__name__} needs the policy: call bind(objective), after loading as well")
        return self._objective.policy, self._objective

    def _parameters(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    @abstractmethod
    def _check_policy(self, policy: nn.Module) -> None:
        """Raise a ConfigError if the policy cannot be used."""

    @abstractmethod
    def refresh(self, batch: Any, generator: torch.Generator) -> None:
        """Compute P at the parameters, from a batch; see `RefreshedBase`."""

    @abstractmethod
    def reset(self) -> None:
        """Make the curvature zero, so that P only divides by the damping."""

    @abstractmethod
    def precondition(self, gradients: list[Tensor | None]) -> list[Tensor | None]:
        """P g, in tensors like the parameters; None where there is no gradient.

        Raises:
            ConfigError: `refresh` was never called.
        """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; returns what ``closure`` does, None without one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        directions = iter(self.precondition([p.grad for p in self._parameters()]))
        for group in self.param_groups:
            for parameter in group["params"]:
                direction = next(directions)
                if direction is not None:
                    parameter.sub_(group["lr"] * direction)
        return loss


def limited(direction: Tensor, gradient: Tensor, lr: float, target_kl: float) -> Tensor:
    """min(1, √(2 δ / xᵀ(F + λI)x) / lr) x, [d]: with it a step of rate ``lr`` diverges by δ at most, to second order.

    The trust region of ACKTR (Wu et al., 2017, arXiv 1708.05144, Sec. 3.3), with the damping counted as curvature, so
    that no further product with F is needed.

    Args:
        direction: x with (F + λI) x = g, [d].
        gradient: g, [d].
        lr: the learning rate, the largest of the groups.
        target_kl: δ, in nats.
    """
    divergence = 0.5 * lr**2 * direction.dot(gradient)
    return direction if divergence <= target_kl else (target_kl / divergence).sqrt() * direction


class NaturalGradient(Preconditioned):
    """Natural policy gradient: θ ← θ − lr · (F + λI)⁻¹ g, all ``[d]`` (Kakade, 2001, NeurIPS 14).

    F is the Fisher matrix of the policy on the observations of the last refresh, at its parameters then; of a critic it
    is that of a Gaussian around its value with variance 1, as in ACKTR (Wu et al., 2017, arXiv 1708.05144). The system
    is solved by conjugate gradients with exact Fisher-vector products, as in TRPO (Schulman et al., 2015, arXiv
    1502.05477). A step may be limited as in ACKTR; there is no line search, which would need evaluations of its own.

    Args:
        params: parameters or parameter groups.
        lr: learning rate.
        damping: λ.
        cg_iterations: Fisher-vector products per step.
        target_kl: δ, how far, in nats, one step may lead from the policy; None for any distance. See `limited`.
    """

    _product: Callable[[Tensor], Tensor] | None = None  # v → F v, made when first needed after a refresh

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float | Tensor = 1e-3,
        damping: float = 0.1,
        cg_iterations: int = 10,
        target_kl: float | None = None,
    ) -> None:
        if cg_iterations < 1:
            raise ValueError(f"cg_iterations must be at least 1, got {cg_iterations}")
        if target_kl is not None and not target_kl > 0:
            raise ValueError(f"target_kl must be positive or None, got {target_kl}")
        # The observations are kept in the first group: part of the state, but of no parameter.
        options = {"lr": lr, "damping": damping, "cg_iterations": cg_iterations, "target_kl": target_kl}
        super().__init__(params, {**options, "observations": None})

    def _check_policy(self, policy: nn.Module) -> None:
        distribution = StackedPolicy(policy).distribution
        if not hasattr(distribution, "fisher_product"):
            name = type(distribution).__name__
            raise ConfigError(f"the natural gradient needs a distribution with fisher_product, and {name} has none")

    def refresh(self, batch: Any, generator: torch.Generator) -> None:
        """Keep the parameters and the observations of the batch; see `RefreshedBase`."""
        _, objective = self._bound()
        observations = objective.observations(batch).detach().clone()
        if not observations.isfinite().all():
            raise NonFiniteError("the observations hold NaN or infinite numbers; the optimizer is unchanged")
        self._anchor(observations)

    def reset(self) -> None:
        """Make F zero: there are no observations."""
        self._anchor(None)

    def _anchor(self, observations: Tensor | None) -> None:
        self._product = None
        self.param_groups[0]["observations"] = observations
        for parameter in self._parameters():
            self.state[parameter]["anchor"] = parameter.detach().clone()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dictionary."""
        super().load_state_dict(state_dict)
        self._product = None

    def precondition(self, gradients: list[Tensor | None]) -> list[Tensor | None]:
        """(F + λI)⁻¹ g, tensors ``[*shape]`` like the parameters; those without gradient are held fixed, in F too.

        Raises:
            ConfigError: `refresh` was never called.
        """
        parameters, group = self._parameters(), self.param_groups[0]
        if any("anchor" not in self.state.get(p, {}) for p in parameters):
            raise ConfigError("NaturalGradient needs a batch: call refresh(batch, generator) before a step")
        pairs = list(zip(parameters, gradients, strict=True))
        target = flatten([torch.zeros_like(p) if g is None else g for p, g in pairs])
        free = flatten([torch.full_like(p, 0.0 if g is None else 1.0) for p, g in pairs])
        self._product = product = self._product or self._fisher(group["observations"])
        damping: float = group["damping"]

        def damped(vector: Tensor) -> Tensor:
            return free * product(vector) + damping * vector

        solution = conjugate_gradients(damped, target, group["cg_iterations"])
        target_kl = group.get("target_kl")  # not in the states of versions that had no limit
        if target_kl is not None:
            solution = limited(solution, target, max(float(g["lr"]) for g in self.param_groups), target_kl)
        pieces = split(solution, parameters)
        return [None if g is None else piece for g, piece in zip(gradients, pieces, strict=True)]

    def _fisher(self, observations: Tensor | None) -> Callable[[Tensor], Tensor]:
        """v → F v at the anchor."""
        if observations is None:
            return torch.zeros_like
        module, own = self._bound()[0], {id(p) for p in self._parameters()}
        policy = StackedPolicy(module, shared=[p for p in module.parameters() if id(p) not in own])
        policy.examine(observations[:2], policy.has_critic)
        anchor = flatten([self.state[p]["anchor"] for p in self._parameters()])

        def outputs(point: Tensor) -> Tensor:
            bound = policy.bind(point[None], transforms=True)
            actor: Tensor = bound.actor(observations[None])[0]
            if not policy.has_critic:
                return actor
            return torch.cat([actor, bound.critic(observations[None])[0][:, None]], 1)

        distribution: Any = policy.distribution
        A = distribution.input_size

        def metric(inputs: Tensor, tangents: Tensor) -> Tensor:
            return torch.cat([distribution.fisher_product(inputs[:, :A], tangents[:, :A]), tangents[:, A:]], 1)

        return fisher_product(outputs, metric, anchor)
