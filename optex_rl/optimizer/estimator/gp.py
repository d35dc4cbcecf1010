"""Prediction of a gradient from the history of (parameters, gradient) pairs by a Gaussian process.

Axes: ``d`` parameters, ``T`` pairs in the history, ``B`` blocks of parameters, ``N`` points.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from ...common.errors import ConfigError
from .history import History
from .kernels import KERNELS, evidence_loss, median_distance, safe_cholesky
from .options import HISTORY_SIZE, KERNEL, LENGTHSCALE, NOISE, validate_estimator_options

LENGTHSCALE_GRID: Final = 2.0 ** torch.arange(-2.0, 5.0, dtype=torch.float64)  # times the median distance
NOISE_GRID: Final = 10.0 ** torch.linspace(-6.0, 1.0, 15, dtype=torch.float64)


class Predictor(History, ABC):
    """A history that predicts the gradient at points where it was not evaluated."""

    @abstractmethod
    def mean(self, point: Tensor, distances: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        """Predicted gradient at ``point [d]``, ``[d]``, or at each of several ``[n, d]``.

        Args:
            point: ``[d]`` or ``[n, d]``.
            distances: what `distances_to` gives for it, ``[B, T]`` or ``[n, B, T]``, if it is known already.
            out: rows of `new_means` to put the prediction into; new ones by default.

        Raises:
            ConfigError: the history is empty.
        """

    @abstractmethod
    def variances(self, distances: Tensor) -> Tensor:
        """How uncertain predictions are, from 0 (known) to 1 (nothing known).

        Args:
            distances: what `distances_to` gives for each point, ``[N, B, T]``.

        Returns:
            ``[N, B]``.

        Raises:
            ConfigError: the history is empty.
        """

    def hyperparameters(self) -> dict[str, Tensor]:
        """The hyperparameters by name, fitted to the present history, one number per block ``[B]``."""
        return {}

    def predict(self, point: Tensor) -> tuple[Tensor, Tensor]:
        """Predicted gradient at ``point [d]``, and the variance of each block ``[B]``; see `mean` and `variances`.

        Raises:
            ConfigError: the history is empty.
        """
        distances = self.distances_to(point)
        return self.mean(point, distances), self.variances(distances[None])[0]

    def new_means(self, n: int) -> Tensor:
        """An uninitialised tensor for ``n`` predictions, ``[n, d]``."""
        return self._gradients.new_empty(n, self.dim)


class GradientEstimator(Predictor):
    """Posterior mean and variance of a gradient, given noisy gradients at other points.

    With a separable kernel ``k·I`` and the gradients as rows of ``G`` (Shu et al., 2024, arXiv 2402.11427, Prop. 4.1):

        μ(θ) = k(θ)ᵀ (K + σ²I)⁻¹ G          v(θ) = k(θ, θ) − k(θ)ᵀ (K + σ²I)⁻¹ k(θ)

    Differences from the paper: length scale and noise are chosen by evidence instead of being fixed, and every block of
    parameters may have a posterior of its own.

    Args:
        dim: number of parameters ``d``.
        history_size: pairs kept, ``T0``; at least 2.
        kernel: ``"matern52"``, ``"matern32"``, ``"matern12"`` or ``"rbf"``.
        lengthscale: a positive number (in parameter space), ``"median"`` of the distances, or ``"auto"`` by evidence;
            the latter two are infinite while only one distinct point is known: the gradient is taken to be constant.
        noise: variance σ² of a gradient in units of the kernel's amplitude, not negative; or ``"auto"`` by evidence.
        block_sizes: sizes of consecutive blocks of parameters with one posterior each; one block by default.
        dtype: precision of the history; ``float32`` or ``float64``.
        device: where the history lives.

    Raises:
        ConfigError: an argument is outside what is allowed.
    """

    def __init__(
        self,
        dim: int,
        *,
        history_size: int = HISTORY_SIZE,
        kernel: str = KERNEL,
        lengthscale: float | str = LENGTHSCALE,
        noise: float | str = NOISE,
        block_sizes: Sequence[int] | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        validate_estimator_options(history_size, kernel, lengthscale, noise)
        super().__init__(dim, history_size=history_size, block_sizes=block_sizes, dtype=dtype, device=device)
        self.kernel = kernel
        self._fixed_lengthscale = lengthscale
        self._fixed_noise = noise
        B = len(self.blocks)
        # Derived from the history by `fit`:
        self.lengthscale = torch.ones(B, dtype=torch.float64)
        self.noise = torch.zeros(B, dtype=torch.float64)
        self._whitening = torch.zeros(B, 0, 0, dtype=torch.float64)  # W = L⁻¹ with LLᵀ = K + σ²I, [B, T, T]

    @torch.no_grad()
    def fit(self) -> None:
        """Choose length scale and noise of each block for the present history and whiten its kernel.

        Called by predictions when it is due; the result is a function of the history alone.

        Raises:
            NotPositiveDefiniteError: the kernel matrix cannot be factorised.
        """
        T = self._count
        factors = []
        for b in range(len(self.blocks)):
            distances, gram = self._distances[b, :T, :T], self._gram[b, :T, :T]
            lengthscale, noise = self._choose(distances, gram)
            self.lengthscale[b], self.noise[b] = lengthscale, noise
            matrix = KERNELS[self.kernel](distances / lengthscale)
            if not distances.any():
                # Copies of one point: K = 11ᵀ acts on k(θ), a multiple of 1, as T·I does, which never is singular.
                matrix = T * torch.eye(T, dtype=torch.float64)
            matrix.diagonal().add_(noise)
            factors.append(safe_cholesky(matrix))
        eye = torch.eye(T, dtype=torch.float64)
        self._whitening = torch.linalg.solve_triangular(torch.stack(factors), eye, upper=False)
        self._changed = False

    def _choose(self, distances: Tensor, gram: Tensor) -> tuple[float, float]:
        """Length scale and noise for one block: those given, the median of distances, or the best by evidence."""
        lengthscale, noise = self._fixed_lengthscale, self._fixed_noise
        # One distinct point does not say how the gradient changes: it is taken to be constant.
        median = median_distance(distances) or math.inf
        if lengthscale == "auto":
            lengthscales = LENGTHSCALE_GRID * median
        else:
            lengthscales = torch.tensor([median if lengthscale == "median" else lengthscale], dtype=torch.float64)
        noises = NOISE_GRID if noise == "auto" else torch.tensor([noise], dtype=torch.float64)
        if lengthscales.numel() * noises.numel() == 1:
            return float(lengthscales), float(noises)
        # Fixed noise may be zero, where the evidence of repeated points is not defined.
        floor = noises.clamp_min(float(NOISE_GRID[0]))
        loss = evidence_loss(KERNELS[self.kernel](distances / lengthscales[:, None, None]), floor, gram)
        best_lengthscale, best_noise = divmod(int(loss.argmin()), noises.numel())
        return float(lengthscales[best_lengthscale]), float(noises[best_noise])

    @torch.no_grad()
    def mean(self, point: Tensor, distances: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        """Posterior mean of the gradient at ``point [d]``, ``[d]``, or several; see `Predictor.mean`."""
        white = self._whitened_kernel(self.distances_to(point) if distances is None else distances)
        weights = (self._whitening.mT @ white)[..., 0]  # (K + σ²I)⁻¹ k(θ), [..., B, T]
        mean = self._gradients.new_empty(point.shape) if out is None else out
        rows, gradients = mean.view(-1, self.dim), self._gradients[: len(self)]
        weights = weights.to(mean.dtype).to(mean.device).view(-1, *weights.shape[-2:])
        for (start, stop), w in zip(self.blocks, weights.unbind(1), strict=True):
            torch.mm(w, gradients[:, start:stop], out=rows[:, start:stop])  # `mv` takes an eighth longer
        return mean

    @torch.no_grad()
    def variances(self, distances: Tensor) -> Tensor:
        """Posterior variances ``[N, B]`` in units of the kernel's amplitude; see `Predictor.variances`."""
        return (1.0 - self._whitened_kernel(distances).square().sum((-2, -1))).clamp_min(0.0)

    def hyperparameters(self) -> dict[str, Tensor]:
        """Length scale and noise of each block, ``[B]``, for the present history."""
        if self._changed:
            self.fit()
        return {"lengthscale": self.lengthscale, "noise": self.noise}

    def _whitened_kernel(self, distances: Tensor) -> Tensor:
        """W·k(θ) of points with ``distances [..., B, T]``, ``[..., B, T, 1]``; WᵀW is (K + σ²I)⁻¹."""
        if len(self) == 0:
            raise ConfigError("the history is empty: insert at least one gradient before predicting")
        if self._changed:
            self.fit()
        return self._whitening @ KERNELS[self.kernel](distances / self.lengthscale[:, None])[..., None]
