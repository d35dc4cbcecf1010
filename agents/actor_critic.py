"""Advantage actor-critic on whole windows of experience: A2C with generalised advantages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ..common.validation import check_flag, check_number
from .interface import Agent, AgentLosses, Batch
from .losses import combine_losses, critic_values
from .networks.stacked import BoundPolicy
from .returns import gae, normalize_advantages


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
        """Some of the rows: those of the indices [b], or of the mask [B], `index`."""
        return Rows(*(column[index] for column in self))


@dataclass(frozen=True, kw_only=True)
class ActorCritic(Agent):
    """Synchronous advantage actor-critic (Mnih et al., 2016, arXiv 1602.01783) with GAE (Schulman et al., 2016).

    Names are those of stable-baselines3's A2C. Two defaults are not: λ is 0.95 and advantages are normalised, because
    windows are long here (about a thousand samples per point), where λ = 1 is mostly noise.

    Args:
        gamma: discount factor per step, in [0, 1].
        gae_lambda: λ of the advantage estimate, in [0, 1].
        ent_coef: weight of the entropy bonus, at least 0.
        vf_coef: weight of the value loss, at least 0.
        normalize_advantage: whether the advantages of each point are normalised.

    Raises:
        ConfigError: a value outside of its range.
    """

    gamma: float = 0.99
    gae_lambda: float = 0.95
    ent_coef: float = 0.0
    vf_coef: float = 0.5
    normalize_advantage: bool = True

    def __post_init__(self) -> None:
        check_number("gamma", self.gamma, high=1)
        check_number("gae_lambda", self.gae_lambda, high=1)
        check_number("ent_coef", self.ent_coef)
        check_number("vf_coef", self.vf_coef)
        check_flag("normalize_advantage", self.normalize_advantage)

    @property
    def shares_critic(self) -> bool:
        """True."""
        return True

    def estimate(self, policy: BoundPolicy, batch: Batch) -> tuple[Tensor, Tensor]:
        """Values of a `batch`, with gradient, and generalised advantages, without: two tensors [N, T, E].

        Raises:
            ConfigError: the policy has no critic, or the shapes do not fit.
        """
        values, next_values = critic_values(policy, batch)
        flags = batch.terminated, batch.truncated
        return values, gae(batch.rewards, values.detach(), next_values, *flags, self.gamma, self.gae_lambda)

    def targets(self, policy: BoundPolicy, batch: Batch) -> Tensor:
        """Targets of the critic, [N, T, E]: advantage + value, the λ-return."""
        with torch.no_grad():
            values, advantages = self.estimate(policy, batch)
        return advantages + values

    def loss(self, policy: BoundPolicy, batch: Batch) -> AgentLosses:
        """The N losses; advantages and value targets (advantage + value) are constants.

        The batch must have been collected with the parameters of `policy`: its values are computed here, once.

        Raises:
            ConfigError: the policy has no critic, or the shapes do not fit.
        """
        values, advantages = self.estimate(policy, batch)
        return combine_losses(
            policy,
            batch,
            advantages,
            (values, advantages + values.detach()),
            ent_coef=self.ent_coef,
            vf_coef=self.vf_coef,
            normalize_advantage=self.normalize_advantage,
        )

    def normalize(self, rows: Rows) -> Rows:
        """The ``rows``, with normalised advantages if there are several and `normalize_advantage` says so."""
        if not self.normalize_advantage or len(rows.advantages) < 2:
            return rows
        return rows._replace(advantages=normalize_advantages(rows.advantages.view(1, -1, 1)).view(-1))

    @torch.no_grad()
    def rows(self, policy: BoundPolicy, batch: Batch) -> Rows:
        """The samples of the N windows in `batch`, each with its own point's probabilities, advantages and returns.

        Args:
            policy: the N points that collected `batch`.
            batch: their experience.
        """
        values, advantages = self.estimate(policy, batch)
        obs, actions = batch.obs.flatten(1, 2), batch.actions.flatten(1, 2)
        log_probs = policy.distribution.log_prob(policy.actor(obs), actions)
        columns = (obs, actions, log_probs, advantages.flatten(1), (advantages + values).flatten(1))
        return Rows(*(column.flatten(0, 1) for column in columns))
