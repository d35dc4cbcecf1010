"""The Gaussian-process estimate of a gradient from the history of (parameters, gradient) pairs.

Axes: ``d`` parameters, ``T`` pairs in the history (at most ``T0 = history_size``), ``B`` blocks of parameters, ``n``
new pairs. What has ``d`` entries lives on the parameters' device in their precision; everything ``T × T`` is
``float64`` on the CPU, where it is small, exact, and no device lacks the type.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import torch
from torch import Tensor

from .distances import inner_products, scratch_for, squared_distances
from .errors import ConfigError
from .estimator_options import validate_estimator_options
from .kernels import KERNELS, evidence_loss, median_distance, safe_cholesky

LENGTHSCALE_GRID: Final = 2.0 ** torch.arange(-2.0, 5.0, dtype=torch.float64)  # times the median distance
NOISE_GRID: Final = 10.0 ** torch.linspace(-6.0, 1.0, 15, dtype=torch.float64)


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
        lengthscale: a positive number (in parameter space), ``"median"`` of the distances, or ``"auto"`` by evidence;
            the latter two are infinite while only one distinct point is known: the gradient is taken for constant.
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
        self._scratch = scratch_for(self._points)
        self._distances = torch.zeros(B, history_size, history_size, dtype=torch.float64)
        self._gram = torch.zeros_like(self._distances)
        self._count = self._slot = 0  # changed by every insertion
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
        """Whether the history holds at least two distinct points: one says nothing of how the gradient changes."""
        return bool((self._distances > 0).any())

    @torch.no_grad()
    def insert(self, points: Tensor, gradients: Tensor, distances: Tensor | None = None) -> Tensor:
        """Add pairs to the history; beyond ``history_size`` the oldest go first.

        Args:
            points: ``[n, d]``.
            gradients: true gradients at ``points``, ``[n, d]``.
            distances: what `distances_to` gave for each point since the last insertion, ``[n, B, T]``; saves reading
                the history once more.

        Returns:
            What `distances_to` gives now for each point that is in the history, ``[min(n, T0), B, T]``.

        Raises:
            ConfigError: the shapes are not ``[n, d]``.
        """
        self._check_pairs(points, gradients)
        if len(points) == 0:
            return torch.zeros(0, len(self.blocks), self._count, dtype=torch.float64)
        known, total, size = self._count, self._slot + len(points), self.history_size
        self._count, self._slot = min(known + len(points), size), total % size
        stay = min(len(points), size)  # of more, the first would be overwritten by the last
        slots = torch.arange(total - stay, total) % size
        points, gradients = points[-stay:].to(self._points), gradients[-stay:].to(self._points)
        self._points[slots], self._gradients[slots] = points, gradients
        rows = self._rows(points, slots, known, None if distances is None else distances[-stay:])
        history = self._gradients[: self._count]
        products = torch.stack([inner_products(gradients, history, *block) for block in self.blocks])
        for matrices, block_rows in ((self._distances, rows.transpose(0, 1)), (self._gram, products)):  # [B, n, T]
            matrices[:, slots, : self._count] = block_rows
            matrices[:, : self._count, slots] = block_rows.transpose(1, 2)
        self._factor = None
        return rows

    def _check_pairs(self, points: Tensor, gradients: Tensor) -> None:
        if points.ndim != 2 or points.shape != gradients.shape or points.shape[1] != self.dim:
            shapes = f"{list(points.shape)} and {list(gradients.shape)}"
            raise ConfigError(f"points and gradients must both be [n, {self.dim}], got {shapes}")

    def _rows(self, points: Tensor, slots: Tensor, known: int, distances: Tensor | None) -> Tensor:
        """Distances ``[n, B, T]`` of new points to the history, of which ``distances`` are those before they came."""
        if distances is None:
            return torch.stack([self.distances_to(point) for point in points])
        rows = torch.zeros(len(points), len(self.blocks), self._count, dtype=torch.float64)
        rows[:, :, :known] = distances
        rows[:, :, slots] = self._distances_among(points)
        return rows

    def _distances_among(self, points: Tensor) -> Tensor:
        """Distances between ``points [n, d]``, ``[n, B, n]``."""
        n, B = len(points), len(self.blocks)
        result = torch.zeros(n, B, n, dtype=torch.float64)
        for i in range(1, n):
            for b, block in enumerate(self.blocks):
                squares = squared_distances(points[i], points[:i], *block, scratch=self._scratch)
                result[i, b, :i] = result[:i, b, i] = squares.sqrt_()
        return result

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
            if not distances.any():
                # Copies of one point: K = 11ᵀ acts on k(θ), a multiple of 1, as T·I does, which never is singular.
                matrix = T * torch.eye(T, dtype=torch.float64)
            matrix.diagonal().add_(noise)
            factors.append(safe_cholesky(matrix))
        self._factor = torch.stack(factors)

    def _choose(self, distances: Tensor, gram: Tensor) -> tuple[float, float]:
        """Length scale and noise for one block: those given, the median of distances, or the best by evidence."""
        lengthscale, noise = self._fixed_lengthscale, self._fixed_noise
        # One distinct point says nothing of how the gradient changes: it is taken for constant.
        median = median_distance(distances) or math.inf
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
    def distances_to(self, point: Tensor) -> Tensor:
        """Distances of ``point [d]`` to the points of the history in each block, ``[B, T]``."""
        point, points = point.to(self._points), self._points[: self._count]
        squares = [squared_distances(point, points, *block, scratch=self._scratch) for block in self.blocks]
        return torch.stack(squares).sqrt_()

    @torch.no_grad()
    def predict(
        self, point: Tensor, distances: Tensor | None = None, out: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Posterior mean of the gradient at ``point [d]`` and its variance.

        Args:
            point: ``[d]``.
            distances: what `distances_to` gives for it, if it is known already.
            out: a row of `new_means` to put the mean into; a new one by default.

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
        distances = self.distances_to(point) if distances is None else distances
        k = KERNELS[self.kernel](distances / self.lengthscale[:, None])  # [B, T]
        weights = torch.cholesky_solve(k[:, :, None], self._factor)[:, :, 0]
        mean = self.new_means(1)[0] if out is None else out
        gradients = self._gradients[: self._count]
        for (start, stop), w in zip(self.blocks, weights.to(mean.dtype).to(mean.device), strict=True):
            torch.mv(gradients[:, start:stop].T, w, out=mean[start:stop])
        return mean, (1.0 - (k * weights).sum(1)).clamp_min(0.0)

    def new_means(self, n: int) -> Tensor:
        """Room for ``n`` posterior means, ``[n, d]``."""
        return self._gradients.new_empty(n, self.dim)

    def reset(self) -> None:
        """Forget the history."""
        self._count = self._slot = 0
        self._distances.zero_()
        self._factor = None

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move the history to another device or precision."""
        self._points = self._points.to(device, dtype)
        self._gradients = self._gradients.to(device, dtype)
        self._scratch = self._scratch.to(device, dtype)

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
