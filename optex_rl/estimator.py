"""The Gaussian-process estimate of a gradient from the history of (parameters, gradient) pairs.

Axes: ``d`` parameters, ``T`` pairs in the history (at most ``T0 = history_size``), ``B`` blocks of parameters, ``n``
new pairs. What has ``d`` entries lives on the parameters' device in their precision; everything ``T × T`` is
``float64`` on the CPU, where it is small, exact, and no device lacks the type.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from numbers import Real
from typing import Any, Final

import torch
from torch import Tensor

from .errors import ConfigError
from .kernels import KERNELS, evidence_loss, median_distance, safe_cholesky

CHUNK: Final = 8192  # columns summed in the history's precision before float64 takes over
LENGTHSCALE_GRID: Final = 2.0 ** torch.linspace(-2.0, 4.0, 13, dtype=torch.float64)  # times the median distance
NOISE_GRID: Final = 10.0 ** torch.linspace(-6.0, 1.0, 15, dtype=torch.float64)


def _column_chunks(start: int, stop: int) -> Iterator[slice]:
    """Slices of at most ``CHUNK`` columns that cover ``[start, stop)``."""
    return (slice(first, min(first + CHUNK, stop)) for first in range(start, stop, CHUNK))


def _sum_chunks(parts: list[Tensor]) -> Tensor:
    """Sum of per-chunk results in ``float64`` on the CPU: one transfer, whatever the number of chunks."""
    return torch.stack(parts).to("cpu", torch.float64).sum(0)


def squared_distances(point: Tensor, points: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
    """Squared Euclidean distances of one point to several, over the columns ``[start, stop)``.

    Neighbouring iterates differ by 1e-4 … 1e-2 of their norm, where ``‖x‖² − 2xᵀy + ‖y‖²`` cancels to nothing in
    ``float32``. So the differences are squared directly, chunk by chunk, and the chunks are summed in ``float64``.

    Args:
        point: ``[d]``.
        points: ``[T, d]``.
        start: first column.
        stop: one past the last column; all by default.

    Returns:
        ``[T]``, ``float64``, on the CPU.
    """
    columns = _column_chunks(start, point.numel() if stop is None else stop)
    return _sum_chunks([(points[:, c] - point[c]).square_().sum(1) for c in columns])


def inner_products(vector: Tensor, vectors: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
    """Inner products of ``vector [d]`` with ``vectors [T, d]`` over the columns ``[start, stop)``.

    Returns:
        ``[T]``, ``float64``, on the CPU, summed as in `squared_distances`.
    """
    columns = _column_chunks(start, vector.numel() if stop is None else stop)
    return _sum_chunks([vectors[:, c] @ vector[c] for c in columns])


class GradientEstimator:
    """Posterior mean and variance of a gradient, given noisy gradients at other points.

    With a separable kernel ``k·I`` and the gradients as rows of ``G`` (Shu et al., 2024, arXiv 2402.11427, Prop. 4.1):

        μ(θ) = k(θ)ᵀ (K + σ²I)⁻¹ G          v(θ) = k(θ, θ) − k(θ)ᵀ (K + σ²I)⁻¹ k(θ)

    The history is a ring buffer of the last ``history_size`` pairs. Matrices of distances between points and of inner
    products between gradients are kept beside it: a new pair rewrites one row of each, and choosing hyper-parameters
    costs nothing of size ``d``. Deviations from the paper: length scale and noise are chosen by evidence instead of
    being fixed, and every block of parameters may have a posterior of its own.

    Args:
        dim: number of parameters ``d``.
        history_size: pairs kept, ``T0``; at least 2.
        kernel: ``"matern52"``, ``"matern32"``, ``"matern12"`` or ``"rbf"``.
        lengthscale: a positive number (in parameter space), ``"median"`` of the distances, or ``"auto"`` by evidence.
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
        history_size: int = 40,
        kernel: str = "matern52",
        lengthscale: float | str = "auto",
        noise: float | str = "auto",
        block_sizes: Sequence[int] | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        validate_estimator_options(history_size, kernel, lengthscale, noise)
        sizes = [dim] if block_sizes is None else list(block_sizes)
        if dim < 1 or min(sizes, default=0) < 1 or sum(sizes) != dim:
            raise ConfigError(f"block_sizes must be positive and sum to dim = {dim}, got {sizes}")
        if dtype not in (torch.float32, torch.float64):
            raise ConfigError(f"the history is kept in float32 or float64, not in {dtype}")
        ends = torch.tensor(sizes).cumsum(0).tolist()
        self.blocks: list[tuple[int, int]] = [(end - size, end) for size, end in zip(sizes, ends, strict=True)]
        self.kernel = kernel
        self._fixed_lengthscale = lengthscale
        self._fixed_noise = noise
        B = len(self.blocks)
        self._points = torch.zeros(history_size, dim, dtype=dtype, device=device)
        self._gradients = torch.zeros_like(self._points)
        self._distances = torch.zeros(B, history_size, history_size, dtype=torch.float64)
        self._gram = torch.zeros_like(self._distances)
        # Changed by every insertion:
        self._count = 0
        self._slot = 0
        # Derived from the history by `fit`, which every insertion makes due again:
        self._factor: Tensor | None = None
        self.lengthscale = torch.ones(B, dtype=torch.float64)
        self.noise = torch.zeros(B, dtype=torch.float64)

    def __len__(self) -> int:
        """Number of pairs in the history."""
        return self._count

    @property
    def history_size(self) -> int:
        """Most pairs kept, ``T0``."""
        return self._points.shape[0]

    @property
    def dim(self) -> int:
        """Number of parameters ``d``."""
        return self._points.shape[1]

    @property
    def ready(self) -> bool:
        """Whether the history holds at least two distinct points: with fewer there is nothing to fit."""
        return bool((self._distances > 0).any())

    @torch.no_grad()
    def insert(self, points: Tensor, gradients: Tensor) -> None:
        """Add pairs to the history; beyond ``history_size`` the oldest go first.

        Args:
            points: ``[n, d]``.
            gradients: true gradients at ``points``, ``[n, d]``.

        Raises:
            ConfigError: the shapes are not ``[n, d]``.
        """
        if points.ndim != 2 or points.shape != gradients.shape or points.shape[1] != self.dim:
            shapes = f"{list(points.shape)} and {list(gradients.shape)}"
            raise ConfigError(f"points and gradients must both be [n, {self.dim}], got {shapes}")
        for point, gradient in zip(points, gradients, strict=True):
            slot = self._slot
            self._points[slot] = point
            self._gradients[slot] = gradient
            self._slot = (slot + 1) % self.history_size
            self._count = T = min(self._count + 1, self.history_size)
            for b, (start, stop) in enumerate(self.blocks):
                row = squared_distances(self._points[slot], self._points[:T], start, stop).sqrt_()
                self._distances[b, slot, :T] = self._distances[b, :T, slot] = row
                row = inner_products(self._gradients[slot], self._gradients[:T], start, stop)
                self._gram[b, slot, :T] = self._gram[b, :T, slot] = row
        self._factor = None

    @torch.no_grad()
    def fit(self) -> None:
        """Choose length scale and noise of each block for the present history and factorise its kernel matrix.

        Called by `predict` when it is due; the result is a function of the history alone.

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
            matrix.diagonal().add_(noise)
            factors.append(safe_cholesky(matrix))
        self._factor = torch.stack(factors)

    def _choose(self, distances: Tensor, gram: Tensor) -> tuple[float, float]:
        """Length scale and noise for one block: those given, the median of distances, or the best by evidence."""
        lengthscale, noise = self._fixed_lengthscale, self._fixed_noise
        # A block that never moved has only zero distances: any length scale gives the mean of its gradients.
        median = median_distance(distances) or 1.0
        if lengthscale == "auto":
            lengthscales = LENGTHSCALE_GRID * median
        else:
            lengthscales = torch.tensor([median if lengthscale == "median" else lengthscale], dtype=torch.float64)
        noises = NOISE_GRID if noise == "auto" else torch.tensor([noise], dtype=torch.float64)
        if lengthscales.numel() * noises.numel() == 1:
            return float(lengthscales), float(noises)
        # Fixed noise may be zero, which the evidence of repeated points cannot bear.
        floor = noises.clamp_min(float(NOISE_GRID[0]))
        loss = evidence_loss(KERNELS[self.kernel](distances / lengthscales[:, None, None]), floor, gram)
        best_lengthscale, best_noise = divmod(int(loss.argmin()), noises.numel())
        return float(lengthscales[best_lengthscale]), float(noises[best_noise])

    @torch.no_grad()
    def predict(self, point: Tensor) -> tuple[Tensor, Tensor]:
        """Posterior mean of the gradient at ``point [d]`` and its variance.

        Returns:
            The mean ``[d]``, and the variance of each block ``[B]`` in units of the kernel's amplitude: 0 (known) to
            1 (nothing known).

        Raises:
            ConfigError: the history is empty.
        """
        if self._count == 0:
            raise ConfigError("the history is empty: insert at least one gradient before predicting")
        if self._factor is None:
            self.fit()
        assert self._factor is not None
        T = self._count
        mean = torch.empty_like(self._points[0])
        variance = torch.empty(len(self.blocks), dtype=torch.float64)
        for b, (start, stop) in enumerate(self.blocks):
            distances = squared_distances(point.to(mean), self._points[:T], start, stop).sqrt_()
            k = KERNELS[self.kernel](distances / self.lengthscale[b])
            weights = torch.cholesky_solve(k[:, None], self._factor[b])[:, 0]
            torch.mv(self._gradients[:T, start:stop].T, weights.to(mean), out=mean[start:stop])
            variance[b] = (1.0 - k @ weights).clamp_min(0.0)
        return mean, variance

    def reset(self) -> None:
        """Forget the history."""
        self._count = self._slot = 0
        self._distances.zero_()
        self._factor = None

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move the history to another device or precision."""
        self._points = self._points.to(device, dtype)
        self._gradients = self._gradients.to(device, dtype)

    def state_dict(self) -> dict[str, Any]:
        """Copy of the history, as plain values and tensors that ``torch.load(weights_only=True)`` accepts."""
        T = self._count
        return {
            "points": self._points[:T].clone(),
            "gradients": self._gradients[:T].clone(),
            "distances": self._distances[:, :T, :T].clone(),
            "gram": self._gram[:, :T, :T].clone(),
            "slot": self._slot,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a history made by `state_dict`, converted to this device and precision.

        A history longer than ``history_size``, or one kept with other blocks, is inserted anew, the oldest pair first.

        Raises:
            RuntimeError: the history is for another number of parameters.
        """
        points, gradients, slot = state["points"], state["gradients"], int(state["slot"])
        T = points.shape[0]
        if points.ndim != 2 or points.shape[1] != self.dim or gradients.shape != points.shape:
            raise RuntimeError(f"the history is for {list(points.shape)[-1]} parameters, this optimizer has {self.dim}")
        self.reset()
        same_ring = slot == (T if T < self.history_size else slot % self.history_size)
        if same_ring and T <= self.history_size and state["distances"].shape[0] == len(self.blocks):
            self._points[:T], self._gradients[:T] = points, gradients
            self._distances[:, :T, :T], self._gram[:, :T, :T] = state["distances"], state["gram"]
            self._count, self._slot = T, slot
        else:
            order = torch.arange(slot, slot + T) % max(T, 1)
            self.insert(points[order].to(self._points), gradients[order].to(self._points))


def validate_estimator_options(history_size: int, kernel: str, lengthscale: float | str, noise: float | str) -> None:
    """Check the options of a `GradientEstimator`.

    Raises:
        ConfigError: naming the first option that is outside what is allowed.
    """
    if history_size < 2:
        raise ConfigError(f"history_size must be at least 2, got {history_size}")
    if kernel not in KERNELS:
        raise ConfigError(f"kernel must be one of {', '.join(KERNELS)}, got {kernel!r}")
    if lengthscale not in ("auto", "median") and not (_is_finite(lengthscale) and float(lengthscale) > 0.0):
        raise ConfigError(f"lengthscale must be a positive number, 'auto' or 'median', got {lengthscale!r}")
    if noise != "auto" and not (_is_finite(noise) and float(noise) >= 0.0):
        raise ConfigError(f"noise must be a number of at least 0, or 'auto', got {noise!r}")


def _is_finite(value: object) -> bool:
    return isinstance(value, Real) and math.isfinite(value)
