"""Many runs at once: methods × settings × seeds over the cores, and what is left of them after an interruption."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from tqdm import tqdm

from .comparison import area, interquartile_mean
from .config import TrainConfig
from .errors import ConfigError, OptExError, RunFolderError
from .interrupts import StopRequest, stop_on_interrupt
from .options import check_at_least, check_between
from .race_methods import is_sb3, method_options
from .race_runs import FIRST_TUNING_SEED, Job, Run, RunConfig, check_can_run, is_done, read_run, run_job
from .rl_zoo3 import Sb3Config
from .runs import locked

MOST_SEEDS: Final = 10**4
MOST_WORKERS: Final = 1024
UNUSED: Final[dict[str, Any]] = {"logdir": None, "run_name": None, "progress_bar": False, "checkpoint_freq": 0}


@dataclass(frozen=True, kw_only=True)
class Race:
    """What is compared with what.

    Every method has the same tuning budget on every task: all learning rates times all entropy coefficients. With
    ``tuning_seeds`` seeds of their own the setting with the largest area under the curve is chosen; the final runs,
    with other seeds, are made with that one only.

    Args:
        folder: where the runs are kept; the same folder goes on with what is missing.
        envs: tasks.
        algo: the agent of methods that do not name one.
        methods: see `optex_rl.race_methods`.
        seeds: final runs of each method on each task.
        tuning_seeds: tuning runs of each setting.
        learning_rates: factors on the learning rate of the task's settings.
        ent_coefs: entropy coefficients; that of the task's settings if empty.
        all_settings: make the final runs with every setting, and no tuning runs.
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
    tuning_seeds: int = 3
    learning_rates: Sequence[float] = (1.0, 2.0, 4.0, 8.0)
    ent_coefs: Sequence[float] = ()
    all_settings: bool = False
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

    def settings(self, env: str, method: str) -> dict[str, RunConfig]:
        """The tuning budget of a method on a task, by name; stable-baselines3 comes tuned.

        Raises:
            ConfigError: the method is unknown, or an option is outside what is allowed.
        """
        options = method_options(method)
        if is_sb3(method):
            kept = {name: value for name, value in self.overrides.items() if name == "eval_episodes"}
            return {"rl_zoo3": Sb3Config(**options, **kept, env=env)}
        base = TrainConfig.recommended(**{"algo": self.algo, **self.overrides, **options, **UNUSED, "env": env})
        check_at_least("eval_freq", base.eval_freq, 1)
        budget: dict[str, RunConfig] = {}
        for factor, ent_coef in itertools.product(self.learning_rates, self.ent_coefs or [base.ent_coef]):
            rate = float(f"{base.learning_rate * factor:.6g}")  # 3e-3 · 4 is 0.012, not 0.0120…01
            words = f"lr {rate:g}" + (f", ent {ent_coef:g}" if self.ent_coefs else "")
            budget[words] = dataclasses.replace(base, learning_rate=rate, ent_coef=float(ent_coef))
        return budget

    def tuning_jobs(self, env: str, method: str) -> list[Job]:
        """The runs that the choice of a setting rests on; none if there is nothing to choose."""
        settings = self.settings(env, method)
        if self.all_settings or len(settings) == 1:
            return []
        seeds = range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + self.tuning_seeds)
        return [Job.make(method, name, config, seed) for seed in seeds for name, config in settings.items()]

    def final_jobs(self, env: str, method: str) -> list[Job]:
        """The runs that are reported; the tuning runs must be done.

        Raises:
            RunFolderError: a tuning run is missing.
        """
        settings = self.settings(env, method)
        tuning = self.tuning_jobs(env, method)
        if tuning:
            chosen = best_setting([read_run(self.folder / job.file_name) for job in tuning])
            settings = {chosen: settings[chosen]}
        return [Job.make(method, n, config, seed) for seed in range(self.seeds) for n, config in settings.items()]


def best_setting(runs: Sequence[Run]) -> str:
    """The setting with the largest interquartile mean of the areas under its runs' curves."""
    areas: dict[str, list[float]] = {}
    for run in runs:
        areas.setdefault(run.setting, []).append(area(run.curve))
    return max(areas, key=lambda setting: float(interquartile_mean(areas[setting])))


def run_race(race: Race) -> StopRequest:
    """Do all runs that are missing; Ctrl-C and SIGTERM end it, and what is finished is kept.

    Returns:
        Whether it was stopped, and by which signal.

    Raises:
        ConfigError: a task, method or option cannot be used; nothing was run then.
        RunFolderError: the folder holds runs with other options, or another process is at it.
        NumericalError, OptExError: a run or a worker failed.
    """
    cells = list(itertools.product(race.envs, race.methods))
    for cell in cells:
        check_can_run(next(iter(race.settings(*cell).values())))
    try:
        race.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFolderError(f"the folder {race.folder} cannot be made: {error.strerror}") from error
    finals = [race.seeds * (len(race.settings(*cell)) if race.all_settings else 1) for cell in cells]
    total = sum(finals) + sum(len(race.tuning_jobs(*cell)) for cell in cells)
    workers = race.workers or os.cpu_count() or 1
    context = multiprocessing.get_context("spawn")
    with (
        locked(race.folder),
        stop_on_interrupt() as stop,
        tqdm(total=total, unit="run", disable=not race.progress_bar, dynamic_ncols=True, smoothing=0) as bar,
        ProcessPoolExecutor(workers, mp_context=context, initializer=_begin_worker) as pool,
    ):
        for stage in _stages(race):
            missing = [job for job in stage if not is_done(job, race.folder)]
            bar.update(len(stage) - len(missing))
            _run_all(missing, race.folder, pool, bar, stop)
            if stop.requested:
                break
    return stop


def _stages(race: Race) -> Iterator[list[Job]]:
    """Runs that may go on beside each other: for each task the tuning runs of all methods, then the final ones.

    Seed by seed, so that whatever else the machine does falls on all methods alike.
    """
    for env in race.envs:
        for jobs_of in (race.tuning_jobs, race.final_jobs):
            jobs = [job for method in race.methods for job in jobs_of(env, method)]
            yield sorted(jobs, key=lambda job: job.config.seed)


def _run_all(jobs: Sequence[Job], folder: Path, pool: ProcessPoolExecutor, bar: Any, stop: StopRequest) -> None:
    """Do runs until none is left or somebody asks to stop; then the runs under way are given up."""
    pending = {pool.submit(functools.partial(run_job, job, folder)) for job in jobs}
    try:
        while pending and not stop.requested:
            done, pending = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
            for future in done:
                future.result()
                bar.update()
    except BrokenProcessPool as error:
        raise OptExError("a worker process died, perhaps for want of memory; the finished runs are kept") from error
    finally:
        if pending:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()


def _begin_worker() -> None:
    """One thread; leave Ctrl-C to the parent, and end with it."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
