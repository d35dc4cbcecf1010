"""Callbacks: what a program does after an iteration, at an evaluation and at the end of a run; they may stop it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from ..common.errors import ConfigError
from ..common.validation import check_between
from ..training import Trainer
from ..training.config import LARGEST, TrainConfig


@dataclass
class Run:
    """A run under way, as callbacks see it.

    Attributes:
        trainer: what is trained.
        run_dir: the run folder, or None if nothing is written.
        metrics: of the last iteration, by TensorBoard tag, ``"eval/mean_reward"`` among them after an evaluation. What
            `BaseCallback.on_step` adds is logged with them.
    """

    trainer: Trainer
    run_dir: Path | None
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def config(self) -> TrainConfig:
        """The options."""
        return self.trainer.config

    @property
    def policy(self) -> nn.Module:
        """The network, at the iterate."""
        return self.trainer.policy

    @property
    def iteration(self) -> int:
        """Sequential iterations done."""
        return self.trainer.iteration

    @property
    def env_steps(self) -> int:
        """Environment steps taken."""
        return self.trainer.env_steps


class BaseCallback:
    """What a callback may do; names are those of stable-baselines3, where a step is one of the environments.

    A hook that returns False, or another value that is false but None, stops the run after the iteration; it is saved
    and can be resumed. What a hook raises ends the run as well, once it is saved.
    """

    def on_training_start(self, run: Run) -> None:
        """Before the first iteration, also of a run that is resumed."""

    def on_evaluation(self, run: Run) -> bool | None:
        """After an evaluation, whose return is ``run.metrics["eval/mean_reward"]``."""

    def on_step(self, run: Run) -> bool | None:
        """After a sequential iteration, and its evaluation if there was one, before its metrics are logged."""

    def on_training_end(self, run: Run) -> None:
        """After the last iteration, a stop by a callback or a signal, or an error, once all is saved.

        The last callback comes first. Not called where `on_training_start` failed, nor after a second signal.
        """


class StopTrainingOnRewardThreshold(BaseCallback):
    """Stops the run at an evaluation that reaches a return.

    Args:
        reward_threshold: the return.
        held: ask for more than one evaluation that may be lucky: that the mean of two in a row reaches the return, as
            ``--until-threshold`` of the command compare does.

    Raises:
        ConfigError: the return is no number; when training starts, the run has no evaluations.
    """

    def __init__(self, reward_threshold: float, held: bool = False) -> None:
        check_between("reward_threshold", reward_threshold, -LARGEST, LARGEST, "a number")
        self.reward_threshold, self.held = reward_threshold, held
        self.returns: list[float] = []

    def on_training_start(self, run: Run) -> None:
        """Begin without evaluations; raises the ConfigError."""
        if run.config.eval_freq == 0:
            raise ConfigError("StopTrainingOnRewardThreshold needs evaluations: eval_freq must be at least 1, got 0")
        self.returns = []

    def on_evaluation(self, run: Run) -> bool:
        """Whether the run goes on."""
        self.returns.append(run.metrics["eval/mean_reward"])
        if self.held:
            return not held(self.returns, self.reward_threshold)
        return not self.returns[-1] >= self.reward_threshold


class LoggerCallback(BaseCallback):
    """Hands the metrics of every iteration to a logger of one's own.

    Args:
        write: called with the number of the iteration and its metrics by TensorBoard tag, those that are known.
    """

    def __init__(self, write: Callable[[int, Mapping[str, float]], object]) -> None:
        self.write = write

    def on_step(self, run: Run) -> None:
        """Write the metrics."""
        self.write(run.iteration, known(run.metrics))


class WandbCallback(BaseCallback):
    """Logs to Weights & Biases (extra ``wandb``): the options, and the metrics with the iteration as step.

    A run of W&B that is active when training starts is used and left open; otherwise one is begun and finished.

    Args:
        **init: arguments of ``wandb.init``, such as ``project`` or ``mode="offline"``; by default the run has the name
            of its folder.

    Raises:
        ConfigError: when training starts, if the package is missing.
    """

    def __init__(self, **init: Any) -> None:
        self.init = init
        self._run: Any = None
        self._is_own = False

    def on_training_start(self, run: Run) -> None:
        """Begin a run, unless there is one; raises the ConfigError."""
        try:
            import wandb
        except ModuleNotFoundError as error:
            raise ConfigError("WandbCallback needs Weights & Biases: pip install 'optex-rl[wandb]'") from error
        self._is_own = wandb.run is None
        name = None if run.run_dir is None else run.run_dir.name
        self._run = wandb.init(**{"name": name, **self.init}) if self._is_own else wandb.run
        self._run.config.update(run.config.values(), allow_val_change=True)

    def on_step(self, run: Run) -> None:
        """Log the metrics."""
        self._run.log(known(run.metrics), step=run.iteration)

    def on_training_end(self, run: Run) -> None:
        """Finish the run, if it was begun here."""
        if self._is_own:
            self._run.finish()


class OptunaPruningCallback(BaseCallback):
    """Reports every evaluation to a trial of Optuna (extra ``tune``), and stops the run if its pruner says so.

    Args:
        trial: the trial.

    Raises:
        optuna.TrialPruned: at the end of a run that was pruned, once it is saved.
    """

    def __init__(self, trial: Any) -> None:
        self.trial = trial
        self.is_pruned = False

    def on_evaluation(self, run: Run) -> bool:
        """Whether the run goes on."""
        value = run.metrics["eval/mean_reward"]
        if not math.isnan(value):
            self.trial.report(value, run.iteration)
            self.is_pruned = self.trial.should_prune()
        return not self.is_pruned

    def on_training_end(self, run: Run) -> None:
        """Tell Optuna."""
        if self.is_pruned:
            from optuna import TrialPruned

            raise TrialPruned(f"pruned after iteration {run.iteration}")


def check_callbacks(callbacks: Sequence[Any]) -> None:
    """Raise a ConfigError unless it is a list of callbacks of this package."""
    if not isinstance(callbacks, Sequence):
        raise ConfigError(f"callbacks must be a list of optex_rl.BaseCallback, got {callbacks!r}")
    for callback in callbacks:
        if not isinstance(callback, BaseCallback):
            raise ConfigError(f"callbacks must be instances of optex_rl.BaseCallback, got {callback!r}")


def stops(answer: Any) -> bool:
    """Whether what a hook returned stops the run: False, or that of NumPy or torch, but not None."""
    return answer is not None and not answer


def known(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics that are not NaN, which stands for unknown."""
    return {tag: value for tag, value in metrics.items() if not math.isnan(value)}


def reached_at(returns: Sequence[float], threshold: float) -> int | None:
    """Index of the evaluation at which a threshold is reached; None if it never is.

    It is reached where the mean of that evaluation and the next one is at least the threshold; after the last one
    nothing follows, and it stands for itself.
    """
    following = [*returns[1:], returns[-1]]
    means = ((now + then) / 2 for now, then in zip(returns, following, strict=True))
    return next((k for k, mean in enumerate(means) if mean >= threshold), None)


def held(returns: Sequence[float], threshold: float) -> bool:
    """Whether a run that is still going on has reached the threshold: by two evaluations, not by its last alone."""
    index = reached_at(returns, threshold)
    return index is not None and index < len(returns) - 1
