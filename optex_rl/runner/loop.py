"""The training loop: from options, or from a run folder, to a run folder with a trained policy."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from ..agents import Agent
from ..cluster import choose_evaluator
from ..common.errors import ConfigError, Interrupted, NumericalError, ResumeWarning, RunFolderError, WorkerError
from ..common.storage import load_checkpoint, must_fit, read_regular
from ..training import EvaluatorFactory, Trainer
from ..training.config import CLUSTER, TrainConfig, load_config
from ..training.rollouts.normalization import Normalizer
from .callbacks import BaseCallback, Run, check_callbacks, stops
from .folder import check_run_dir, check_shared_options, locked, make_run_folder
from .log import LOG, progress_bar
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
        interrupted: whether a signal stopped training before its last iteration.
        rows: the metrics of each iteration of this call by TensorBoard tag; those before a resumption are in
            progress.csv.
        iterations: sequential iterations done, those before a resumption included.
        signal: number of the signal that stopped it, or None.
        stopped_by: name of the callback that stopped it before its last iteration, or None.
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
    stopped_by: str | None = None
    saving: float = 0.0


def train(
    config: TrainConfig,
    policy: nn.Module | None = None,
    agent: Agent | None = None,
    evaluator: EvaluatorFactory | None = None,
    callbacks: Sequence[BaseCallback] = (),
) -> TrainResult:
    """Train a policy and write its run folder.

    Ctrl-C and SIGTERM end the run at the next step of the environments; the iterations done are saved, and it can be
    resumed: an iteration under way begins anew then, an evaluation under way is made up for. Points with NaN or
    infinite numbers are dropped, see `optex_rl.training.faults`; after too many the state before them is saved and the
    error raised.

    Args:
        config: the options.
        policy: a custom network, see `StackedPolicy`; by default the one that ``config.policy`` names, or an
            `MlpPolicy`.
        agent: a custom agent, in place of ``config.algo``.
        evaluator: makes a custom evaluator, from the arguments of `fuse`; by default `choose_evaluator`'s.
        callbacks: see `optex_rl.BaseCallback`; they may stop the run.

    Returns:
        The policy, how far the run went, what stopped it, and the metrics of every iteration.

    Raises:
        ConfigError: an option, the task or its spaces cannot be used; no run folder is made then.
        RunFolderError: the run folder exists or cannot be written.
        NumericalError: more than ``max_bad_iterations`` bad iterations in a row.
        WorkerError: workers were lost too often in a row, or their cluster is gone.
    """
    check_callbacks(callbacks)
    with ExitStack() as stack:
        trainer = Trainer(config, policy, agent, evaluator or choose_evaluator(config))
        stack.callback(trainer.close)
        run_dir = make_run_folder(config)
        if run_dir is not None:
            stack.enter_context(locked(run_dir))
        recorder = Recorder(trainer, run_dir)
        stack.callback(recorder.close)
        recorder.begin()
        return _loop(trainer, recorder, callbacks)


def resume(
    run_dir: str | Path,
    iterations: int | None = None,
    policy: nn.Module | str | None = None,
    agent: Agent | None = None,
    evaluator: EvaluatorFactory | None = None,
    callbacks: Sequence[BaseCallback] = (),
    *,
    cluster: Mapping[str, Any] | None = None,
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
        callbacks: as for `train`.
        cluster: options of `CLUSTER` that differ from now on: how many workers, and where.
        trust: whether to run code that the options of the run name, as for `optex_rl.load`.

    Returns:
        As `train`.

    Raises:
        RunFolderError: the folder holds no run that can be resumed, or another process is writing to it.
        ConfigError: config.yml holds an option that cannot be used.
        NumericalError: more than ``max_bad_iterations`` bad iterations in a row.
        WorkerError: workers were lost too often in a row, or their cluster is gone.

    Warns:
        ResumeWarning: the environments cannot save their state, so their episodes start over.
    """
    run_dir = Path(run_dir)
    path = run_dir / "checkpoint.pt"
    check_callbacks(callbacks)
    if unknown := sorted(set(cluster or ()) - set(CLUSTER)):
        raise ConfigError(f"cluster may hold {', '.join(CLUSTER)}, and not {', '.join(unknown)}")
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
        now = dataclasses.replace(config, iterations=total, policy=name, **cluster or {})
        trainer = Trainer(now, own, agent, evaluator or choose_evaluator(now))
        stack.callback(trainer.close)
        if content is not None:
            restore(trainer, path, content)
            if trainer.iteration >= total and not content.get("pending"):
                return _result(trainer, run_dir)
            _warn_of_new_episodes(trainer)
        recorder = Recorder(trainer, run_dir, content)
        stack.callback(recorder.close)
        recorder.begin()
        if dataclasses.replace(now, policy=config.policy) != config:
            # After the checkpoint, which decides where the two differ.
            trainer.config.save(run_dir / "config.yml")
        return _loop(trainer, recorder, callbacks)


def _check_run_folder(run_dir: Path) -> None:
    """Refuse what is no run folder, or one whose run cannot be resumed."""
    check_run_dir(run_dir)
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


def _loop(trainer: Trainer, recorder: Recorder, callbacks: Sequence[BaseCallback]) -> TrainResult:
    """Iterate to the end, to a signal or to a callback's stop, and save."""
    result, run = _result(trainer, recorder.run_dir), Run(trainer, recorder.run_dir)
    total, show = trainer.config.iterations, trainer.config.progress_bar
    with ExitStack() as stack:
        bar = progress_bar(show, total=total, initial=recorder.written, unit="it", dynamic_ncols=True)
        stack.callback(bar.close)
        stop = stack.enter_context(stop_on_interrupt())
        ending = stack.enter_context(ExitStack())  # which calls all of them, whatever one raises
        try:
            for callback in callbacks:
                callback.on_training_start(run)
                ending.callback(callback.on_training_end, run)
            with trainer.calling_before_steps(stop.check):
                _iterate(run, recorder, result, bar, stop, callbacks)
        except Interrupted:
            pass  # the state is that after the last whole iteration
        except (NumericalError, WorkerError):
            recorder.save()
            raise
        except KeyboardInterrupt:  # a second one, which is not to wait for callbacks
            ending.pop_all()
            raise
        recorder.finish()
        result.iterations = trainer.iteration
        result.interrupted = recorder.written < trainer.config.iterations and result.stopped_by is None
        result.signal, result.saving = stop.number, recorder.saving
    return result


def _iterate(
    run: Run,
    recorder: Recorder,
    result: TrainResult,
    bar: Any,
    stop: StopRequest,
    callbacks: Sequence[BaseCallback],
) -> None:
    trainer = run.trainer
    while recorder.written < trainer.config.iterations and not stop.requested and result.stopped_by is None:
        run.metrics = recorder.pending = recorder.pending or trainer.iterate(trainer.evaluation_due(ahead=1))
        is_evaluated = trainer.evaluation_due()
        if is_evaluated:
            run.metrics["eval/mean_reward"] = recorder.keep_best()
            LOG.info("iteration %d: evaluation return %.1f", trainer.iteration, run.metrics["eval/mean_reward"])
        run.metrics |= recorder.times()
        with recorder.writing(run.metrics):
            result.stopped_by = _call(callbacks, run, is_evaluated)
        result.rows.append(run.metrics)
        words = f"return {run.metrics['rollout/ep_rew_mean']:.1f}, {run.metrics['time/fps']:,.0f} steps/s"
        bar.set_postfix_str(words, refresh=False)
        bar.update()


def _call(callbacks: Sequence[BaseCallback], run: Run, is_evaluated: bool) -> str | None:
    """Call the hooks of an iteration; returns the name of the first callback that stops the run before its end."""
    stopping = None
    for callback in callbacks:
        answers = [callback.on_evaluation(run)] if is_evaluated else []
        answers.append(callback.on_step(run))
        if stopping is None and any(map(stops, answers)):
            stopping = type(callback).__name__
    if stopping is None or run.iteration == run.config.iterations:
        return None
    LOG.info("iteration %d: stopped by %s", run.iteration, stopping)
    return stopping
