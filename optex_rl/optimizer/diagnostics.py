"""Diagnostics of a sequential iteration: how good its predictions were, as numbers for a log.

Axes: ``N`` points, ``d`` parameters, ``B`` blocks.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .estimator.gp import Predictor


def mean_cosines(a: Tensor, b: Tensor, sizes: list[int]) -> list[float]:
    """Mean cosine between the rows of two matrices ``[N, d]``: over all columns, then over each block of columns.

    Args:
        a: ``[N, d]``.
        b: ``[N, d]``.
        sizes: of the blocks, which are consecutive and make up ``d``.
    """
    blocks = list(zip(torch.split(a, sizes, dim=1), torch.split(b.to(a), sizes, dim=1), strict=True))
    # Row by row: all rows at once would need memory for their products.
    dots = torch.stack([torch.stack([torch.dot(x, y) for x, y in zip(*pair, strict=True)]) for pair in blocks])
    norms = [torch.stack([torch.linalg.vector_norm(pair[i], dim=1) for pair in blocks]) for i in (0, 1)]
    # Over all columns dots add up, and so do the squares of norms; a zero vector has the cosine 0.
    dots = torch.cat([dots.sum(0, keepdim=True), dots])
    norms = [torch.cat([torch.linalg.vector_norm(norm, dim=0, keepdim=True), norm]) for norm in norms]
    tiny = torch.finfo(dots.dtype).tiny
    cosines: list[float] = (dots / norms[0].clamp_min(tiny) / norms[1].clamp_min(tiny)).mean(1).tolist()
    return cosines


def iteration_statistics(
    cosines: list[float], variances: Tensor, estimator: Predictor, groups: list[dict[str, Any]]
) -> dict[str, float]:
    """The diagnostics of an iteration by name.

    Args:
        cosines: between predictions and true gradients, from `mean_cosines` over the groups; empty if there were none.
        variances: posterior variances at the points, ``[N, B]``.
        estimator: gives its fitted hyperparameters.
        groups: parameter groups; several get a cosine each.
    """
    names = [str(group.get("name", number)) for number, group in enumerate(groups)]
    tags = ["cosine"] if len(groups) == 1 else ["cosine", *(f"cosine/{name}" for name in names)]
    statistics = dict(zip(tags, cosines, strict=False))
    figures = {**estimator.hyperparameters(), "variance": variances.mean(0)}
    values = {name: blocks.tolist() for name, blocks in figures.items()}
    for key, blocks in values.items():
        tags = [key] if len(blocks) == 1 else [f"{key}/{name}" for name in names]
        # A length scale is infinite where only one point is known: a figure that plots and JSON cannot hold.
        statistics |= {tag: value for tag, value in zip(tags, blocks, strict=True) if value != math.inf}
    return statistics
