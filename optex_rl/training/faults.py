"""NaN and infinite numbers in training: what is saved of them, and when a run stops.

The policy: a point whose experience, loss or gradient is not finite (`find_faults`) is dropped, and the step is made
from the others. Where no point is left, the kernel matrix is singular or the step would explode the parameters, nothing
moves and the iteration is repeated with new samples. After more than ``max_bad_iterations`` bad attempts in a row the
run stops.

Axes: ``N`` points, ``E`` environments per point, ``d`` parameters.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from ..common.errors import NonFiniteError, NumericalError
from ..common.storage import save_checkpoint
from .rollouts.evaluator import Evaluation

MOST_FILES: Final = 5  # faults_ITERATION.pt in a run folder


class FaultLog:
    """Saves the evidence of faults, counts them, and stops the run at a limit.

    Args:
        limit: bad attempts in a row that are tolerated.

    Attributes:
        folder: the run folder, or None to save nothing.
        in_a_row: bad attempts since the last good one, which sets it to 0.
        dropped: points dropped in the whole run.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.folder: Path | None = None
        self.in_a_row = 0
        self.dropped = 0
        self._files = 0
        self._iteration = 0  # of the last bad attempt
        self._attempt = 0  # its number among the bad ones of that iteration
        self._last: NumericalError | None = None

    def bad(self, iteration: int, error: NumericalError, evidence: dict[str, Any] | None = None) -> None:
        """Count an attempt with a fault, save the evidence, and stop the run at the limit.

        Args:
            iteration: the iteration under way, counted from 1.
            error: what was wrong.
            evidence: tensors to save.

        Raises:
            NumericalError: as ``error``, if there were too many in a row.
        """
        self.in_a_row += 1
        self._attempt = self._attempt + 1 if iteration == self._iteration else 1
        self._iteration = iteration
        message = f"iteration {iteration}: {error}"
        kept = self._keep(iteration, {"iteration": iteration, "message": message, **(evidence or {})})
        if self.in_a_row > self.limit:
            times = "" if self.limit == 0 else f"; that was the bad attempt number {self.in_a_row} in a row"
            self._last = type(error)(f"{message}{times}{kept}")
            raise self._last from error

    def stops_with(self, error: NumericalError) -> bool:
        """Whether ``error`` is the one with which `bad` stops the run."""
        return error is self._last

    def _keep(self, iteration: int, content: dict[str, Any]) -> str:
        """Write a file that ``torch.load`` reads, unless there are enough; returns where, for the message."""
        if self.folder is None:
            return ""
        if self._files < MOST_FILES:
            suffix = "" if self._attempt == 1 else f"_{self._attempt}"
            self._files += 1
            save_checkpoint(self.folder / f"faults_{iteration}{suffix}.pt", content)
        return f" (see {self.folder}/faults_*.pt)"

    def state_dict(self) -> dict[str, Any]:
        """Copy as plain values."""
        counts = {"in_a_row": self.in_a_row, "dropped": self.dropped, "files": self._files}
        return counts | {"iteration": self._iteration, "attempt": self._attempt}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a state from `state_dict`."""
        self.in_a_row, self.dropped, self._files = state["in_a_row"], state["dropped"], state["files"]
        self._iteration, self._attempt = state["iteration"], state["attempt"]


def describe(reasons: dict[int, str]) -> NonFiniteError:
    """The error that names the points and what was not finite there."""
    parts = "; ".join(f"point {point}: {reason}" for point, reason in reasons.items())
    return NonFiniteError(f"not finite: {parts}")


def gather_evidence(reasons: dict[int, str], points: Tensor, evaluation: Evaluation) -> dict[str, Any]:
    """The evidence at the bad points: parameters, gradients, losses, and the experience they come from."""
    rows = torch.tensor(list(reasons))
    return {
        "points": rows,
        "reasons": list(reasons.values()),
        "parameters": points[rows].cpu(),
        "gradients": evaluation.gradients[rows].cpu(),
        "losses": {name: value[rows].cpu() for name, value in evaluation.losses._asdict().items()},
        "batch": {name: value[rows].cpu() for name, value in evaluation.batch._asdict().items()},
    }
