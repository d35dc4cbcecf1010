"""Many runs at once: methods × settings × seeds over all cores; after an interruption only missing ones are done."""

from __future__ import annotations

import dataclasses
import itertools
import math
import multiprocessing
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias

import torch

from ..common.errors import ConfigError, OptExError
from ..common.validation import check_at_least, check_between
from ..runner.folder import locked
from ..runner.log import progress_bar, shows_bars
from ..runner.signals import StopRequest, stop_on_interrupt, without_interrupts
from ..training.config import TrainConfig
from ..training.rollouts.evaluator import keep_freed_memory
from .jobs import FIRST_TUNING_SEED, QUIET, Job, RunConfig, check_can_run, is_done, read_run, run_job, threshold_of
from .methods import is_sb3, method_options
from .rl_zoo3 import Sb3Config
from .statistics import tuning_score
from .tuning import Axis, Setting, search

MOST_SEEDS: Final = 10**4
MOST_WORKERS: Final = 1024
LATEST_SIGNAL: Final = 1.0  # seconds
SHORT: Final = {"learning_rate": "lr", "ent_coef": "ent"}  # in the names of settings
BAR: Final = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}, {postfix}]"
Cell: TypeAlias = tuple[str, str]  # task, method


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A comparison of methods on tasks, over settings and seeds.

    Every method is tuned by the same rules on every task, see `optex_rl.compare.tuning`: its learning rate, the entropy
    coefficients, and the options for which its name gives several numbers. Settings are ordered by the iterations that
    they take to the threshold, see `tuning_score`; the best makes the final runs, with other seeds.

    Args:
        folder: where the runs are kept; in a folder that has some, only missing ones are done.
        envs: tasks.
        algo: the agent of methods that do not name one.
        methods: see `optex_rl.compare.methods`.
        seeds: final runs of each method on each task.
        tuning_seeds: tuning runs of the settings that remain at the end.
        learning_rates: factors on the learning rate of the task's presets, the grid to begin with; one: no tuning.
        ent_coefs: entropy coefficients; that of the task's presets if empty.
        thresholds: the return to reach on each task; they win over `THRESHOLDS`.
        until_threshold: whether a run stops once it holds its threshold.
        overrides: options of `TrainConfig` for all methods.
        workers: runs at once, each in a process of its own with one thread; as many as there are cores by default.
        progress_bar: whether to show one.

    Raises:
        ConfigError: a number is outside what is allowed, or a task or method is named twice.
    """

    folder: Path
    envs: Sequence[str]
    algo: str = "a2c"
    methods: Sequence[str] = ("vanilla", "data-parallel", "target", "optex")
    seeds: int = 10
    tuning_seeds: int = 5
    learning_rates: Sequence[float] = (0.5, 1.0, 2.0, 4.0)
    ent_coefs: Sequence[float] = ()
    thresholds: Mapping[str, float] = field(default_factory=dict)
    until_threshold: bool = False
    overrides: Mapping[str, Any] = field(default_factory=dict)
    workers: int = 0
    progress_bar: bool = True

    def __post_init__(self) -> None:
        check_between("seeds", self.seeds, 1, MOST_SEEDS)
        check_between("tuning_seeds", self.tuning_seeds, 1, MOST_SEEDS)
        check_between("workers", self.workers, 0, MOST_WORKERS)
        for name in ("envs", "methods"):
            given = list(getattr(self, name))
            if not given or len(set(given)) < len(given):
                raise ConfigError(f"{name} must be given, each once, got {', '.join(given) or 'none'}")
        if not self.learning_rates or min(self.learning_rates) <= 0:
            raise ConfigError(f"learning_rates must be factors above 0, got {list(self.learning_rates)}")

    def base(self, env: str, method: str) -> RunConfig:
        """The options of ``method`` on task ``env`` before any tuning; stable-baselines3 comes tuned.

        Raises:
            ConfigError: the method is unknown, or an option is outside what is allowed.
        """
        options, _ = method_options(method)
        if is_sb3(method):
            kept = {name: value for name, value in self.overrides.items() if name == "eval_episodes"}
            return Sb3Config(**options, **kept, env=env)
        config = TrainConfig.recommended(**{"algo": self.algo, **self.overrides, **options, **QUIET, "env": env})
        check_at_least("eval_freq", config.eval_freq, 1)
        return config

    def axes(self, env: str, method: str) -> list[Axis]:
        """What is tuned of ``method`` on task ``env``, the learning rate first; nothing of stable-baselines3's."""
        config = self.base(env, method)
        if not isinstance(config, TrainConfig):
            return []
        rates = [float(f"{config.learning_rate * factor:.6g}") for factor in self.learning_rates]
        grids: dict[str, Sequence[float]] = {"learning_rate": rates, "ent_coef": self.ent_coefs or [config.ent_coef]}
        grids |= method_options(method)[1]
        return [Axis.make(name, values, getattr(config, name)) for name, values in grids.items()]

    def job(self, env: str, method: str, setting: Setting, seed: int) -> Job:
        """The run of ``method`` on ``env`` with ``seed`` and a ``setting``: a value for each of its `axes`."""
        config, axes = self.base(env, method), self.axes(env, method)
        values: dict[str, Any] = {axis.name: value for axis, value in zip(axes, setting, strict=True)}
        name = ", ".join(f"{SHORT.get(axis.name, axis.name)} {values[axis.name]:g}" for axis in axes if axis.is_named)
        until = threshold_of(env, self.thresholds) if self.until_threshold else None
        return Job.make(method, name or "rl_zoo3", dataclasses.replace(config, **values), seed, until)

    def batches(self, env: str, method: str) -> Iterator[list[Job]]:
        """The runs of ``method`` on ``env``, batch after batch: those of its tuning, each resting on the ones before,
        then the final ones. A batch must be done before the next is asked for.
        """
        axes = self.axes(env, method)

        def tuning(setting: Setting, seeds: int) -> list[Job]:
            return [self.job(env, method, setting, FIRST_TUNING_SEED + seed) for seed in range(seeds)]

        def score(setting: Setting, seeds: int) -> tuple[float, float]:
            curves = [read_run(self.folder / job.file_name).curve for job in tuning(setting, seeds)]
            return tuning_score(curves, threshold_of(env, self.thresholds))

        trials = search(axes, self.tuning_seeds, score)
        try:
            while True:
                settings, seeds = next(trials)
                # Seed by seed, so that other load on the machine slows all settings alike.
                yield sorted((job for s in settings for job in tuning(s, seeds)), key=lambda job: job.config.seed)
        except StopIteration as stop:
            best: Setting = stop.value
        yield [self.job(env, method, best, seed) for seed in range(self.seeds)]


def run_sweep(sweep: Sweep) -> StopRequest:
    """Do all runs of ``sweep`` that are missing; Ctrl-C and SIGTERM end it, and what is finished is kept.

    Returns:
        Whether it was stopped, and by which signal.

    Raises:
        ConfigError: a task, method or option cannot be used, or a task has no threshold; nothing was run then.
        RunFolderError: the folder holds runs with other options, or another process is writing to it.
        NumericalError, OptExError: a run or a worker failed.
    """
    for cell in itertools.product(sweep.envs, sweep.methods):
        threshold_of(cell[0], sweep.thresholds)
        check_can_run(next(sweep.batches(*cell))[0].config)
    workers = sweep.workers or os.cpu_count() or 1
    context = multiprocessing.get_context("spawn")
    with (
        locked(sweep.folder),
        stop_on_interrupt() as stop,
        progress_bar(sweep.progress_bar, unit="run", dynamic_ncols=True, bar_format=BAR) as bar,
        ProcessPoolExecutor(workers, mp_context=context, initializer=_begin_worker) as pool,
    ):
        runner = Runner(sweep, pool, bar, workers)
        try:
            for env in sweep.envs:
                runner.run_task(env, stop)
        except BrokenProcessPool as error:
            # A signal to the whole process group ends the workers, too, and may be seen there first.
            if not stop.comes_within(LATEST_SIGNAL):
                raise OptExError(
                    "a worker process died, perhaps because memory ran out; the finished runs are kept"
                ) from error
        finally:
            runner.give_up()
    return stop


class Runner:
    """Keeps the workers busy: each method starts its next batch as soon as the last one is done.

    Args:
        sweep: what is run.
        pool: the workers.
        bar: shows how many runs are done, of how many that are known, and when they will end.
        workers: how many there are.
    """

    def __init__(self, sweep: Sweep, pool: ProcessPoolExecutor, bar: Any, workers: int) -> None:
        self.sweep, self.pool, self.bar, self.workers = sweep, pool, bar, workers
        self._pending: dict[Future[float], Cell] = {}
        self._seconds: dict[Cell, list[float]] = {}  # of the runs done here
        self._tuning = set(itertools.product(sweep.envs, sweep.methods))  # cells whose final runs are still to come

    def run_task(self, env: str, stop: StopRequest) -> None:
        """All runs of a task, until a stop is requested."""
        batches = {(env, method): self.sweep.batches(env, method) for method in self.sweep.methods}
        for cell, iterator in batches.items():
            self._submit(cell, iterator)
        while self._pending and not stop.requested:
            done, _ = wait(self._pending, timeout=0.5, return_when=FIRST_COMPLETED)
            for future in done:
                cell = self._pending.pop(future)
                self._seconds.setdefault(cell, []).append(future.result())
                self.bar.update()
                if cell not in self._pending.values():
                    self._submit(cell, batches[cell])
            self._show()

    def _submit(self, cell: Cell, batches: Iterator[list[Job]]) -> None:
        """Submit a method's next batch that is not complete, if there is one."""
        for batch in batches:
            missing = [job for job in batch if not is_done(job, self.sweep.folder)]
            if batch[0].config.seed < FIRST_TUNING_SEED:
                self._tuning.discard(cell)
                self.bar.update(len(batch) - len(missing))
            if missing:
                with without_interrupts():  # for the processes that this starts
                    self._pending |= {self.pool.submit(run_job, job, self.sweep.folder): cell for job in missing}
                return

    def _show(self) -> None:
        """How many runs are known to be left, and when they end if they take as long as those of their kind did."""
        left = Counter(self._pending.values()) + Counter(dict.fromkeys(self._tuning, self.sweep.seeds))
        self.bar.total = self.bar.n + left.total()
        seconds = expected_seconds(left, self._seconds) / self.workers
        ending = time.strftime("ends about %H:%M", time.localtime(time.time() + seconds))
        self.bar.set_postfix_str(ending, refresh=shows_bars())  # a line each time would be two in a second

    def give_up(self) -> None:
        """End the runs under way, if there are any, and wait for the pool's thread: one that outlives the pool prints a
        traceback if the interpreter ends at the wrong moment.
        """
        if self._pending:
            for process in multiprocessing.active_children():
                process.terminate()
            self.pool.shutdown(cancel_futures=True)


def expected_seconds(left: Mapping[Cell, int], taken: Mapping[Cell, Sequence[float]]) -> float:
    """Seconds that runs will take on one worker.

    A run takes the mean of those of its method on its task that are known, else of its method, else of all.
    """

    def mean(cell: Cell) -> float:
        of_method = [s for other, seconds in taken.items() if other[1] == cell[1] for s in seconds]
        known = taken.get(cell) or of_method or [s for seconds in taken.values() for s in seconds]
        return math.fsum(known) / max(1, len(known))

    return math.fsum(count * mean(cell) for cell, count in left.items())


def _begin_worker() -> None:
    """One thread; leave Ctrl-C to the parent, and end with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    keep_freed_memory()
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
