"""Losses of policy-gradient methods, one per point, as pure functions.

Axes: N points (parameter sets), B rows of one point. Rows are averaged, points never: the points are independent, and
the gradient of the sum of the N losses is the N gradients. Every function takes tensors [N, B], returns [N], and raises
`ConfigError` naming the shapes when they do not fit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..common.errors import ConfigError


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
