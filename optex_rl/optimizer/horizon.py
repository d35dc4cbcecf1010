"""How many base steps an iteration has, and where its points lie on the predicted chain: the option ``horizon``.

"fixed": N·stride base steps, a point after every stride (the paper's chain, where stride is 1).

"auto": h base steps, the N points evenly on the way to the end of the h-th. Their true gradients give the slope along
the way Δ from the first to the last of them, and a line through these slopes what the loss falls by at the start of the
way, a, and at its end, b. Neither is biased by the noise of these gradients, for the way was laid out before they were
drawn. Where the loss falls as steeply as at the start, one may go further; where it rises, less far. With h below 1.5
there is one base step, with the mean of N gradients near the iterate: that is data-parallel. Where not all N gradients
make the steps (selections of one point, no closure), and where ``stride`` says how long they are, the horizon is fixed
all the same.

Not in the paper. In hypergradient descent (Baydin et al., 2018, arXiv 1703.04782) the sign of such a slope adapts the
rate; here both ends are compared, for a step at whose end the loss still falls may well be too long.

Axes: ``N`` points, ``n`` of them usable, ``d`` parameters.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor

from .options import OptExOptions

START: Final = 1 / 16  # base steps: data-parallel until the slopes allow more
SHORTEST: Final = 1 / 32  # never 0: without a way there are no slopes along it, and no way back
LONGER: Final = 1.5  # factor on h where one may go further
SHORTER: Final = 2.0  # divisor of h where one must not
FLAT: Final = 0.8  # share of the slope at the start that is left at the end of a way that may grow
MEMORY: Final = 0.5  # of the running means of both slopes


@dataclass(frozen=True)
class FixedHorizon:
    """N·stride base steps."""

    N: int
    stride: int

    @property
    def steps(self) -> int:
        """Base steps of an iteration."""
        return self.N * self.stride

    @property
    def places(self) -> list[float]:
        """Where the N points lie, in base steps from the iterate."""
        return [float(row * self.stride) for row in range(self.N)]

    def after(self, points: Tensor, gradients: Tensor, rows: Sequence[int], maximize: bool) -> FixedHorizon:
        """The same."""
        return self


@dataclass(frozen=True)
class AdaptiveHorizon:
    """As many base steps as the slopes along the way allow.

    Attributes:
        N: points, and the most base steps.
        length: h, in base steps.
        begin: running mean of the slope a at the start of the way, as a cosine.
        end: running mean of the slope b at its end.
    """

    N: int
    length: float = START
    begin: float = 0.0
    end: float = 0.0

    @property
    def steps(self) -> int:
        """Base steps of an iteration."""
        return max(1, round(self.length))

    @property
    def places(self) -> list[float]:
        """Where the N points lie, in base steps from the iterate."""
        return [self.length * row / (self.N - 1) for row in range(self.N)]

    def after(self, points: Tensor, gradients: Tensor, rows: Sequence[int], maximize: bool) -> AdaptiveHorizon:
        """The horizon of the next iteration; unchanged where fewer than two points could be used.

        Args:
            points: ``[N, d]``, at `places`.
            gradients: ``[n, d]``.
            rows: which points they belong to.
            maximize: whether the base ascends.
        """
        if len(rows) < 2:
            return self
        places = [self.places[row] / self.length for row in rows]
        slopes = descents(points, gradients)
        return self.adapted(*ends(places, (-slopes if maximize else slopes).tolist()))

    def adapted(self, begin: float, end: float) -> AdaptiveHorizon:
        """With the slopes ``begin`` and ``end`` of an iteration in the running means a and b, which then decide.

        h grows if b > 0.8 a and shrinks if b < 0. Otherwise it stays, and where a ≤ 0, too: then the prediction was
        wrong from the start, and does not say how far one may go.
        """
        a = MEMORY * self.begin + (1 - MEMORY) * begin
        b = MEMORY * self.end + (1 - MEMORY) * end
        length = self.length
        if a > 0 and b > FLAT * a:
            length = min(length * LONGER, float(self.N))
        elif a > 0 and b < 0:
            length = max(length / SHORTER, SHORTEST)
        return replace(self, length=length, begin=a, end=b)

    def state_dict(self) -> dict[str, float]:
        """Everything but N."""
        return {name: value for name, value in asdict(self).items() if name != "N"}


Horizon = FixedHorizon | AdaptiveHorizon


def make_horizon(options: OptExOptions, state: dict[str, Any] | None = None) -> Horizon:
    """The horizon of the first iteration, or of the one whose ``state`` was saved, with another N perhaps.

    Raises:
        RuntimeError: the state has numbers that are not finite.
    """
    N = options.parallelism
    if not options.adaptive:
        return FixedHorizon(N, options.stride)
    horizon = AdaptiveHorizon(N, **(state or {}))
    if not all(map(math.isfinite, horizon.state_dict().values())):
        raise RuntimeError(f"the horizon must have finite numbers, got {state}")
    return replace(horizon, length=min(max(horizon.length, SHORTEST), float(N)))


def descents(points: Tensor, gradients: Tensor) -> Tensor:
    """How steeply the loss falls along the way Δ from the first to the last of the points, ``[n]``, as cosines.

    −gᵢ·Δ over |Δ| and the mean norm of the gradients; one norm for all, for the slopes are compared with each other.

    Args:
        points: ``[N, d]``.
        gradients: ``[n, d]``, at those of them that are usable.
    """
    way = (points[0] - points[-1]).to(gradients)
    scale = float(way.norm() * gradients.norm(dim=1).mean())
    return torch.mv(gradients, way) / max(scale, torch.finfo(gradients.dtype).tiny)


def ends(places: Sequence[float], slopes: Sequence[float]) -> tuple[float, float]:
    """Values at 0 and 1 of the least-squares line through ``slopes [n]`` at ``places [n]``, two of them distinct."""
    gain, begin = statistics.linear_regression(places, slopes)
    return begin, begin + gain
