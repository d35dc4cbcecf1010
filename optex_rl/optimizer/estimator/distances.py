"""Distances and inner products of long vectors, exact enough for points that nearly coincide.

Axes: ``d`` parameters, ``T`` vectors or points of a path, ``B`` blocks of parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

CHUNK: Final = 16384  # columns summed in the vectors' own precision before float64 takes over
RETURN: Final = 2e-3  # least squared distance in units of the squared path, whose rounding error is 4e-7


def column_chunks(start: int, stop: int) -> list[slice]:
    """Slices of at most ``CHUNK`` columns that cover ``[start, stop)``."""
    return [slice(first, min(first + CHUNK, stop)) for first in range(start, stop, CHUNK)]


def offset_products(
    points: Tensor, newest: Tensor, after: Sequence[int], steps: Tensor, columns: Sequence[slice]
) -> tuple[Tensor, Tensor]:
    """Inner products of offsets ``u = θ − θᵣ`` from one point of a path with the path's steps, and their squares.

    Args:
        points: each θ, ``[n, d]``.
        newest: the newest point of the path, ``[d]``.
        after: which of ``steps`` led from θᵣ to the newest point, the newest step first.
        steps: ``[T, d]``; read once, and nothing of their size is written.
        columns: which of them count, from `column_chunks`.

    Returns:
        ``[n, T]`` and ``[n]``; ``float64``, on the CPU, the sums over chunks in that precision.
    """
    n, T = len(points), len(steps)
    sums, room = steps.new_empty(len(columns), n, T + n), steps.new_empty(n, columns[0].stop - columns[0].start)
    for c, rows in zip(columns, sums, strict=True):
        offsets = torch.sub(points[:, c], newest[c], out=room[:, : c.stop - c.start])
        for step in after:
            offsets += steps[step, c]
        torch.mm(offsets, steps[:, c].T, out=rows[:, :T])
        torch.mm(offsets, offsets.T, out=rows[:, T:])
    total = sums.cpu().double().sum(0)
    return total[:, :T], total[:, T:].diagonal()


def path_distances(products: Tensor, newer: Tensor) -> Tensor:
    """Squared distances between the points of a path from the inner products of its steps ``sₖ = θₖ − θₖ₋₁``.

    With ``cᵢ = Σ sₖ`` over the steps after θᵢ, ``‖θᵢ − θⱼ‖² = ‖cᵢ‖² − 2 cᵢᵀcⱼ + ‖cⱼ‖²``, all of it in ``float64``.

    Args:
        products: ``sₖᵀsₗ``, ``[B, T, T]``; those of the oldest point's step do not count.
        newer: 1 where point ``k`` is newer than point ``i``, else 0, ``[i, k]`` of ``[T, T]``.

    Returns:
        ``[B, T, T]``, at least 0, and 0 between a point and itself.
    """
    sums = newer @ products @ newer.T
    squares = sums.diagonal(dim1=1, dim2=2)
    return (squares[:, :, None] - 2.0 * sums + squares[:, None]).clamp_min_(0.0)


def squared_distances_along(products: Tensor, square: Tensor, newer: Tensor, squares: Tensor, r: int) -> Tensor:
    """Squared distances of points θ to the points of a path that is kept as its steps ``sₖ = θₖ − θₖ₋₁``.

    With the offset ``u = θ − θᵣ`` from any point of the path, and ``Cᵢ = Σ uᵀsₖ`` over the steps after θᵢ,

        ‖θ − θᵢ‖² = ‖u + θᵣ − θᵢ‖² = ‖θᵣ − θᵢ‖² + ‖u‖² + 2 (Cᵢ − Cᵣ)

    Steps are as short as the distances, so rounding errors count in units of ``‖u‖`` and of the path from θᵣ to θᵢ, not
    of ``‖θ‖``, as in the usual expansion of the square.

    Args:
        products: ``uᵀsₖ``, ``[n, B, T]``.
        square: ``‖u‖²``, ``[n, B, 1]``.
        newer: 1 where point ``k`` is newer than point ``i``, else 0, ``[i, k]`` of ``[T, T]``.
        squares: ``‖θᵣ − θᵢ‖²``, ``[B, T]``.
        r: the point where ``u`` begins.

    Returns:
        ``[n, B, T]``, at least 0.
    """
    known = (squares + square).flatten(0, 1)
    summed = torch.addmm(known, products.flatten(0, 1), (newer - newer[r]).T, alpha=2.0)
    return summed.clamp_min_(0.0).view_as(products)


def comes_back(squared: Tensor, square: Tensor, lengths: Tensor) -> Tensor:
    """Whether θ is so near to a point of the path, other than θᵣ, that rounding errors dominate the distance.

    Args:
        squared: from `squared_distances_along`, ``[n, B, T]``.
        square: ``‖u‖²``, ``[n, B, 1]``.
        lengths: squared length of the path between θᵣ and each of its points, ``[B, T]``.

    Returns:
        ``[n]``.
    """
    return (squared < RETURN * (lengths + square)).flatten(1).any(1)


def inner_products(rows: Tensor, vectors: Tensor, columns: Sequence[slice]) -> Tensor:
    """Inner products of ``rows [n, d]`` with ``vectors [T, d]`` over the columns that `column_chunks` has cut.

    Returns:
        ``[n, T]``, ``float64``, on the CPU, likewise as in `offset_products`.
    """
    parts = torch.stack([rows[:, c] @ vectors[:, c].T for c in columns])
    return parts.cpu().double().sum(0)  # one transfer, and in this order: not every device has float64
