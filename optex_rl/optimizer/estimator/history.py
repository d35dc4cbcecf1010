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

from ...common.errors import ConfigError
from .distances import (
    column_chunks,
    comes_back,
    inner_products,
    offset_products,
    path_distances,
    squared_distances_along,
)
from .options import HISTORY_SIZE


def ring_slices(first: int, n: int, size: int) -> list[tuple[slice, slice]]:
    """Where ``n`` rows go in a ring of ``size`` from slot ``first`` on: (slots, rows), twice if they come round."""
    ahead = min(n, size - first)
    pieces = [(slice(first, first + ahead), slice(0, ahead))]
    return pieces if ahead == n else [*pieces, (slice(0, n - ahead), slice(ahead, n))]


def ages(T: int, slot: int) -> Tensor:
    """How many pairs came after each of ``T`` in a ring whose next slot is ``slot``; likewise, the slot of each age."""
    return (slot - 1 - torch.arange(T)) % max(T, 1)


def points_of_path(newest: Tensor, steps: Tensor) -> Tensor:
    """Points ``[T, d]`` of a path that ended at ``newest [d]`` with ``steps [T, d]``, all in order of age."""
    points = newest.repeat(len(steps), 1)
    points[1:] -= steps[:-1].cumsum(0)
    return points


class History:
    """The last ``history_size`` pairs of parameters and gradient, in a ring buffer.

    Points are kept as steps, each from the pair inserted before. Inner products between steps and between gradients are
    kept beside them: a new pair rewrites one row of each, and what is computed from them costs nothing of size ``d``.
    All distances come from the products of steps (`path_distances`): however these are rounded, they are distances of
    some points, very near to the true ones, and their kernel matrices have no negative eigenvalues beyond rounding.

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
        *,
        history_size: int = HISTORY_SIZE,
        block_sizes: Sequence[int] | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        sizes = [dim] if block_sizes is None else list(block_sizes)
        if dim < 1 or min(sizes, default=0) < 1 or sum(sizes) != dim:
            raise ConfigError(f"block_sizes must be positive and sum to dim = {dim}, got {sizes}")
        if dtype not in (torch.float32, torch.float64):
            raise ConfigError(f"the history is kept in float32 or float64, not in {dtype}")
        ends = torch.tensor(sizes).cumsum(0).tolist()
        self.blocks: list[tuple[int, int]] = [(end - size, end) for size, end in zip(sizes, ends, strict=True)]
        self._columns = [column_chunks(*block) for block in self.blocks]
        self._steps = torch.zeros(history_size, dim, dtype=dtype, device=device)
        self._newest = torch.zeros_like(self._steps[0])  # point
        self._gradients = torch.zeros_like(self._steps)
        self._step_gram = torch.zeros(len(sizes), history_size, history_size, dtype=torch.float64)
        self._gram = torch.zeros_like(self._step_gram)
        self._count = self._slot = 0  # changed by every insertion
        self._measure()
        self._changed = True  # since the last fit

    def __len__(self) -> int:
        """Number of pairs in the history."""
        return self._count

    @property
    def history_size(self) -> int:
        """Most pairs kept, ``T0``."""
        return self._steps.shape[0]

    @property
    def dim(self) -> int:
        """Number of parameters ``d``."""
        return self._steps.shape[1]

    @property
    def ready(self) -> bool:
        """Whether the history holds at least two distinct points: one does not say how the gradient changes."""
        return bool(self._distances.any())

    @torch.no_grad()
    def insert(self, points: Tensor, gradients: Tensor) -> Tensor:
        """Add pairs to the history; beyond ``history_size`` the oldest go first.

        Args:
            points: ``[n, d]``.
            gradients: true gradients at ``points``, ``[n, d]``.

        Returns:
            Distances to the history as it is now, of each point that is in it, ``[min(n, T0), B, T]``.

        Raises:
            ConfigError: the shapes are not ``[n, d]``.
        """
        if points.ndim != 2 or points.shape != gradients.shape or points.shape[1] != self.dim:
            shapes = f"{list(points.shape)} and {list(gradients.shape)}"
            raise ConfigError(f"points and gradients must both be [n, {self.dim}], got {shapes}")
        if len(points) == 0:
            return torch.zeros(0, len(self.blocks), self._count, dtype=torch.float64)
        total, size = self._slot + len(points), self.history_size
        stay = min(len(points), size)  # of more, the first would be overwritten by the last
        pieces = ring_slices((total - stay) % size, stay, size)
        points, gradients = points[-stay:].to(self._steps), gradients[-stay:].to(self._steps)
        self._step_to(points, pieces)
        self._count, self._slot = min(self._count + len(points), size), total % size
        for slots, new in pieces:  # by slices: rows picked by an index take two to three times as long
            self._gradients[slots] = gradients[new]
        for slots, _ in pieces:
            for matrices, vectors in ((self._step_gram, self._steps), (self._gram, self._gradients)):
                rows, known = vectors[slots], vectors[: self._count]
                products = torch.stack([inner_products(rows, known, columns) for columns in self._columns])
                matrices[:, slots, : self._count] = products
                matrices[:, : self._count, slots] = products.transpose(1, 2)
        self._measure()
        self._changed = True
        distances = self._distances.transpose(0, 1)
        return torch.cat([distances[slots] for slots, _ in pieces])

    def _step_to(self, points: Tensor, pieces: list[tuple[slice, slice]]) -> None:
        """Write the steps that lead to ``points [n, d]``; to the first point of all, none does."""
        before = self._newest if self._count else points[0]
        for slots, new in pieces:
            for step, point in zip(self._steps[slots], points[new], strict=True):
                torch.sub(point, before, out=step)
                before = point
        self._newest.copy_(before)

    def _measure(self) -> None:
        """Derive the distances between the points, and what else `distances_to` needs, from the products of steps."""
        T = self._count
        age = ages(T, self._slot)
        self._newest_first: list[int] = age.tolist()
        self._newer = (age < age[:, None]).double()  # [T, T]
        products = self._step_gram[:, :T, :T]
        self._squares = path_distances(products, self._newer)  # [B, T, T]
        self._distances = self._squares.sqrt()
        lengths = products.diagonal(dim1=1, dim2=2).sqrt() @ self._newer.T  # of the path to the newest point, [B, T]
        self._lengths = (lengths[:, None] - lengths[:, :, None]).square_()  # of the path between, [B, T, T]

    @torch.no_grad()
    def distances_to(self, point: Tensor, near: int = 0) -> Tensor:
        """Distances to the points of the history.

        Args:
            point: ``[d]``, or several ``[n, d]``, for which the history is read once.
            near: age of a nearby point, 0 for the newest; a bad guess costs time or rounds differently, no more.

        Returns:
            One for each block and point, ``[B, T]`` or ``[n, B, T]``.
        """
        if self._count == 0:
            return torch.zeros(*point.shape[:-1], len(self.blocks), 0, dtype=torch.float64)
        points = point.to(self._steps).reshape(-1, self.dim)
        squared, inaccurate = self._measured_from(near, points)
        for row in inaccurate.nonzero().flatten().tolist():
            nearest = int(squared[row].sum(0)[self._newest_first].argmin())
            squared[row] = self._measured_from(nearest, points[row : row + 1])[0]
        return squared.sqrt_().view(*point.shape[:-1], *squared.shape[1:])

    def _measured_from(self, age: int, points: Tensor) -> tuple[Tensor, Tensor]:
        """Squared distances ``[n, B, T]`` to ``points [n, d]`` by way of that of an age, and which are inaccurate."""
        *after, r = self._newest_first[: age + 1]
        steps = self._steps[: self._count]
        sums = [offset_products(points, self._newest, after, steps, c) for c in self._columns]
        products = torch.stack([product for product, _ in sums], dim=1)
        square = torch.stack([square for _, square in sums], dim=1)[..., None]
        squared = squared_distances_along(products, square, self._newer, self._squares[:, r], r)
        return squared, comes_back(squared, square, self._lengths[:, r])

    def points(self) -> Tensor:
        """The points of the history ``[T, d]``, in the order in which it keeps them."""
        return points_of_path(self._newest, self._steps[self._newest_first])[self._newest_first]

    def reset(self) -> None:
        """Drop all pairs."""
        self._count = self._slot = 0
        self._measure()
        self._changed = True

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move the history to another device or precision."""
        self._steps, self._newest = self._steps.to(device, dtype), self._newest.to(device, dtype)
        self._gradients = self._gradients.to(device, dtype)

    def state_dict(self) -> dict[str, Any]:
        """Copy of the history, as plain values and tensors that ``torch.load(weights_only=True)`` accepts."""
        T = self._count
        return {
            "steps": self._steps[:T].clone(),
            "newest": self._newest.clone(),
            "gradients": self._gradients[:T].clone(),
            "step_gram": self._step_gram[:, :T, :T].clone(),
            "gram": self._gram[:, :T, :T].clone(),
            "slot": self._slot,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a history made by `state_dict`, converted to this device and precision.

        A history longer than ``history_size``, or one kept with other blocks, is inserted again, the oldest pair first.

        Raises:
            RuntimeError: the history is for another number of parameters.
        """
        steps, newest, gradients, slot = state["steps"], state["newest"], state["gradients"], int(state["slot"])
        T, d = len(steps), newest.numel()
        if d != self.dim or steps.shape != (T, d) or gradients.shape != (T, d):
            raise RuntimeError(f"the history is for {d} parameters, this optimizer has {self.dim}")
        self.reset()
        same_ring = slot == (T if T < self.history_size else slot % self.history_size)
        if same_ring and T <= self.history_size and state["step_gram"].shape[0] == len(self.blocks):
            self._steps[:T], self._newest[:], self._gradients[:T] = steps, newest, gradients
            self._step_gram[:, :T, :T], self._gram[:, :T, :T] = state["step_gram"], state["gram"]
            self._count, self._slot = T, slot
            self._measure()
        else:
            newest_first = ages(T, slot)
            points = points_of_path(newest.to(self._steps), steps[newest_first].to(self._steps))
            self.insert(points.flip(0), gradients[newest_first].flip(0))
