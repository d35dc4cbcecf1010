"""The history of (parameters, gradient) pairs: a ring buffer, and what is derived from it pair by pair.

Axes: ``d`` parameters, ``T`` pairs in the history (at most ``T0 = history_size``), ``B`` blocks of parameters, ``n``
new pairs. What has ``d`` entries lives on the parameters' device in their precision; everything ``T × T`` is
``float64`` on the CPU, where it is small, exact, and no device lacks the type.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .distances import inner_products, scratch_for, squared_distances
from .errors import ConfigError


def ring_slices(first: int, n: int, size: int) -> list[tuple[slice, slice]]:
    """Where ``n`` rows go in a ring of ``size`` from slot ``first`` on: (slots, rows), twice if they come round."""
    ahead = min(n, size - first)
    pieces = [(slice(first, first + ahead), slice(0, ahead))]
    return pieces if ahead == n else [*pieces, (slice(0, n - ahead), slice(ahead, n))]


class History:
    """The last ``history_size`` pairs of parameters and gradient, in a ring buffer.

    Matrices of distances between points and of inner products between gradients are kept beside it: a new pair
    rewrites one row of each, and what is computed from them costs nothing of size ``d``.

    Args:
        dim: number of parameters ``d``.
        history_size: pairs kept, ``T0``.
        block_sizes: sizes of consecutive blocks of parameters whose distances are kept apart; one block by default.
        dtype: precision of the history; ``float32`` or ``float64``.
        device: where the history lives.

    Raises:
        ConfigError: an argument is outside what is allowed.
    """

    def __init__(
        self,
        dim: int,
        history_size: int,
        block_sizes: Sequence[int] | None,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        sizes = [dim] if block_sizes is None else list(block_sizes)
        if dim < 1 or min(sizes, default=0) < 1 or sum(sizes) != dim:
            raise ConfigError(f"block_sizes must be positive and sum to dim = {dim}, got {sizes}")
        if dtype not in (torch.float32, torch.float64):
            raise ConfigError(f"the history is kept in float32 or float64, not in {dtype}")
        ends = torch.tensor(sizes).cumsum(0).tolist()
        self.blocks: list[tuple[int, int]] = [(end - size, end) for size, end in zip(sizes, ends, strict=True)]
        self._points = torch.zeros(history_size, dim, dtype=dtype, device=device)
        self._gradients = torch.zeros_like(self._points)
        self._scratch = scratch_for(self._points)
        self._distances = torch.zeros(len(sizes), history_size, history_size, dtype=torch.float64)
        self._gram = torch.zeros_like(self._distances)
        self._count = self._slot = 0  # changed by every insertion
        self._changed = True  # since somebody derived something from the history

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
        return bool(self._distances.any())

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
        pieces = ring_slices((total - stay) % size, stay, size)
        points, gradients = points[-stay:].to(self._points), gradients[-stay:].to(self._points)
        for slots, new in pieces:  # by slices: rows picked by an index take two to three times as long
            self._points[slots], self._gradients[slots] = points[new], gradients[new]
        rows = self._rows(points, pieces, known, None if distances is None else distances[-stay:])
        history = self._gradients[: self._count]
        products = torch.stack([inner_products(gradients, history, *block) for block in self.blocks])
        for matrices, block_rows in ((self._distances, rows.transpose(0, 1)), (self._gram, products)):  # [B, n, T]
            for slots, new in pieces:
                matrices[:, slots, : self._count] = block_rows[:, new]
                matrices[:, : self._count, slots] = block_rows[:, new].transpose(1, 2)
        self._changed = True
        return rows

    def _check_pairs(self, points: Tensor, gradients: Tensor) -> None:
        if points.ndim != 2 or points.shape != gradients.shape or points.shape[1] != self.dim:
            shapes = f"{list(points.shape)} and {list(gradients.shape)}"
            raise ConfigError(f"points and gradients must both be [n, {self.dim}], got {shapes}")

    def _rows(self, points: Tensor, pieces: list[tuple[slice, slice]], known: int, distances: Tensor | None) -> Tensor:
        """Distances ``[n, B, T]`` of new points to the history, of which ``distances`` are those before they came."""
        if distances is None:
            return torch.stack([self.distances_to(point) for point in points])
        rows = torch.zeros(len(points), len(self.blocks), self._count, dtype=torch.float64)
        rows[:, :, :known] = distances
        among = self._distances_among(points)
        for slots, new in pieces:
            rows[:, :, slots] = among[:, :, new]
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
    def distances_to(self, point: Tensor) -> Tensor:
        """Distances of ``point [d]`` to the points of the history in each block, ``[B, T]``."""
        point, points = point.to(self._points), self._points[: self._count]
        squares = [squared_distances(point, points, *block, scratch=self._scratch) for block in self.blocks]
        return torch.stack(squares).sqrt_()

    def reset(self) -> None:
        """Forget the history."""
        self._count = self._slot = 0
        self._distances.zero_()
        self._changed = True

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
