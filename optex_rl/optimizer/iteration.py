"""One sequential iteration of OptEx (Shu et al., 2024, arXiv 2402.11427, Algorithm 1): propose, select, report.

Axes: ``N`` points, ``d`` parameters, ``B`` blocks, ``M = (N − 1)·stride`` base steps from the first point to the last.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..bases.flat import FlatBase, Stepper
from ..common.torch_private import changes
from .estimator.gp import Predictor
from .evaluations import Evaluations
from .horizon import AdaptiveHorizon, Horizon
from .options import OptExOptions
from .selection import SELECTIONS


@dataclass
class Proposal:
    """An iteration under way: the points to evaluate, and how they were reached.

    Attributes:
        points: ``[N, d]``; row 0 is the iterate.
        estimates: posterior means where a base step of the chain starts, ``[M, d]``, which leaves out its last point;
            with an adaptive horizon at the points, ``[N, d]``. Empty ``[0, d]`` where there was nothing to predict
            with and all points are the iterate.
        variances: posterior variances at the points, ``[N, B]``; empty where there was nothing to predict with.
        gradients: the true gradients known so far, each ``[d]``, in the order of the points.
        shown: torch's count of changes in place to ``points`` when `show` returned them, or None.
    """

    points: Tensor
    estimates: Tensor
    variances: Tensor
    gradients: list[Tensor] = field(default_factory=list)
    shown: int | None = None

    def show(self) -> Tensor:
        """The points ``[N, d]``, not a copy, which would be as long as N gradients; see `modified`."""
        self.shown = changes(self.points)
        return self.points.detach()

    @property
    def modified(self) -> bool:
        """Whether the points were changed in place since `show`."""
        return self.shown is not None and changes(self.points) != self.shown

    @property
    def cold(self) -> bool:
        """Whether all points are copies of the iterate, because there was nothing to predict with."""
        return self.variances.shape[0] == 0

    def fits(self, options: OptExOptions) -> bool:
        """Whether it has the number of points and of estimates that the options ask for."""
        N = options.parallelism
        M = N if options.adaptive else (N - 1) * options.stride
        return len(self.points) == N and (self.cold or len(self.estimates) == M)

    def keep_only(self, chosen: int | None) -> None:
        """Free what `select` does not need: points but the chosen one; to refine (None) all of it."""
        self.points = self.points[:0].clone() if chosen is None else self.points[chosen : chosen + 1].clone()
        if chosen is None:
            self.estimates = self.estimates[:0].clone()

    def state_dict(self) -> dict[str, Any]:
        """Copy as plain tensors."""
        return {
            "points": self.points.clone(),
            "estimates": self.estimates.clone(),
            "variances": self.variances.clone(),
            "gradients": [g.clone() for g in self.gradients],
        }

    @classmethod
    def from_state_dict(cls, state: dict[str, Any], like: Tensor) -> Proposal:
        """Proposal from `state_dict`, on the device and in the precision of ``like``."""
        return cls(
            state["points"].to(like, copy=True),
            state["estimates"].to(like.device, copy=True),
            state["variances"].clone(),
            [g.to(like, copy=True) for g in state["gradients"]],
        )


def predict_here(points: Tensor, estimator: Predictor | None) -> Proposal:
    """Proposal of given points ``[N, d]``, with the posterior at each of them if there is one."""
    if estimator is None or len(estimator) == 0:
        return Proposal(points, points.new_empty(0, points.shape[1]), torch.empty(0, 1, dtype=torch.float64))
    distances = estimator.distances_to(points)
    return Proposal(points, estimator.mean(points, distances), estimator.variances(distances))


def propose_between(base: FlatBase, estimator: Predictor, places: Sequence[float]) -> Proposal:
    """Points at any ``places`` of the chain, in base steps from the iterate, ascending from 0; see `propose`.

    Between the ends of two base steps a point lies on the straight line.
    """
    with base.trial_steps() as stepper:
        ahead = stepper.point().clone()
        points = ahead.new_empty(len(places), len(ahead), dtype=base.parameters[0].dtype)
        before, done = ahead, 0
        for row, place in enumerate(places):
            while done < place:
                before, done = ahead, done + 1
                stepper.step(estimator.mean(before, estimator.distances_to(before)), estimator.mean)
                ahead = stepper.point().clone()
            points[row] = torch.lerp(before, ahead, place - (done - 1)) if done else ahead
    return predict_here(points, estimator)


@torch.no_grad()
def propose(base: FlatBase, estimator: Predictor | None, options: OptExOptions, horizon: Horizon) -> Proposal:
    """The points of the next evaluation: base steps with posterior means, undone afterwards.

    θ₀ is the iterate; θᵢ is ``stride`` base steps from θᵢ₋₁, each with the posterior mean where it starts, the state of
    the base carried along (Algorithm 1, lines 3–5, where ``stride`` is 1). Where the horizon adapts they are at its
    places. ``base`` is left as it was.
    """
    N, stride = options.parallelism, options.stride
    # OptEx never steps to a region it has not evaluated if it takes its steps again afterwards. Then one gradient is
    # enough to look ahead, although it does not say how the gradient changes.
    looks_first = SELECTIONS[options.selection].choose is None
    if N == 1 or estimator is None or not (estimator.ready or (looks_first and len(estimator) > 0)):
        return predict_here(base.point().repeat(N, 1), None)
    if isinstance(horizon, AdaptiveHorizon):
        return propose_between(base, estimator, horizon.places)
    distances = []
    last = (N - 1) * stride
    # Filled row by row, because a list would have to be copied; allocated before the steps, so that the memory which
    # these free is in one piece.
    estimates = estimator.new_means(last)
    points = estimates.new_empty(N, estimates.shape[1], dtype=base.parameters[0].dtype)
    with base.trial_steps() as stepper:
        for step in range(last + 1):
            here = stepper.point()
            known = estimator.distances_to(here)
            if step % stride == 0:
                points[step // stride] = here
                distances.append(known)
            if step < last:
                stepper.step(estimator.mean(here, known, out=estimates[step]), estimator.mean)
    return Proposal(points, estimates, estimator.variances(torch.stack(distances)))


def unpredicted_steps(stepper: Stepper, gradient: Tensor, steps: int) -> int:
    """Base steps with ``gradient [d]``, which also stands for the gradient nearby; returns how many."""
    for _ in range(steps):
        stepper.step(gradient, lambda _: gradient)
    return steps


def follow(stepper: Stepper, estimator: Predictor, near: Sequence[int], distances: Tensor | None = None) -> int:
    """Base steps, each with the posterior mean at the point where it starts; returns how many.

    Args:
        stepper: the base where the first step starts.
        estimator: predicts.
        near: for each step the age of a point of the history near its start, see `distances_to`.
        distances: of the first of these points to the history, ``[B, T]``, if they are known.
    """
    (mean,) = estimator.new_means(1)  # one for all steps: fresh memory costs more than what is computed into it
    for step, age in enumerate(near):
        here = stepper.point()
        known = distances if step == 0 and distances is not None else estimator.distances_to(here, age)
        stepper.step(estimator.mean(here, known, out=mean), estimator.mean)
    return len(near)


def ages_on_the_way(places: Sequence[float], steps: int) -> list[int]:
    """For each base step from the iterate on, the age of the point evaluated last before it, see `follow`.

    Args:
        places: of the points that are the newest in the history, in base steps from the iterate, ascending.
        steps: how many base steps.
    """
    return [len(places) - max(1, bisect_right(places, step)) for step in range(steps)]


@torch.no_grad()
def select(
    stepper: Stepper,
    estimator: Predictor,
    proposal: Proposal,
    evaluations: Evaluations,
    best: int | None,
    options: OptExOptions,
    horizon: Horizon,
    distances: Tensor | None = None,
) -> int:
    """Move ``stepper`` from the iterate to the next one; returns how many base steps lie between them.

    Args:
        stepper: the base at the iterate, with the state that belongs to it.
        estimator: its history holds the new pairs.
        proposal: what was evaluated; of its points only the chosen one is left.
        evaluations: the evaluations there.
        best: which of them the `Selection` chose; None to refine.
        options: stride, and the steps of an iteration without predictions.
        horizon: how many base steps refine, and where the points lay.
        distances: of the iterate to the history, ``[B, T]``, if they are known.
    """
    if proposal.cold or not estimator.ready:
        return unpredicted_steps(stepper, evaluations.gradients.mean(0), options.first_steps)
    if best is None and horizon.steps == 1:  # all points are near the iterate: their mean has the least noise
        return unpredicted_steps(stepper, evaluations.gradients.mean(0), 1)
    if best is None:
        places = [horizon.places[row] for row in evaluations.rows]
        return follow(stepper, estimator, ages_on_the_way(places, horizon.steps), distances)
    chosen = evaluations.rows[best]
    # The same base steps again bring the state that belongs to the chosen point; no copy of it was kept.
    for estimate in proposal.estimates[: chosen * options.stride]:
        stepper.step(estimate, estimator.mean)
    stepper.move_to(proposal.points[0])  # where it was evaluated, should the learning rate have changed since
    stepper.step(evaluations.gradients[best], estimator.mean)
    return chosen * options.stride + 1


def mean_cosines(a: Tensor, b: Tensor, sizes: list[int]) -> list[float]:
    """Mean cosine between the rows of two matrices ``[N, d]``: over all columns, then over each block of columns.

    Args:
        a: ``[N, d]``.
        b: ``[N, d]``.
        sizes: of the blocks, which are consecutive and make up ``d``.
    """
    products = []
    for x, y in zip(torch.split(a, sizes, dim=1), torch.split(b.to(a), sizes, dim=1), strict=True):
        dots = torch.stack(list(map(torch.dot, x, y)))  # row by row: all at once would need memory for their products
        products.append(torch.stack([dots, torch.linalg.vector_norm(x, dim=1), torch.linalg.vector_norm(y, dim=1)]))
    dots, *norms = torch.stack(products, dim=1)  # [blocks, N] each
    # Over all columns dots add up, and so do the squares of norms; a zero vector has the cosine 0.
    cosines = torch.cat([dots.sum(0, keepdim=True), dots])
    for norm in norms:
        total = torch.linalg.vector_norm(norm, dim=0, keepdim=True)
        cosines /= torch.cat([total, norm]).clamp_min(torch.finfo(norm.dtype).tiny)
    return [float(cosine) for cosine in cosines.mean(1)]


def group_sizes(groups: Sequence[Mapping[str, Any]]) -> list[int]:
    """Number of parameters of each group."""
    return [sum(p.numel() for p in group["params"]) for group in groups]


def group_names(groups: Sequence[Mapping[str, Any]]) -> list[str]:
    """Their names; a group without one has its number."""
    return [str(group.get("name", number)) for number, group in enumerate(groups)]


def group_tags(statistic: str, groups: Sequence[Mapping[str, Any]]) -> list[str]:
    """Names of a statistic over all parameters and, where there are several groups, of each of them."""
    return [statistic, *(f"{statistic}/{name}" for name in group_names(groups) if len(groups) > 1)]


def iteration_statistics(
    cosines: list[float], variances: Tensor, fitted: Mapping[str, Tensor], groups: list[dict[str, Any]]
) -> dict[str, float]:
    """The diagnostics of an iteration by name.

    Args:
        cosines: between predictions and true gradients, from `mean_cosines` over the groups; empty if there were none.
        variances: posterior variances at the points, ``[N, B]``.
        fitted: the estimator's hyperparameters by name, ``[B]`` each.
        groups: parameter groups; several get a cosine each.
    """
    names = group_names(groups)
    statistics = dict(zip(group_tags("cosine", groups), cosines, strict=False))
    figures = {**fitted, "variance": variances.mean(0)}
    values = {name: blocks.tolist() for name, blocks in figures.items()}
    for key, blocks in values.items():
        tags = [key] if len(blocks) == 1 else [f"{key}/{name}" for name in names]
        # A length scale is infinite where only one point is known: a figure that plots and JSON cannot hold.
        statistics |= {tag: value for tag, value in zip(tags, blocks, strict=True) if value != math.inf}
    return statistics
