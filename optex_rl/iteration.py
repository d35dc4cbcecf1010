"""One sequential iteration of OptEx (Shu et al., 2024, arXiv 2402.11427, Algorithm 1): propose and select.

Axes: ``N`` points, ``d`` parameters, ``B`` blocks, ``M = (N − 1)·stride`` base steps from the first point to the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .errors import ConfigError, NonFiniteError
from .estimator import GradientEstimator
from .flat import FlatBase, Walker
from .options import OptExOptions


@dataclass
class Proposal:
    """An iteration under way: the points to evaluate, and how they were reached.

    Attributes:
        points: ``[N, d]``; row 0 is the iterate.
        estimates: posterior means where a base step of the chain starts, ``[M, d]``, which leaves out its last point;
            empty ``[0, d]`` where there was nothing to predict with and all points are the iterate.
        variances: posterior variances at the points, ``[N, B]``; empty where there was nothing to predict with.
        distances: of the points to the history that they were proposed from, ``[N, B, T]``; empty likewise.
        gradients: the true gradients known so far, each ``[d]``, in the order of the points.
    """

    points: Tensor
    estimates: Tensor
    variances: Tensor
    distances: Tensor
    gradients: list[Tensor] = field(default_factory=list)

    @property
    def cold(self) -> bool:
        """Whether all points are copies of the iterate, for want of a prediction."""
        return self.variances.shape[0] == 0

    def fits(self, options: OptExOptions) -> bool:
        """Whether it has the number of points and of base steps that the options ask for."""
        N, M = options.parallelism, (options.parallelism - 1) * options.stride
        return len(self.points) == N and (self.cold or len(self.estimates) == M)

    def keep_only(self, chosen: int | None) -> None:
        """Give back the room of what `select` does not need: points but the chosen one; all where it refines (None)."""
        self.points = self.points[:0].clone() if chosen is None else self.points[chosen : chosen + 1].clone()
        if chosen is None:
            self.estimates = self.estimates[:0].clone()

    def state_dict(self) -> dict[str, Any]:
        """Copy as plain tensors, without the distances, which follow from points and history."""
        return {
            "points": self.points.clone(),
            "estimates": self.estimates.clone(),
            "variances": self.variances.clone(),
            "gradients": [g.clone() for g in self.gradients],
        }

    @classmethod
    def from_state_dict(cls, state: dict[str, Any], like: Tensor, estimator: GradientEstimator | None) -> Proposal:
        """Proposal from `state_dict`, on the device and in the precision of ``like``, over the history given."""
        points = state["points"].to(like, copy=True)
        distances = torch.empty(0, 1, 0, dtype=torch.float64)
        if estimator is not None and len(state["estimates"]):
            # Computed anew: the history may have been loaded into a ring of another size, or into other blocks.
            distances = torch.stack([estimator.distances_to(point) for point in points])
        return cls(
            points,
            state["estimates"].to(like.device, copy=True),
            state["variances"].clone(),
            distances,
            [g.to(like, copy=True) for g in state["gradients"]],
        )


@dataclass(frozen=True)
class Evaluations:
    """What was told of the usable points of a proposal.

    Attributes:
        rows: which of the N points they are, ascending; ``n``, at least one.
        gradients: the true gradients there, ``[n, d]``, in the precision of the points.
        losses: the losses there, ``[n]``, or None.
    """

    rows: list[int]
    gradients: Tensor
    losses: Tensor | None


def as_losses(results: Sequence[Any]) -> Tensor:
    """The results of N closures as losses ``[N]``.

    Raises:
        ConfigError: a result is no single number.
    """
    try:
        numbers = [float(r.detach() if isinstance(r, Tensor) else r) for r in results]
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"the closure must return the loss, a single number: {error}") from error
    return torch.tensor(numbers, dtype=torch.float64)


def check_finite(gradients: Tensor, losses: Tensor | None = None) -> None:
    """Refuse gradients ``[N, d]`` or losses ``[N]`` that hold NaN or infinite values, or whose norm overflows.

    Raises:
        NonFiniteError: naming the first point that does.
    """
    if losses is not None and not losses.isfinite().all():
        raise NonFiniteError(f"the losses at the points are {losses.tolist()}; the optimizer is unchanged")
    usable = torch.linalg.vector_norm(gradients, dim=1).isfinite()
    if not usable.all():
        point = int((~usable).int().argmax())
        bad = int((~gradients[point].isfinite()).sum())
        reason = f"{bad} non-finite entries of {gradients.shape[1]}" if bad else "a norm that overflows"
        raise NonFiniteError(f"the gradient at point {point} has {reason}; the optimizer is unchanged")


def check_evaluations(
    points: Tensor, gradients: Tensor, losses: Tensor | None, selection: str, usable: Tensor | None = None
) -> Evaluations:
    """Refuse evaluations at ``points [N, d]`` of another shape, or that are not finite, before anything changes.

    Returns:
        Those to go on with: of the mask ``usable [N]``, or all.

    Raises:
        ConfigError: ``gradients`` are not ``[N, d]``, or ``losses`` not ``[N]``, or missing where they are needed, or
            ``usable`` is no mask ``[N]``.
        NonFiniteError: a gradient or a loss that is to be used is NaN or infinite, or no point is usable.
    """
    if gradients.shape != points.shape:
        raise ConfigError(f"gradients must be [N, d] = {list(points.shape)}, got {list(gradients.shape)}")
    if losses is None and selection == "loss":
        raise ConfigError("selection 'loss' needs the losses: call tell(gradients, losses) or step(closure)")
    if losses is not None and losses.shape != points.shape[:1]:
        raise ConfigError(f"losses must be [N] = {list(points.shape[:1])}, got {list(losses.shape)}")
    if usable is None:
        check_finite(gradients, losses)
        return Evaluations(list(range(len(points))), gradients.detach().to(points), losses)
    if usable.shape != points.shape[:1] or usable.dtype != torch.bool:
        shape, kind = list(usable.shape), usable.dtype
        raise ConfigError(f"usable must be a mask [N] = {list(points.shape[:1])} of bool, got {shape} of {kind}")
    rows: list[int] = usable.nonzero().flatten().tolist()
    if not rows:
        raise NonFiniteError(f"none of the {len(points)} points is usable; the optimizer is unchanged")
    gradients, losses = gradients[rows], None if losses is None else losses[rows]
    check_finite(gradients, losses)
    return Evaluations(rows, gradients.detach().to(points), losses)


def predict_here(points: Tensor, estimator: GradientEstimator | None) -> Proposal:
    """Proposal of given points ``[N, d]``, with the posterior at each of them if there is one."""
    if estimator is None or len(estimator) == 0:
        nothing = torch.empty(0, 1, dtype=torch.float64)
        return Proposal(points, points.new_empty(0, points.shape[1]), nothing, nothing[:, :, None])
    distances = torch.stack([estimator.distances_to(point) for point in points])
    means = torch.stack(list(map(estimator.mean, points, distances)))
    return Proposal(points, means, estimator.variances(distances), distances)


def can_look_ahead(estimator: GradientEstimator, options: OptExOptions) -> bool:
    """Whether there is enough to predict points from: two distinct points, or for ``"refine"`` one.

    One point says nothing of how the gradient changes; along it one may look, as ``"refine"`` does, but not go.
    """
    return estimator.ready or (options.selection == "refine" and len(estimator) > 0)


@torch.no_grad()
def propose(base: FlatBase, estimator: GradientEstimator | None, options: OptExOptions) -> Proposal:
    """The points of the next evaluation: base steps with posterior means, taken back afterwards.

    θ₀ is the iterate; θᵢ is ``stride`` base steps from θᵢ₋₁, each with the posterior mean where it starts, the state of
    the base carried along (Algorithm 1, lines 3–5, where ``stride`` is 1). ``base`` is left as it was.
    """
    N, stride = options.parallelism, options.stride
    if N == 1 or estimator is None or not can_look_ahead(estimator, options):
        return predict_here(base.point().repeat(N, 1), None)
    distances = []
    last = (N - 1) * stride
    # Filled row by row: lists would have to be copied. Before the walk: what that leaves is then one piece.
    estimates = estimator.new_means(last)
    points = estimates.new_empty(N, estimates.shape[1], dtype=base.parameters[0].dtype)
    with base.trial_walk() as walker:
        for step in range(last + 1):
            here = walker.point()
            known = estimator.distances_to(here)
            if step % stride == 0:
                points[step // stride] = here
                distances.append(known)
            if step < last:
                walker.step(estimator.mean(here, known, out=estimates[step]), estimator.mean)
    known = torch.stack(distances)
    return Proposal(points, estimates, estimator.variances(known), known)


def unpredicted_step(walker: Walker, gradient: Tensor) -> None:
    """One base step with ``gradient [d]``, which stands for the gradient nearby too: nothing better is known."""
    walker.step(gradient, lambda _: gradient)


def follow(walker: Walker, estimator: GradientEstimator, steps: int, distances: Tensor | None = None) -> None:
    """``steps`` base steps, each with the posterior mean at the point where it starts.

    ``distances [B, T]`` are those of the first of these points to the history, if they are known.
    """
    (mean,) = estimator.new_means(1)  # one for all steps: fresh memory costs more than what is computed into it
    for step in range(steps):
        estimator.mean(walker.point(), distances if step == 0 else None, out=mean)
        walker.step(mean, estimator.mean)


def chosen_point(selection: str, gradients: Tensor, losses: Tensor | None, maximize: bool = False) -> int:
    """Index of the point from which ``"last"``, ``"loss"`` or ``"grad_norm"`` step (paper, Sec. 4.3 and Fig. 6).

    Args:
        selection: one of the three.
        gradients: true gradients, ``[N, d]``.
        losses: ``[N]``; needed by ``"loss"``.
        maximize: whether the base ascends: then ``"loss"`` is the greatest one.
    """
    if selection == "last":
        return len(gradients) - 1
    if selection == "grad_norm":
        return int(gradients.norm(dim=1).argmin())
    assert losses is not None, "check_evaluations has seen to it"
    return int(losses.argmax() if maximize else losses.argmin())


@torch.no_grad()
def select(
    walker: Walker,
    estimator: GradientEstimator,
    proposal: Proposal,
    told: Evaluations,
    best: int | None,
    options: OptExOptions,
    distances: Tensor | None = None,
) -> int:
    """Move ``walker`` from the iterate to the next one; returns how many base steps lie between them.

    Args:
        walker: the base at the iterate, with the state that belongs to it.
        estimator: its history holds the new pairs.
        proposal: what was evaluated; of its points only the chosen one is left.
        told: the evaluations there.
        best: which of them was chosen by `chosen_point`; None to refine.
        options: N and stride.
        distances: of the iterate to the history, ``[B, T]``, if they are known.
    """
    if proposal.cold or not estimator.ready:
        unpredicted_step(walker, told.gradients.mean(0))
        return 1
    if best is None:
        steps = options.parallelism * options.stride
        follow(walker, estimator, steps, distances)
        return steps
    chosen = told.rows[best]
    # The same base steps again bring the state that belongs to the chosen point; no copy of it was kept.
    for estimate in proposal.estimates[: chosen * options.stride]:
        walker.step(estimate, estimator.mean)
    walker.move_to(proposal.points[0])  # where it was evaluated, should the learning rate have changed since
    walker.step(told.gradients[best], estimator.mean)
    return chosen * options.stride + 1
