"""Predictors of the gradient at a proxy point: the posterior, and two trivial baselines."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from .gp import GradientEstimator, Predictor


class _TrivialPredictor(Predictor):
    """A history whose prediction is the same everywhere, of variance 1 (nothing known), without anything to fit."""

    @abstractmethod
    def _gradient(self, out: Tensor) -> None:
        """Put the prediction into ``out [d]``."""

    @torch.no_grad()
    def mean(self, point: Tensor, distances: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        """The prediction ``[d]``, the same at every ``point``, or that often ``[n, d]``."""
        mean = self._gradients.new_empty(point.shape) if out is None else out
        rows = mean.view(-1, self.dim)
        self._gradient(rows[0])
        rows[1:] = rows[0]
        return mean

    def variances(self, distances: Tensor) -> Tensor:
        """Variances ``[N, B]`` of 1."""
        return torch.ones(distances.shape[:2], dtype=torch.float64)


class MeanGradient(_TrivialPredictor):
    """The mean of the gradients in the history: it averages their noise, and ignores where they were evaluated."""

    def _gradient(self, out: Tensor) -> None:
        torch.mean(self._gradients[: len(self)], 0, out=out)


class LastGradient(_TrivialPredictor):
    """The gradient inserted last: N steps along one true gradient."""

    def _gradient(self, out: Tensor) -> None:
        out.copy_(self._gradients[self._slot - 1])  # slot −1 is the last of a ring that has just come round


PREDICTORS: Final[dict[str, Callable[..., Predictor]]] = {
    "posterior": GradientEstimator,
    "mean": MeanGradient,
    "last": LastGradient,
}
