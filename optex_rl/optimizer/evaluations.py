"""The evaluations of an iteration's points, checked before anything uses them.

Axes: ``N`` points, ``n`` of them usable, ``d`` parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..common.errors import ConfigError, NonFiniteError
from .selection import SELECTIONS


@dataclass(frozen=True)
class Evaluations:
    """The evaluations of a proposal at its usable points.

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
        ConfigError: a result is not a single number.
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
        The evaluations to use: those in the mask ``usable [N]``, or all.

    Raises:
        ConfigError: ``gradients`` are not ``[N, d]``, or ``losses`` not ``[N]``, or missing where they are needed, or
            ``usable`` is no mask ``[N]``.
        NonFiniteError: a gradient or a loss that is to be used is NaN or infinite, or no point is usable.
    """
    if gradients.shape != points.shape:
        raise ConfigError(f"gradients must be [N, d] = {list(points.shape)}, got {list(gradients.shape)}")
    if losses is None and SELECTIONS[selection].needs_losses:
        raise ConfigError(f"selection {selection!r} needs the losses: call tell(gradients, losses) or step(closure)")
    if losses is not None and losses.shape != points.shape[:1]:
        raise ConfigError(f"losses must be [N] = {list(points.shape[:1])}, got {list(losses.shape)}")
    rows = list(range(len(points)))
    if usable is not None:
        if usable.shape != points.shape[:1] or usable.dtype != torch.bool:
            shape, kind = list(usable.shape), usable.dtype
            raise ConfigError(f"usable must be a mask [N] = {list(points.shape[:1])} of bool, got {shape} of {kind}")
        rows = usable.nonzero().flatten().tolist()
        if not rows:
            raise NonFiniteError(f"none of the {len(points)} points is usable; the optimizer is unchanged")
        gradients, losses = gradients[rows], None if losses is None else losses[rows]
    check_finite(gradients, losses)
    return Evaluations(rows, gradients.detach().to(points), losses)
