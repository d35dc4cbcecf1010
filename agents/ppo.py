"""Proximal policy optimization: several epochs of minibatch steps on each window of experience."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import ConfigError
from ..losses import clipped_surrogate_loss
from ..returns import normalize_advantages
from .actor_critic import ActorCritic
from .batch import AgentLosses, Batch, add_up_losses, check_number
from .policies import BoundPolicy


class Rows(NamedTuple):
    """Samples of one or more windows as one set, B of them; all constants.

    Attributes:
        obs: [B, O].
        actions: [B] or [B, m].
        log_probs: [B], log π of the actions under the policy that took them.
        advantages: [B], not normalised.
        returns: [B], targets of the critic.
    """

    obs: Tensor
    actions: Tensor
    log_probs: Tensor
    advantages: Tensor
    returns: Tensor

    def at(self, index: Tensor) -> Rows:
        """Some of the rows."""
        return Rows(*(column[index] for column in self))


@dataclass(frozen=True, kw_only=True)
class PPO(ActorCritic):
    """Proximal policy optimization with the clipped surrogate (Schulman et al., 2017, arXiv 1707.06347).

    Names, defaults and order of operations are those of stable-baselines3's PPO: advantages by GAE once per window,
    normalised in each minibatch; the last minibatch of an epoch holds what is left. Its value clipping is left out.
    `loss` is the gradient at the policy that collected, where the surrogate's is that of the actor-critic.

    Args:
        gamma: discount factor per step, in [0, 1].
        gae_lambda: λ of the advantage estimate, in [0, 1].
        ent_coef: weight of the entropy bonus, at least 0.
        vf_coef: weight of the value loss, at least 0.
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
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} must be a whole number of at least 1, got {value!r}.")

    @torch.no_grad()
    def rows(self, policy: BoundPolicy, batch: Batch, usable: Tensor | None = None) -> Rows:
        """The samples of the N windows in `batch`, each with its own point's probabilities, advantages and returns.

        Args:
            policy: the N points that collected `batch`.
            batch: their experience.
            usable: [N], mask of the points whose samples are wanted; all by default.
        """
        values, advantages = self.estimate(policy, batch)
        obs, actions = batch.obs.flatten(1, 2), batch.actions.flatten(1, 2)
        log_probs = policy.distribution.log_prob(policy.actor(obs), actions)
        columns = (obs, actions, log_probs, advantages.flatten(1), (advantages + values).flatten(1))
        return Rows(*((column if usable is None else column[usable]).flatten(0, 1) for column in columns))

    def surrogate(self, policy: BoundPolicy, rows: Rows) -> tuple[AgentLosses, Tensor]:
        """Loss of one point on a minibatch, and how far its policy is from those that collected.

        Args:
            policy: one point.
            rows: the minibatch.

        Returns:
            The losses, each [1], and the estimate mean(r − 1 − log r) of the Kullback-Leibler divergence, [] (Schulman,
            2020, joschu.net/blog/kl-approx.html), r being the probability ratio.
        """
        advantages = rows.advantages
        if self.normalize_advantage and len(advantages) > 1:
            advantages = normalize_advantages(advantages.view(1, -1, 1)).view(-1)
        inputs = policy.actor(rows.obs[None])
        log_probs = policy.distribution.log_prob(inputs, rows.actions[None])
        policy_term = clipped_surrogate_loss(log_probs, rows.log_probs[None], advantages[None], self.clip_range)
        critic = policy.critic(rows.obs[None]), rows.returns[None]
        losses = add_up_losses(policy, inputs, policy_term, critic, ent_coef=self.ent_coef, vf_coef=self.vf_coef)
        log_ratio = (log_probs.detach() - rows.log_probs).flatten()
        return losses, (log_ratio.expm1() - log_ratio).mean()
