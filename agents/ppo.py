"""Proximal policy optimization: several epochs of minibatch steps on each window of experience."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..common.errors import ConfigError, NonFiniteError
from ..common.validation import check_at_least, check_number
from .actor_critic import ActorCritic, Rows
from .interface import AgentLosses, Batch, Iterate
from .losses import add_up_losses, clipped_surrogate_loss
from .networks.stacked import BoundPolicy, StackedPolicy


@dataclass(frozen=True, kw_only=True)
class PPO(ActorCritic):
    """Proximal policy optimization with the clipped surrogate (Schulman et al., 2017, arXiv 1707.06347).

    Names, defaults and order of operations are those of stable-baselines3's PPO: advantages by GAE once per window,
    normalised in each minibatch; the last minibatch of an epoch may be smaller. Its value clipping is left out.
    `loss` is the gradient at the policy that collected, where the surrogate's is that of the actor-critic.

    Args:
        gamma, gae_lambda, ent_coef, vf_coef: as of `ActorCritic`.
        normalize_advantage: whether the advantages of each minibatch are normalised.
        clip_range: ε, how far the probability ratio may leave 1; above 0.
        n_epochs: passes over the samples of a window; at least 1.
        batch_size: samples of a minibatch; at least 1.
        target_kl: the epochs end before the first step whose minibatch is more than 1.5 times as far (mean
            Kullback-Leibler divergence, in nats) from the policy that collected; None for no limit.

    Raises:
        ConfigError: a value outside of its range.
    """

    clip_range: float = 0.2
    n_epochs: int = 10
    batch_size: int = 64
    target_kl: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("clip_range", "target_kl"):
            value = getattr(self, name)
            if value is not None or name == "clip_range":
                check_number(name, value)
                if value == 0:
                    raise ConfigError(f"{name} must be above 0, got {value!r}.")
        for name in ("n_epochs", "batch_size"):
            check_at_least(name, getattr(self, name), 1)

    @property
    def shares_critic(self) -> bool:
        """False: the epochs fit the critic with the policy."""
        return False

    def make_update(self, policy: StackedPolicy, iterate: Iterate, seed: int) -> Epochs:
        """The epochs."""
        return Epochs(self, policy, iterate, seed)

    def surrogate(self, policy: BoundPolicy, rows: Rows) -> tuple[AgentLosses, Tensor, Tensor]:
        """Loss of one point on a minibatch, and how far its policy is from those that collected the samples.

        Args:
            policy: one point.
            rows: the minibatch.

        Returns:
            The losses, each [1]; the estimate mean(r − 1 − log r) of the Kullback-Leibler divergence, r being the
            probability ratio (Schulman, 2020, joschu.net/blog/kl-approx.html); the share of ratios out of range.
        """
        advantages = self.normalize(rows).advantages
        inputs = policy.actor(rows.obs[None])
        log_probs = policy.distribution.log_prob(inputs, rows.actions[None])
        policy_term = clipped_surrogate_loss(log_probs, rows.log_probs[None], advantages[None], self.clip_range)
        critic = policy.critic(rows.obs[None]), rows.returns[None]
        losses = add_up_losses(policy, inputs, policy_term, critic, ent_coef=self.ent_coef, vf_coef=self.vf_coef)
        log_ratio = (log_probs.detach() - rows.log_probs).flatten()
        out_of_range = log_ratio.expm1().abs() > self.clip_range
        return losses, (log_ratio.expm1() - log_ratio).mean(), out_of_range.float().mean()


class Epochs:
    """Moves the iterate by the epochs of PPO.

    With several points all their samples serve, each with the probability under the policy that took it: the points are
    behaviour policies along the predicted path.

    Args:
        agent: gives loss, number of epochs and size of minibatches.
        policy: the network's architecture.
        iterate: where the epochs begin, and what they move.
        seed: of the order of the samples.
    """

    def __init__(self, agent: PPO, policy: StackedPolicy, iterate: Iterate, seed: int) -> None:
        self.agent, self.policy, self.iterate = agent, policy, iterate
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, points: Tensor, batch: Batch) -> dict[str, float]:
        """All epochs; means over all minibatches of the parts of the loss, ``approx_kl`` and ``clip_fraction``.

        Raises:
            NonFiniteError: a gradient or a parameter became NaN or infinite; the parameters are back at the iterate.
        """
        rows = self.agent.rows(self.policy.bind(points), batch)
        with self.iterate.undone_on_fault():
            reports = [torch.stack(list(report)) for report in self._run(rows)]
        names = (*AgentLosses._fields[1:], "approx_kl", "clip_fraction")
        return dict(zip(names, torch.stack(reports).mean(0).tolist(), strict=True))

    def _run(self, rows: Rows) -> Iterator[tuple[Tensor, ...]]:
        """The steps; yields the metrics of each minibatch before its step, each []."""
        for _ in range(self.agent.n_epochs):
            order = torch.randperm(len(rows.obs), generator=self.generator).to(rows.obs.device)
            for index in torch.split(order, self.agent.batch_size):
                point = self.iterate.point()[None].requires_grad_()
                losses, divergence, clipped = self.agent.surrogate(self.policy.bind(point), rows.at(index))
                yield (*(part[0] for part in losses[1:]), divergence, clipped)
                if self.agent.target_kl is not None and divergence > 1.5 * self.agent.target_kl:
                    return
                (gradient,) = torch.autograd.grad(losses.total.sum(), point)
                if not gradient.isfinite().all():
                    raise NonFiniteError("the gradient of a minibatch is not finite; the epochs were undone")
                self.iterate.step(gradient[0])

    def state_dict(self) -> dict[str, Any]:
        """The random numbers that the order of later samples depends on."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a state from `state_dict`."""
        self.generator.set_state(state["generator"])
