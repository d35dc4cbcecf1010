"""One evaluation from the replies of the workers.

Axes: N points, P parts, T steps, E environments per part, d parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..agents import Agent, AgentLosses, Batch, StackedPolicy
from ..training.rollouts.episodes import Episode
from ..training.rollouts.evaluator import Evaluation, Prepare, differentiate
from .shares import Share, join_environments, join_parts, without_steps
from .worker import Array, Order, Reply, batch_of


def combine_gradients(
    points: Tensor, replies: Sequence[Reply | None], shares: Sequence[Share], n_steps: int
) -> Evaluation:
    """The evaluation of N points that the workers differentiated; gradients and losses are NaN without a reply.

    Args:
        points: ``[N, d]``.
        replies: with gradients and losses.
        shares: the points of each.
        n_steps: T.
    """
    gradients = torch.full_like(points, torch.nan, device="cpu")
    losses = torch.full((len(AgentLosses._fields), len(points)), torch.nan)
    E = shares[0].envs_per_part
    broken, samples = np.zeros(len(points) * E, np.bool_), 0
    for share, reply in zip(shares, replies, strict=True):
        if reply is not None and reply.gradients is not None and reply.losses is not None:
            gradients[share.parts] = torch.from_numpy(reply.gradients.copy())
            losses[:, share.parts] = torch.from_numpy(np.stack(reply.losses))
            broken[share.envs] = reply.broken
            samples += n_steps * share.size * E
    batches = [batch_of(reply) for reply in replies]
    known = any(batch is not None for batch in batches)
    batch = join_parts(batches, shares) if known else without_steps(len(points), E)
    device = points.device
    found = gradients.to(device), AgentLosses(*losses.to(device)), _episodes(shares, replies)
    return Evaluation(*found, _moved(batch, device), broken, samples)


def combine_experience(
    agent: Agent,
    policy: StackedPolicy,
    points: Tensor,
    replies: Sequence[Reply | None],
    shares: Sequence[Share],
    prepare: Prepare | None = None,
) -> Evaluation:
    """The evaluation of points from the experience of all workers, differentiated here.

    P groups of environments of one point become one batch, in which those without a reply are left out. Of P points
    those without a reply count as broken, and have gradients and losses that are NaN.

    Args:
        agent: gives the loss.
        policy: the network's architecture.
        points: ``[N, d]``.
        replies: with experience.
        shares: the parts of each.
        prepare: see `Evaluator`.
    """
    there = [(share, reply) for share, reply in zip(shares, replies, strict=True) if reply is not None]
    if not there:
        return _nothing(points, shares)
    one = len(points) < shares[-1].parts.stop
    kept = there if one else list(zip(shares, replies, strict=True))
    batch = join_parts([batch_of(reply) for _, reply in kept], [share for share, _ in kept])
    batch = _moved(join_environments(batch) if one else batch, points.device)
    broken = np.concatenate([_broken(share, reply) for share, reply in kept])
    points = points.detach().requires_grad_()
    if prepare is not None:
        prepare(points.detach(), batch, broken)
    gradients, losses = differentiate(agent, policy.bind(points), points, batch)
    for share, reply in kept:
        if reply is None:
            gradients[share.parts] = torch.nan
            losses.total[share.parts] = torch.nan
    episodes = [episode._replace(point=0) if one else episode for episode in _episodes(shares, replies)]
    samples = sum(share.size for share, _ in there) * batch.rewards.shape[1] * shares[0].envs_per_part
    return Evaluation(gradients, losses, episodes, batch, broken, samples)


def _nothing(points: Tensor, shares: Sequence[Share]) -> Evaluation:
    """The evaluation of points all of whose workers were lost."""
    missing = torch.full((len(points),), torch.nan, device=points.device)
    E = shares[0].envs_per_part
    empty, broken = _moved(without_steps(len(points), E), points.device), np.ones(len(points) * E, np.bool_)
    losses = AgentLosses(*[missing] * len(AgentLosses._fields))
    return Evaluation(torch.full_like(points, torch.nan), losses, [], empty, broken, 0)


def _broken(share: Share, reply: Reply | None) -> Array:
    """Which environments of a share gave numbers that cannot be used."""
    return np.ones(share.size * share.envs_per_part, np.bool_) if reply is None else reply.broken


def _episodes(shares: Sequence[Share], replies: Sequence[Reply | None]) -> list[Episode]:
    """Episodes of all workers in the order in which one collector would have them, their points counted from all."""
    episodes = [
        episode._replace(point=episode.point + share.first)
        for share, reply in zip(shares, replies, strict=True)
        if reply is not None
        for episode in reply.episodes
    ]
    return sorted(episodes, key=lambda episode: episode.ended)


def _moved(batch: Batch, device: torch.device) -> Batch:
    return Batch(*(column.to(device) for column in batch))


def measure(
    waited: float, orders: Sequence[Order], replies: Sequence[Reply | None], shares: Sequence[Share]
) -> dict[str, float]:
    """What an evaluation took, by TensorBoard tag: seconds, the slowest worker, and bytes of the arrays sent."""
    seconds = [(reply.seconds, share.first) for share, reply in zip(shares, replies, strict=True) if reply is not None]
    slowest, point = max(seconds, default=(float("nan"), -1))
    return {
        "cluster/seconds_waited": waited,
        "cluster/slowest_seconds": slowest,
        "cluster/slowest_point": point,
        "cluster/bytes_sent": count_bytes(orders),
        "cluster/bytes_received": count_bytes(replies),
    }


def count_bytes(tree: Any) -> int:
    """Bytes of all arrays and tensors in a nest of sequences and dictionaries."""
    if isinstance(tree, (np.ndarray, Tensor)):
        return int(tree.nbytes)
    if isinstance(tree, dict):
        return sum(map(count_bytes, tree.values()))
    return sum(map(count_bytes, tree)) if isinstance(tree, (list, tuple)) else 0
