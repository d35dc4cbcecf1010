"""What a trial of a study is worth, while its runs go on and at its end."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import optuna

from ..runner.callbacks import BaseCallback, OptunaPruningCallback, StopTrainingOnRewardThreshold
from .statistics import iterations_needed


class Reports:
    """Stands in for a trial over its runs, for `OptunaPruningCallback`.

    With a threshold the trial is worth the geometric mean of the `iterations_needed` by its runs, which the pruner sees
    after each of them; a run ends once it holds the threshold. Without one it is worth the mean return of all
    evaluations, the area under the learning curve, which the pruner sees at each evaluation.

    Args:
        trial: the trial.
        threshold: the return to reach, or None.
    """

    def __init__(self, trial: optuna.Trial, threshold: float | None = None) -> None:
        self.trial, self.threshold = trial, threshold
        self.returns: list[float] = []  # of all evaluations
        self.needed: list[int] = []  # by each run that is done
        self._run: list[tuple[int, float]] = []  # iteration and return of the evaluations of the run under way

    @property
    def value(self) -> float:
        """What the trial is worth by now: a return, the more the better, or iterations, the fewer the better."""
        return statistics.fmean(self.returns) if self.threshold is None else statistics.geometric_mean(self.needed)

    def callbacks(self) -> Sequence[BaseCallback]:
        """What a run reports with, and stops at."""
        if self.threshold is None:
            return [OptunaPruningCallback(self)]
        return [OptunaPruningCallback(self), StopTrainingOnRewardThreshold(self.threshold, held=True)]

    def report(self, value: float, step: int) -> None:
        """Take the mean return of the evaluation after iteration ``step`` of the run under way."""
        self.returns.append(value)
        self._run.append((step, value))
        if self.threshold is None:
            self.trial.report(self.value, len(self.returns))

    def should_prune(self) -> bool:
        """Whether the run under way is to end, and the trial with it."""
        return self.threshold is None and self.trial.should_prune()

    def end_run(self, iterations: int) -> None:
        """A run of at most so many iterations is done.

        Raises:
            optuna.TrialPruned: the trial is to end.
        """
        if self.threshold is not None:
            steps, returns = zip(*self._run, strict=True)
            self.needed.append(iterations_needed(steps, returns, self.threshold, iterations))
            self.trial.report(self.value, len(self.needed))
            if self.trial.should_prune():
                raise optuna.TrialPruned
        self._run = []
