"""Losses of policy-gradient methods, one per point: the formulas, and what agents make of them.

Axes: N points (parameter sets), T steps, E environments per point, B = T·E rows of one point, A inputs of a
distribution. Rows are averaged, points never: the points are independent, and the gradient of the sum of the N losses
is the N gradients. The formulas take tensors [N, B], return [N], and raise `ConfigError` naming the shapes when they do
not fit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..common.errors import ConfigError
from .interface import AgentLosses, Batch
from .networks.stacked import BoundPolicy
from .returns import normalize_advantages, successor_values


def policy_gradient_loss(log_probs: Tensor, advantages: Tensor) -> Tensor:
    """−mean(A · log π(a|s)), [N].

    Its gradient is the negative policy gradient (Williams, 1992, Machine Learning 8; Sutton et al., 2000, NeurIPS 12).

    Args:
        log_probs: [N, B], log π of the actions taken.
        advantages: [N, B]; constants, no gradient passes through them.
    """
    _check_rows(log_probs=log_probs, advantages=advantages)
    return -(advantages.detach() * log_probs).mean(dim=1)


def clipped_surrogate_loss(log_probs: Tensor, old_log_probs: Tensor, advantages: Tensor, clip_range: float) -> Tensor:
    """−mean(min(r·A, clip(r, 1 − ε, 1 + ε)·A)) with the probability ratio r = π(a|s) / π_old(a|s), [N].

    PPO's surrogate (Schulman et al., 2017, arXiv 1707.06347, equation 7). At r = 1 its gradient is that of
    `policy_gradient_loss`; where a step has left the range in the direction of its advantage it is 0.

    Args:
        log_probs: [N, B], log π of the actions taken.
        old_log_probs: [N, B], the same under the policy that took them; constants.
        advantages: [N, B]; constants.
        clip_range: ε.
    """
    _check_rows(log_probs=log_probs, old_log_probs=old_log_probs, advantages=advantages)
    advantages = advantages.detach()
    ratio = (log_probs - old_log_probs.detach()).exp()
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    return -torch.minimum(advantages * ratio, advantages * clipped).mean(dim=1)


def value_loss(values: Tensor, returns: Tensor) -> Tensor:
    """mean((R − V)²), [N]: the squared error of the critic, without the factor ½, as in stable-baselines3's A2C.

    Args:
        values: [N, B], V(s).
        returns: [N, B], the targets R; constants, no gradient passes through them.
    """
    _check_rows(values=values, returns=returns)
    return (values - returns.detach()).square().mean(dim=1)


def entropy_loss(entropies: Tensor) -> Tensor:
    """−mean(H(π(·|s))), [N]: the exploration bonus of A3C, to be minimised (Mnih et al., 2016, arXiv 1602.01783).

    Args:
        entropies: [N, B], in nats.
    """
    _check_rows(entropies=entropies)
    return -entropies.mean(dim=1)


def explained_variance(values: Tensor, returns: Tensor) -> Tensor:
    """1 − Var(R − V) / Var(R), [N], detached: 1 is a perfect critic, 0 one no better than a constant.

    Where the returns do not vary there is nothing to explain: the answer is 0, never NaN.

    Args:
        values: [N, B], V(s).
        returns: [N, B], the targets R.
    """
    _check_rows(values=values, returns=returns)
    values, returns = values.detach(), returns.detach()
    total = returns.var(dim=1, correction=0)
    unexplained = (returns - values).var(dim=1, correction=0)
    explained = 1 - unexplained / total.where(total > 0, 1)
    return explained.masked_fill(total == 0, 0)


def _check_rows(**tensors: Tensor) -> None:
    """Raise `ConfigError` unless all are [N, B] of one shape, not empty, and floating point."""
    shapes = {tensor.shape for tensor in tensors.values()}
    shape = next(iter(shapes))
    if len(shapes) > 1 or len(shape) != 2 or 0 in shape:
        given = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in tensors.items())
        raise ConfigError(f"Expected one shape [N, B] without empty axes, got {given}.")
    if not all(tensor.is_floating_point() for tensor in tensors.values()):
        given = ", ".join(f"{name} {tensor.dtype}" for name, tensor in tensors.items())
        raise ConfigError(f"Expected floating-point tensors, got {given}.")


def critic_values(policy: BoundPolicy, batch: Batch) -> tuple[Tensor, Tensor]:
    """Values of all observations, with gradient, and of their true successors, without: two tensors [N, T, E].

    Raises:
        ConfigError: the policy has no critic.
    """
    if not policy.has_critic:
        raise ConfigError("This agent needs a policy with a critic, and the policy given has none.")
    values = policy.critic(batch.obs.flatten(1, 2)).reshape(batch.rewards.shape)
    with torch.no_grad():
        final_values = policy.critic(batch.final_obs)
    return values, successor_values(values.detach(), final_values, batch.final_index)


def combine_losses(
    policy: BoundPolicy,
    batch: Batch,
    advantages: Tensor,
    critic: tuple[Tensor, Tensor] | None,
    *,
    ent_coef: float,
    vf_coef: float,
    normalize_advantage: bool,
) -> AgentLosses:
    """Policy, value and entropy loss of every point, weighted and added up (Mnih et al., 2016, arXiv 1602.01783).

    Args:
        policy: the N points that collected `batch`.
        batch: their experience.
        advantages: [N, T, E].
        critic: values with gradient and their targets, both [N, T, E]; None for an agent without critic.
        ent_coef: weight of the entropy bonus.
        vf_coef: weight of the value loss.
        normalize_advantage: whether the advantages of each point are normalised first.
    """
    if normalize_advantage:
        advantages = normalize_advantages(advantages)
    inputs = policy.actor(batch.obs.flatten(1, 2))
    log_probs = policy.distribution.log_prob(inputs, batch.actions.flatten(1, 2))
    policy_term = policy_gradient_loss(log_probs, advantages.flatten(1))
    flat = None if critic is None else (critic[0].flatten(1), critic[1].flatten(1))
    return add_up_losses(policy, inputs, policy_term, flat, ent_coef=ent_coef, vf_coef=vf_coef)


def add_up_losses(
    policy: BoundPolicy,
    inputs: Tensor,
    policy_term: Tensor,
    critic: tuple[Tensor, Tensor] | None,
    *,
    ent_coef: float,
    vf_coef: float,
) -> AgentLosses:
    """The weighted sum of policy, value and entropy loss of every point.

    Args:
        policy: the N points.
        inputs: [N, B, A], the actor's outputs at the observations.
        policy_term: [N], with gradient.
        critic: values with gradient and their targets, both [N, B]; None for an agent without critic.
        ent_coef: weight of the entropy bonus.
        vf_coef: weight of the value loss.
    """
    # Without a bonus the entropy is only reported: no backward pass for a term of weight zero.
    entropy_term = entropy_loss(policy.distribution.entropy(inputs if ent_coef else inputs.detach()))
    total = policy_term + ent_coef * entropy_term
    value_term = explained = torch.zeros_like(policy_term)
    if critic is not None:
        value_term, explained = value_loss(*critic), explained_variance(*critic)
        total = total + vf_coef * value_term
    return AgentLosses(total, policy_term.detach(), value_term.detach(), -entropy_term.detach(), explained)
