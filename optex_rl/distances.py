"""Distances and inner products of long vectors, exact enough for points that nearly coincide.

Axes: ``d`` parameters, ``T`` vectors.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import torch
from torch import Tensor

_NOT_REDUCED: Final = 0  # of ATen's reductions
CHUNK: Final = 32768  # columns summed in the vectors' own precision before float64 takes over


def _column_chunks(start: int, stop: int) -> Iterator[slice]:
    """Slices of at most ``CHUNK`` columns that cover ``[start, stop)``."""
    return (slice(first, min(first + CHUNK, stop)) for first in range(start, stop, CHUNK))


def _sum_chunks(parts: list[Tensor]) -> Tensor:
    """Sum of per-chunk results in ``float64`` on the CPU: one transfer, whatever the number of chunks."""
    if len(parts) == 1:
        return parts[0].cpu().double()  # in this order: not every device has float64
    return torch.stack(parts).cpu().double().sum(0)


def scratch_for(vectors: Tensor) -> Tensor:
    """Room for one chunk of ``vectors [T, d]``: kept, it saves an allocation that costs as much as the arithmetic."""
    return vectors.new_empty(vectors.shape[0] * min(vectors.shape[1], CHUNK))


def squared_distances(
    point: Tensor, points: Tensor, start: int = 0, stop: int | None = None, scratch: Tensor | None = None
) -> Tensor:
    """Squared Euclidean distances of one point to several, over the columns ``[start, stop)``.

    Neighbouring iterates differ by 1e-4 … 1e-2 of their norm, where ``‖x‖² − 2xᵀy + ‖y‖²`` cancels to nothing in
    ``float32``. So the differences are squared directly, chunk by chunk, and the chunks are summed in ``float64``.

    Args:
        point: ``[d]``.
        points: ``[T, d]``.
        start: first column.
        stop: one past the last column; all by default.
        scratch: from `scratch_for` these points or more; overwritten.

    Returns:
        ``[T]``, ``float64``, on the CPU.
    """
    scratch = scratch_for(points) if scratch is None else scratch
    sums = []
    for c in _column_chunks(start, point.numel() if stop is None else stop):
        columns = points[:, c]
        squares = scratch[: columns.numel()].view(columns.shape)
        # The loss of regression, not reduced, squares differences without writing them first.
        torch.ops.aten.mse_loss.out(columns, point[c].expand_as(columns), _NOT_REDUCED, out=squares)
        sums.append(squares.sum(1))
    return _sum_chunks(sums)


def inner_products(rows: Tensor, vectors: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
    """Inner products of ``rows [n, d]`` with ``vectors [T, d]`` over the columns ``[start, stop)``.

    Returns:
        ``[n, T]``, ``float64``, on the CPU, summed as in `squared_distances`.
    """
    columns = _column_chunks(start, rows.shape[1] if stop is None else stop)
    return _sum_chunks([rows[:, c] @ vectors[:, c].T for c in columns])
