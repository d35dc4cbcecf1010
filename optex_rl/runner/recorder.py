"""What a run writes: its log and its checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from ..common.storage import save_checkpoint
from ..training import Trainer
from .folder import describe_network
from .log import RunLog

MOST_SECONDS: Final = 60.0  # of work lost at most, besides checkpoint_freq iterations


class Recorder:
    """Keeps a run: its log and its checkpoints in its folder, and the time that it took.

    Args:
        trainer: what is trained.
        run_dir: the run folder, or None to write nothing.
        saved: the checkpoint that the run is resumed from, or None for a new run.

    Attributes:
        pending: metrics of the iteration just made, until they are written; an evaluation may be missing in them.
        saving: seconds spent on checkpoints.
    """

    def __init__(self, trainer: Trainer, run_dir: Path | None, saved: dict[str, Any] | None = None) -> None:
        self.trainer, self.run_dir = trainer, run_dir
        trainer.faults.folder = run_dir
        self.pending: dict[str, float] | None = None if saved is None else saved.get("pending")
        done = None if saved is None else self.written
        self._log = None if run_dir is None else RunLog(run_dir, done, trainer.config.values())
        self._opened = self._saved_at = time.perf_counter()
        self._started = self._opened - (0.0 if saved is None else saved["wall_time"])
        self._opened_at_step, self._evaluating = trainer.env_steps, 0.0
        self._saved_iteration = -1 if saved is None else trainer.iteration
        self.saving = 0.0
        self._total = None if saved is None else saved["iterations"]

    def begin(self) -> None:
        """Save before the first iteration, so that there is always a checkpoint, and after a raised number of them."""
        if self._total != self.trainer.config.iterations:
            self.save()

    @property
    def written(self) -> int:
        """Iterations whose metrics are written."""
        return self.trainer.iteration - (self.pending is not None)

    def elapsed(self) -> float:
        """Seconds of training, those before a resumption included."""
        return time.perf_counter() - self._started

    def times(self) -> dict[str, float]:
        """Seconds of training, and environment steps per second since this process began, its evaluations left out."""
        elapsed, steps = self.elapsed(), self.trainer.env_steps - self._opened_at_step
        seconds = time.perf_counter() - self._opened - self._evaluating
        return {"time/wall_time": elapsed, "time/fps": steps / seconds if steps else math.nan}

    def write(self, metrics: dict[str, float]) -> None:
        """Log an iteration, and save every ``checkpoint_freq`` iterations or after a minute."""
        self.pending = None
        if self._log is None:
            return
        self._log.write(self.trainer.iteration, metrics)
        frequency = self.trainer.config.checkpoint_freq
        late = time.perf_counter() - self._saved_at > MOST_SECONDS
        if frequency and (late or self.trainer.iteration % frequency == 0):
            self.save()

    @contextmanager
    def writing(self, metrics: dict[str, float]) -> Iterator[None]:
        """A block that may add to the metrics of an iteration, which are then logged; if it fails, all is saved."""
        try:
            yield
        except Exception:
            self.write(metrics)
            self.finish()
            raise
        self.write(metrics)

    def finish(self) -> None:
        """Save where the run is, unless that is saved already."""
        if self._saved_iteration != self.trainer.iteration:
            self.save()

    def save(self) -> None:
        """Write checkpoint.pt, the log being on the disk before it."""
        if self.run_dir is None or self._log is None:
            return
        started = time.perf_counter()
        self._log.sync()
        times = {"wall_time": self.elapsed(), "pending": self.pending}
        content = {**self.trainer.state_dict(), **times, **origin(self.trainer)}
        save_checkpoint(self.run_dir / "checkpoint.pt", content)
        self._saved_at, self._saved_iteration = time.perf_counter(), self.trainer.iteration
        self.saving += self._saved_at - started

    def keep_best(self) -> float:
        """Evaluate the iterate and write best_model.pt if no evaluation was better before; returns the mean return."""
        trainer = self.trainer
        started = time.perf_counter()
        mean_return = trainer.evaluate()
        self._evaluating += time.perf_counter() - started
        if mean_return > trainer.best_return:
            trainer.best_return = mean_return
            if self.run_dir is not None:
                started = time.perf_counter()
                content = {
                    "policy": trainer.policy.state_dict(),
                    "normalizer": trainer.evaluator.normalizer.state_dict(),
                    "iteration": trainer.iteration,
                    "return": mean_return,
                }
                save_checkpoint(self.run_dir / "best_model.pt", content | origin(trainer))
                self.saving += time.perf_counter() - started
        return mean_return

    def close(self) -> None:
        """Close the log."""
        if self._log is not None:
            self._log.close()


def origin(trainer: Trainer) -> dict[str, Any]:
    """Entries that identify the run of a file."""
    config = trainer.config
    return {
        "options": config.shared_options(),
        "iterations": config.iterations,
        "network": describe_network(trainer.policy),
        "agent": type(trainer.agent).__name__,
    }
