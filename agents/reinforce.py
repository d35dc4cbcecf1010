"""REINFORCE: the score weighted with the reward-to-go, with or without a learnt baseline."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..common.validation import check_flag, check_number
from .interface import Agent, AgentLosses, Batch
from .losses import combine_losses, critic_values
from .networks.stacked import BoundPolicy
from .returns import discounted_returns


@dataclass(frozen=True, kw_only=True)
class Reinforce(Agent):
    """REINFORCE (Williams, 1992, Machine Learning 8) with the reward-to-go of each step.

    With `baseline` the critic's value is subtracted from the return, and bootstraps episodes that a time limit or the
    end of the window cut off; the critic learns by squared error. Without it nothing is known beyond a cut: the
    return ends there, which makes late steps of a window look worse than they are.

    Args:
        gamma: discount factor per step, in [0, 1].
        baseline: whether a critic is learnt and used.
        ent_coef: weight of the entropy bonus, at least 0.
        vf_coef: weight of the value loss, at least 0; without effect if there is no baseline.
        normalize_advantage: whether the advantages of each point are normalised.

    Raises:
        ConfigError: a value outside of its range.
    """

    gamma: float = 0.99
    baseline: bool = True
    ent_coef: float = 0.0
    vf_coef: float = 0.5
    normalize_advantage: bool = True

    def __post_init__(self) -> None:
        check_number("gamma", self.gamma, high=1)
        check_flag("baseline", self.baseline)
        check_number("ent_coef", self.ent_coef)
        check_number("vf_coef", self.vf_coef)
        check_flag("normalize_advantage", self.normalize_advantage)

    @property
    def needs_critic(self) -> bool:
        """Whether a baseline is learnt."""
        return self.baseline

    @property
    def shares_critic(self) -> bool:
        """Whether there is one."""
        return self.baseline

    def targets(self, policy: BoundPolicy, batch: Batch) -> Tensor:
        """Targets of the baseline, [N, T, E]: the returns.

        Raises:
            ConfigError: the policy has no critic, or the shapes do not fit.
        """
        with torch.no_grad():
            _, next_values = critic_values(policy, batch)
        return discounted_returns(batch.rewards, next_values, batch.terminated, batch.truncated, self.gamma)

    def loss(self, policy: BoundPolicy, batch: Batch) -> AgentLosses:
        """The N losses; returns and baselines are constants in the policy's part.

        The batch must have been collected with the parameters of `policy`: its values are computed here, once.

        Raises:
            ConfigError: `baseline` and the policy has no critic, or the shapes do not fit.
        """
        values, next_values = critic_values(policy, batch) if self.baseline else (None, torch.zeros_like(batch.rewards))
        returns = discounted_returns(batch.rewards, next_values, batch.terminated, batch.truncated, self.gamma)
        return combine_losses(
            policy,
            batch,
            returns if values is None else returns - values.detach(),
            None if values is None else (values, returns),
            ent_coef=self.ent_coef,
            vf_coef=self.vf_coef,
            normalize_advantage=self.normalize_advantage,
        )
