"""How much of a gradient can be predicted at all: a bound on ``optex/cosine``, from two halves of a point's samples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..agents import Agent, Batch, StackedPolicy
from ..optimizer.iteration import group_sizes, group_tags, mean_cosines
from .rollouts.evaluator import differentiate


def ceiling(cosine: float) -> float:
    """The cosine that the true gradient has with a sampled one whose two halves agree to ``cosine``.

    Let the mean over all samples be t + n, with independent noise of square norm s. The means over its halves have
    noise of 2 s, so they agree to c = |t|² / (|t|² + 2 s), while t and t + n agree to |t| / √(|t|² + s), which is
    √(2 c / (1 + c)): the square root of the reliability that Spearman (1910) and Brown (1910) give a test for its
    halves. 0 where the halves do not agree. Advantages that are normalised over each half are a small deviation.
    """
    return math.sqrt(2.0 * cosine / (1.0 + cosine)) if cosine > 0.0 else 0.0


def halve(batch: Batch) -> Batch:
    """The experience ``[N, T, E, …]`` of N points as that of 2 N, ``[2 N, T, E // 2, …]``: first that of the first half
    of each point's environments, then that of the second; of an odd number of environments the last one is left out.
    """
    E, half = batch.rewards.shape[2], batch.rewards.shape[2] // 2

    def rows(column: Tensor) -> Tensor:
        return torch.cat([column[:, :, :half], column[:, :, half : 2 * half]])

    index = torch.cat([batch.final_index] * 2)
    environment = index % E  # within its half:
    environment[len(index) // 2 :] -= half
    is_in = (index >= 0) & (environment >= 0) & (environment < half)
    final_index = torch.where(is_in, index // E * half + environment, -1)
    final_obs = torch.cat([batch.final_obs] * 2)
    final_obs[~is_in] = 0
    columns = {name: rows(column) for name, column in batch._asdict().items() if not name.startswith("final")}
    return Batch(**columns, final_obs=final_obs, final_index=final_index)


def ceilings(
    agent: Agent, policy: StackedPolicy, points: Tensor, batch: Batch, groups: Sequence[Mapping[str, Any]]
) -> dict[str, float]:
    """See `ceiling`, of the mean cosine over N points: over all parameters, and for each group of them.

    Args:
        agent: gives the loss.
        policy: the network's architecture, as a function of the points.
        points: ``[N, d]``; their halves take one backward pass.
        batch: their experience, ``[N, T, E, …]``; nothing comes of one environment, nor of no steps.
        groups: parameter groups, in the order of a point's entries.
    """
    N, T, E = batch.rewards.shape
    if T == 0 or E == 1:
        return {}
    twice = torch.cat([points.detach()] * 2).requires_grad_()
    gradients, _ = differentiate(agent, policy.bind(twice), twice, halve(batch))
    cosines = mean_cosines(gradients[:N], gradients[N:], group_sizes(groups))
    return dict(zip(group_tags("ceiling", groups), map(ceiling, cosines), strict=False))  # a single group has one tag


def actor_first(statistics: Mapping[str, float], name: str) -> dict[str, float]:
    """Statistics of actor and critic apart, with the actor's under the bare name.

    Over all parameters the critic's gradient, which is larger and easier to predict, would hide the actor's.
    """
    actor = f"{name}/actor"
    if actor not in statistics:
        return dict(statistics)
    names = {actor: name, name: f"{name}/all"}
    return {names.get(key, key): statistics[key] for key in sorted(statistics, key=lambda key: key != actor)}
