"""Trust region policy optimization: one natural-gradient step per window, limited by the divergence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..common.errors import ConfigError, NonFiniteError
from ..common.linear_algebra import conjugate_gradients, fisher_product
from ..common.validation import check_at_least, check_number
from .actor_critic import ActorCritic, Rows
from .interface import Batch, Iterate
from .networks.stacked import StackedPolicy


@dataclass(frozen=True, kw_only=True)
class TRPO(ActorCritic):
    """Trust region policy optimization (Schulman et al., 2015, arXiv 1502.05477).

    Names, defaults and order of operations are those of sb3-contrib's TRPO. Two differences: the divergence of the line
    search is estimated from the samples, where sb3-contrib has it exactly, and the critic's passes are those of
    ``n_critic_updates``, of which at least one is needed: the points are actors.

    Args:
        gamma, gae_lambda, ent_coef, vf_coef, normalize_advantage: as of `ActorCritic`.
        target_kl: how far, in nats, a step may lead from the policy at the iterate; above 0.
        cg_max_steps: Fisher-vector products for the direction; at least 1.
        cg_damping: what is added to the Fisher matrix's diagonal; at least 0.
        line_search_shrinking_factor: of the step from one attempt to the next; in [0, 1].
        line_search_max_iter: attempts before the iterate stays where it is; at least 1.

    Raises:
        ConfigError: a value outside of its range.
    """

    target_kl: float = 0.01
    cg_max_steps: int = 15
    cg_damping: float = 0.1
    line_search_shrinking_factor: float = 0.8
    line_search_max_iter: int = 10

    def __post_init__(self) -> None:
        super().__post_init__()
        check_number("target_kl", self.target_kl)
        check_number("cg_damping", self.cg_damping)
        check_number("line_search_shrinking_factor", self.line_search_shrinking_factor, high=1)
        for name in ("cg_max_steps", "line_search_max_iter"):
            check_at_least(name, getattr(self, name), 1)
        if self.target_kl == 0:
            raise ConfigError(f"target_kl must be above 0, got {self.target_kl!r}.")

    def make_update(self, policy: StackedPolicy, iterate: Iterate, seed: int) -> TrustRegionStep:
        """The step within the trust region.

        Raises:
            ConfigError: the critic is part of the points, or the distribution has no Fisher matrix.
        """
        if policy.has_critic and policy.num_parameters == sum(p.numel() for p in policy.policy.parameters()):
            raise ConfigError("trpo moves the actor alone: n_critic_updates must be at least 1, got 0.")
        if not hasattr(policy.distribution, "fisher_product"):
            name = type(policy.distribution).__name__
            raise ConfigError(f"trpo needs a distribution with fisher_product, and {name} has none.")
        return TrustRegionStep(self, policy, iterate)


def scaled_to_limit(gradient: Tensor, product: Callable[[Tensor], Tensor], target_kl: float, iterations: int) -> Tensor:
    """√(2 δ / xᵀFx) x with F x = g: the step at which the divergence, to second order, is δ (paper, App. C), [d].

    Args:
        gradient: g, [d].
        product: v → F v.
        target_kl: δ.
        iterations: of the conjugate gradients.
    """
    direction = conjugate_gradients(product, gradient, iterations)
    curvature = direction.dot(product(direction))
    return direction if not gradient.any() else (2 * target_kl / curvature).sqrt() * direction


class TrustRegionStep:
    """The step of TRPO, from the samples of all points, each with the probability under the policy that took it.

    Args:
        agent: gives the limits.
        policy: the network's architecture; the critic is shared by the points.
        iterate: what is moved; the base optimizer takes no step.
    """

    def __init__(self, agent: TRPO, policy: StackedPolicy, iterate: Iterate) -> None:
        self.agent, self.policy, self.iterate = agent, policy, iterate

    def __call__(self, points: Tensor, batch: Batch) -> dict[str, float]:
        """One step; ``kl_divergence``, ``surrogate_gain`` and ``line_search_steps`` (0: none was good enough).

        Raises:
            NonFiniteError: the direction is not finite; the parameters are at the iterate.
        """
        rows = self.agent.normalize(self.agent.rows(self.policy.bind(points), batch))
        start = self.iterate.point()
        return self._search(start, self.longest_step(start, rows), rows)

    def longest_step(self, start: Tensor, rows: Rows) -> Tensor:
        """The natural gradient of the surrogate at ``start [d]``, as long as the limit allows, [d]."""
        point = start[None].requires_grad_()
        surrogate, _ = self.compare(point, rows)
        (gradient,) = torch.autograd.grad(surrogate, point)
        step = scaled_to_limit(
            gradient[0], self._fisher(start, rows.obs), self.agent.target_kl, self.agent.cg_max_steps
        )
        if not step.isfinite().all():
            raise NonFiniteError("the step of the trust region is not finite; the policy is unchanged")
        return step

    def _fisher(self, point: Tensor, obs: Tensor) -> Callable[[Tensor], Tensor]:
        """v → (F + damping) v at ``point [d]``, mean over ``obs [B, O]``."""
        distribution: Any = self.policy.distribution

        def outputs(theta: Tensor) -> Tensor:
            return self.policy.bind(theta[None], transforms=True).actor(obs[None])[0]

        product = fisher_product(outputs, distribution.fisher_product, point)
        return lambda vector: product(vector) + self.agent.cg_damping * vector

    def _search(self, start: Tensor, step: Tensor, rows: Rows) -> dict[str, float]:
        """Shrink the step until the surrogate grows and the divergence is within the limit, and move there if so."""
        with torch.no_grad():
            before, _ = self.compare(start[None], rows)
            for attempt in range(self.agent.line_search_max_iter):
                point = start + self.agent.line_search_shrinking_factor**attempt * step
                after, divergence = self.compare(point[None], rows)
                if after > before and divergence < self.agent.target_kl:
                    self.iterate.move_to(point)
                    gain, taken = float(after - before), float(attempt + 1)
                    return {"kl_divergence": float(divergence), "surrogate_gain": gain, "line_search_steps": taken}
        return {"kl_divergence": 0.0, "surrogate_gain": 0.0, "line_search_steps": 0.0}

    def compare(self, point: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        """The surrogate mean(r A), and how far a policy is from those that collected: mean(r − 1 − log r); both [].

        Args:
            point: [1, d].
            rows: the samples, their advantages normalised.
        """
        bound = self.policy.bind(point)
        log_probs = bound.distribution.log_prob(bound.actor(rows.obs[None]), rows.actions[None])[0]
        log_ratio = log_probs - rows.log_probs
        return (log_ratio.exp() * rows.advantages).mean(), (log_ratio.expm1() - log_ratio).mean()

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the step is a function of the samples."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to load."""
