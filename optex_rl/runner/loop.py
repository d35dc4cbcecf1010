"""The training loop: from options, or from a run folder, to a run folder with a trained policy."""

from __future__ import annotations

import dataclasses
import warnings
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn

from ..agents import Agent
from ..common.errors import NumericalError, ResumeWarning, RunFolderError
from ..common.storage import load_checkpoint, must_fit, read_regular
from ..training import EvaluatorFactory, Trainer, fuse
from ..training.config import TrainConfig, load_config
from ..training.rollouts.normalization import Normalizer
from .folder import check_shared_options, locked, make_run_folder
from .log import ProgressBar
from .recorder import Recorder
from .restore import restore, total_iterations
from .signals import StopRequest, stop_on_interrupt
from .trust import check_trust


@dataclass
class TrainResult:
    """What training gives.

    Attributes:
        policy: the trained network.
        normalizer: the statistics that the policy is used with, see `evaluate_policy`.
        run_dir: the run folder, or None if nothing was written.
        backend: what steps the environments.
        interrupted: whether training was stopped before its last iteration.
        rows: the metrics of each iteration of this call by TensorBoard tag; those before a resumption are in
            progress.csv.
        iterations: sequential iterations done, those before a resumption included.
        signal: number of the signal that stopped it, or None.
        saving: seconds of this call spent on writing checkpoint.pt and best_model.pt.
    """

    policy: nn.Module
    normalizer: Normalizer
    run_dir: Path | None
    backend: str
    interrupted: bool = False
    rows: list[dict[str, float]] = field(default_factory=list)
    iterations: int = 0
    signal: int | None = None
    saving: float = 0.0


def train(
    config: TrainConfig,
    policy: nn.Module | None = None,
    agent: Agent | None = None,
    evaluator: EvaluatorFactory = fuse,
) -> TrainResult:
    """Train a policy and write its run folder.

    Ctrl-C and SIGTERM end the run after the iteration under way; it is saved and can be resumed. Points with NaN or
    infinite numbers are dropped, see `optex_rl.training.faults`; after too many the state before them is saved and the
    error raised.

    Args:
        config: the options.
        policy: a custom network, see `StackedPolicy`; by default the one that ``config.policy`` names, or an
            `MlpPolicy`.
        agent: a custom agent, in place of ``config.algo``.
        evaluator: makes a custom evaluator, from the arguments of `fuse`.

    Raises:
        ConfigError: an option, the task or its spaces cannot be used; no run folder is made then.
        RunFolderError: the run folder exists or cannot be written.
        NumericalError: more than ``max_bad_iterations`` bad iterations in a row.
    """
    with ExitStack() as stack:
        trainer = Trainer(config, policy, agent, evaluator)
        stack.callback(trainer.close)
        run_dir = make_run_folder(config)
        if run_dir is not None:
            stack.enter_context(locked(run_dir))
        recorder = Recorder(trainer, run_dir)
        stack.callback(recorder.close)
        recorder.begin()
        return _loop(trainer, recorder)


def resume(
    run_dir: str | Path,
    iterations: int | None = None,
    policy: nn.Module | str | None = None,
    agent: Agent | None = None,
    evaluator: EvaluatorFactory = fuse,
    *,
    trust: bool = False,
) -> TrainResult:
    """Resume a run that was interrupted, killed, or is to have more iterations, from its last checkpoint.

    With natively vectorised tasks the run continues bit for bit as if it had never stopped. A run that was stopped
    before its first checkpoint starts over in its folder; a finished one is left unchanged.

    Args:
        run_dir: the run folder.
        iterations: sequential iterations in all, at least as many as before. A learning rate that falls linearly
            falls to zero at the new number.
        policy, agent, evaluator: the custom ones that the run was started with, if any; the policy may be the
            "module:factory" that makes it, and is not needed if the options of the run name it.
        trust: whether to run code that the options of the run name, as for `optex_rl.load`.

    Raises:
        RunFolderError: the folder holds no run that can be resumed, or another process is writing to it.
        ConfigError: config.yml holds an option that cannot be used.
        NumericalError: more than ``max_bad_iterations`` bad iterations in a row.

    Warns:
        ResumeWarning: the environments cannot save their state, so their episodes start over.
    """
    run_dir = Path(run_dir)
    path = run_dir / "checkpoint.pt"
    with ExitStack() as stack:
        _check_run_folder(run_dir)
        stack.enter_context(locked(run_dir))
        config = load_config(run_dir / "config.yml")
        if not trust:
            check_trust(config, run_dir, policy is not None)
        content = load_checkpoint(path) if path.exists() else None
        with must_fit(path):
            if content is not None:
                check_shared_options(path, content, config)
            total = total_iterations(path, content, config.iterations, iterations)
        name, own = (policy, None) if isinstance(policy, str) else (config.policy, policy)
        trainer = Trainer(dataclasses.replace(config, iterations=total, policy=name), own, agent, evaluator)
        stack.callback(trainer.close)
        if content is not None:
            restore(trainer, path, content)
            if trainer.iteration >= total:
                return _result(trainer, run_dir)
            _warn_of_new_episodes(trainer)
        recorder = Recorder(trainer, run_dir, content)
        stack.callback(recorder.close)
        recorder.begin()
        if total != config.iterations:  # after the checkpoint, which decides where the two differ
            trainer.config.save(run_dir / "config.yml")
        return _loop(trainer, recorder)


def _check_run_folder(run_dir: Path) -> None:
    """Refuse what is no run folder, or one whose run cannot be resumed."""
    if "\0" in str(run_dir) or not run_dir.is_dir():
        raise RunFolderError(f"there is no run folder {str(run_dir)!r}")
    if not (run_dir / "config.yml").exists():
        raise RunFolderError(f"{run_dir} holds no config.yml, so no run began in it: remove it and start the run again")
    progress = run_dir / "progress.csv"
    if (run_dir / "checkpoint.pt").exists() or not progress.exists():
        return
    if read_regular(progress, "the progress of a run").count(b"\n") > 1:
        raise RunFolderError(f"{run_dir} holds progress but no checkpoint.pt, and cannot be resumed: start another run")


def _warn_of_new_episodes(trainer: Trainer) -> None:
    if not trainer.evaluator.is_exact:
        warnings.warn(
            f"{trainer.config.env_name} cannot save its state: all episodes start over, so the run is resumed, but "
            "not bit for bit",
            ResumeWarning,
            stacklevel=3,
        )


def _result(trainer: Trainer, run_dir: Path | None) -> TrainResult:
    evaluator = trainer.evaluator
    backend = evaluator.description
    return TrainResult(trainer.policy, evaluator.normalizer, run_dir, backend, iterations=trainer.iteration)


def _loop(trainer: Trainer, recorder: Recorder) -> TrainResult:
    """Iterate to the end or to a signal, and save."""
    result = _result(trainer, recorder.run_dir)
    bar = ProgressBar(trainer.config.iterations, initial=trainer.iteration, show=trainer.config.progress_bar)
    with ExitStack() as stack:
        stack.callback(bar.close)
        stop = stack.enter_context(stop_on_interrupt())
        try:
            _iterate(trainer, recorder, result, bar, stop)
        except NumericalError:
            recorder.save()
            raise
        recorder.finish()
    result.iterations = trainer.iteration
    result.interrupted = trainer.iteration < trainer.config.iterations
    result.signal, result.saving = stop.number, recorder.saving
    return result


def _iterate(trainer: Trainer, recorder: Recorder, result: TrainResult, bar: ProgressBar, stop: StopRequest) -> None:
    while trainer.iteration < trainer.config.iterations and not stop.requested:
        metrics = trainer.iterate()
        if trainer.evaluation_due():
            metrics["eval/mean_reward"] = recorder.keep_best()
        elapsed = recorder.elapsed()
        metrics |= {"time/wall_time": elapsed, "time/fps": trainer.env_steps / elapsed}
        result.rows.append(metrics)
        bar.update(metrics)
        recorder.write(metrics)
