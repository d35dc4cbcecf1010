"""Returns and advantages of whole windows of experience, as pure functions.

Axes: N points (parameter sets), T steps, E environments per point, K rows whose successor is not the next row.
Row (n, t, e) holds reward r_t, the value V(s_t) of the observation acted on, and two flags: the step ended the episode
by the task's rules (terminated) or by a time limit (truncated). Both may be set; then the episode has terminated.
Every function takes and returns tensors [N, T, E] and raises `ConfigError` naming the shapes when they do not fit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..common.errors import ConfigError


def discounted_returns(
    rewards: Tensor, next_values: Tensor, terminated: Tensor, truncated: Tensor, gamma: float
) -> Tensor:
    """Reward-to-go of every step, bootstrapped where the episode continues outside of the window.

        G_t = r_t + γ · { 0            if terminated
                        { next_value_t if truncated, or t = T−1
                        { G_{t+1}      otherwise

    The sum by which REINFORCE weights the score (Williams, 1992, Machine Learning 8).

    Args:
        rewards: [N, T, E], floating point.
        next_values: [N, T, E], the value of the true successor observation; read only at truncated steps and at the
            last one. Zeros leave out what comes after the window.
        terminated: [N, T, E], bool.
        truncated: [N, T, E], bool.
        gamma: discount factor per step, in [0, 1].

    Returns:
        G, [N, T, E].
    """
    _check_window({"rewards": rewards, "next_values": next_values}, terminated=terminated, truncated=truncated)
    leaves_window = truncated.clone()
    leaves_window[:, -1] = True
    tail = next_values.masked_fill(terminated | ~leaves_window, 0)
    decay = (~(terminated | leaves_window)).to(rewards.dtype).mul_(gamma)
    return _backward_recursion(rewards + gamma * tail, decay)


def gae(
    rewards: Tensor,
    values: Tensor,
    next_values: Tensor,
    terminated: Tensor,
    truncated: Tensor,
    gamma: float,
    gae_lambda: float,
) -> Tensor:
    """Generalised advantage estimates (Schulman et al., 2016, arXiv 1506.02438, equations 11 and 16).

        δ_t = r_t + γ · (1 − terminated_t) · next_value_t − V_t
        A_t = δ_t + γλ · (1 − (terminated_t or truncated_t)) · A_{t+1},    A_T = 0

    Unlike the paper's infinite sum: it stops at the end of the episode and at the end of the window.

    Args:
        rewards: [N, T, E], floating point.
        values: [N, T, E], V(s_t).
        next_values: [N, T, E], the value of the true successor observation (of an ended step: the final observation);
            ignored where terminated.
        terminated: [N, T, E], bool.
        truncated: [N, T, E], bool.
        gamma: discount factor per step, in [0, 1].
        gae_lambda: λ in [0, 1]; 0 is the one-step advantage, 1 the bootstrapped return minus the value.

    Returns:
        A, [N, T, E].
    """
    floats = {"rewards": rewards, "values": values, "next_values": next_values}
    _check_window(floats, terminated=terminated, truncated=truncated)
    deltas = rewards + gamma * next_values.masked_fill(terminated, 0) - values
    decay = (~(terminated | truncated)).to(rewards.dtype).mul_(gamma * gae_lambda)
    return _backward_recursion(deltas, decay)


def normalize_advantages(advantages: Tensor) -> Tensor:
    """Advantages with mean 0 and standard deviation 1 for every point, [N, T, E] -> [N, T, E].

    Mean and (unbiased) standard deviation are taken over the T·E rows of one point, never across points: a point's
    gradient must not depend on which others are evaluated beside it. 1e-8 is added to the standard deviation, as
    in stable-baselines3.
    """
    _check_window({"advantages": advantages})
    if advantages[0].numel() < 2:
        raise ConfigError(
            f"Advantages of shape {list(advantages.shape)} cannot be normalised: the standard deviation needs at least "
            "2 samples per point."
        )
    centred = advantages - advantages.mean(dim=(1, 2), keepdim=True)
    return centred / (advantages.std(dim=(1, 2), keepdim=True) + 1e-8)


def successor_values(values: Tensor, final_values: Tensor, final_index: Tensor) -> Tensor:
    """Value of the true successor observation of every row, [N, T, E].

    The successor of row (t, e) is row (t+1, e), except where the collector listed another one: after a truncation the
    next row starts a new episode, and after the last step there is no row. Rows of the last step that are not listed
    get 0; they must have terminated.

    Args:
        values: [N, T, E], V(s_t).
        final_values: [N, K], values of the listed successors.
        final_index: [N, K], int64, flat rows t·E + e; −1 marks padding, whose value is not used.
    """
    _check_window({"values": values})
    N, T, E = values.shape
    if final_values.shape != final_index.shape or final_values.shape[:1] != (N,) or final_values.dim() != 2:
        raise ConfigError(
            f"final_values {list(final_values.shape)} and final_index {list(final_index.shape)} must both be "
            f"[N={N}, K]."
        )
    # One column more than there are rows: it swallows the padding without a data-dependent selection.
    flat = values.new_zeros(N, T * E + 1)
    flat[:, : (T - 1) * E] = values[:, 1:].flatten(1)
    flat.scatter_(1, final_index.where(final_index >= 0, T * E), final_values)
    return flat[:, :-1].view(N, T, E)


def _backward_recursion(terms: Tensor, decay: Tensor) -> Tensor:
    """Solution of y_t = terms_t + decay_t · y_{t+1} with y_T = 0, along dim 1.

    By recursive doubling (Hillis and Steele, 1986, CACM 29): after j passes y_t holds its first 2^j terms, so that
    there are ⌈log2 T⌉ passes over the whole window instead of T over one step each.
    """
    total, weight = terms.clone(), decay
    reach = 1
    while reach < terms.shape[1]:
        total[:, :-reach] += weight[:, : total.shape[1] - reach] * total[:, reach:]
        # Rows within `reach` of the end are complete and drop out of the weights.
        weight = weight[:, :-reach] * weight[:, reach:]
        reach *= 2
    return total


def _check_window(floats: dict[str, Tensor], **flags: Tensor) -> None:
    """Raise `ConfigError` unless all are [N, T, E], not empty, the first of one floating dtype and the flags bool."""
    tensors = {**floats, **flags}
    shapes = {tensor.shape for tensor in tensors.values()}
    shape = next(iter(shapes))
    if len(shapes) > 1 or len(shape) != 3 or 0 in shape:
        given = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in tensors.items())
        raise ConfigError(f"Expected one shape [N, T, E] without empty axes, got {given}.")
    dtypes = {tensor.dtype for tensor in floats.values()}
    if len(dtypes) > 1 or not next(iter(dtypes)).is_floating_point:
        given = ", ".join(f"{name} {tensor.dtype}" for name, tensor in floats.items())
        raise ConfigError(f"Expected one floating-point dtype, got {given}.")
    if any(flag.dtype != torch.bool for flag in flags.values()):
        given = ", ".join(f"{name} {flag.dtype}" for name, flag in flags.items())
        raise ConfigError(f"Expected flags of dtype torch.bool, got {given}.")
