"""The selections: how the next iterate is made from the evaluations of an iteration. A new one is one entry.

Axes: ``n`` usable points, ``d`` parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from torch import Tensor

# Gradients [n, d], losses [n] or None, and whether the base ascends → index of a point.
Choice = Callable[[Tensor, Tensor | None, bool], int]


@dataclass(frozen=True)
class Selection:
    """A rule for the next iterate.

    Attributes:
        choose: the point from which the base steps, with the true gradient there. None: the base goes back to the old
            iterate and takes its steps again, with the posterior means that the new evaluations give.
        needs_losses: whether it cannot do without the losses.
    """

    choose: Choice | None
    needs_losses: bool = False


def last_point(gradients: Tensor, losses: Tensor | None, maximize: bool) -> int:
    """The end of the chain, the paper's main choice."""
    return len(gradients) - 1


def least_loss(gradients: Tensor, losses: Tensor | None, maximize: bool) -> int:
    """The point with the least loss, or the greatest where the base ascends (paper, Sec. 4.3 and Fig. 6)."""
    assert losses is not None, "check_evaluations refuses missing losses"
    return int(losses.argmax() if maximize else losses.argmin())


def least_gradient_norm(gradients: Tensor, losses: Tensor | None, maximize: bool) -> int:
    """The point with the least gradient norm (paper, Sec. 4.3 and Fig. 6)."""
    return int(gradients.norm(dim=1).argmin())


SELECTIONS: Final[dict[str, Selection]] = {
    "last": Selection(last_point),
    "loss": Selection(least_loss, needs_losses=True),
    "grad_norm": Selection(least_gradient_norm),
    "refine": Selection(None),
}
