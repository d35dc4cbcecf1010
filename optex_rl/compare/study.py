"""Tuning with Optuna: options are searched in ranges, trials that fall behind end early, a study can be resumed.

`optex_rl.compare.tuning` tunes methods for a comparison, by grids that are the same for all; this is for one task of
one's own. Needs the extra ``tune``.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import optuna
from optuna.distributions import distribution_to_json
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import URL, event
from sqlalchemy.exc import SQLAlchemyError

from ..common.errors import NumericalError, RunFolderError
from ..common.storage import write_atomically
from ..common.validation import check_at_least, check_between
from ..runner.folder import locked
from ..runner.log import progress_bar as make_bar
from ..runner.loop import train
from ..runner.signals import stop_on_interrupt
from ..training.config import LARGEST, TrainConfig
from .jobs import FIRST_TUNING_SEED, QUIET, check_can_run
from .objective import Reports
from .search_space import Space, ends, holds, usual_space

NAME: Final = "optex-rl"  # of the study in its database
IDENTITY: Final = "options"  # the attribute that says what the study is about
MOST_TRIALS: Final = 10**5
FACTORS: Final = (1.0, 2.0, 4.0, 0.5)  # on the learning rate, in the first trials
RANDOM_TRIALS: Final = 5  # before the search models what is known, and before a trial may be pruned
FINISHED: Final = (TrialState.COMPLETE, TrialState.PRUNED)


@dataclass(frozen=True, kw_only=True)
class Study:
    """A search for the options with which a task is learnt best.

    A trial trains once with each of the tuning seeds, the same in all trials. With a threshold its value is that of
    `optex_rl.compare.statistics.tuning_score`, the geometric mean of the iterations to it; without one it is the mean
    return of all periodic evaluations, which is the area under the learning curve. The first trial has the options of
    ``config``, the next ones 2, 4 and ½ times its learning rate, if that is searched, as in a comparison; the others
    follow the tree-structured Parzen estimator (Bergstra et al., 2011, NeurIPS 24). A trial whose value is worse than
    the median of the completed ones after as many runs, or evaluations, is pruned.

    Args:
        folder: of study.db, which keeps the trials, and of trials.csv and best.yml.
        config: the options that are not searched, and the first trial's values of those that are.
        space: what is searched; by default see `usual_space`.
        threshold: the return that is to be reached in few iterations, or None.
        trials: finished trials in all, those of earlier calls included.
        seeds: runs of a trial.
        seed: of the search.

    Raises:
        ConfigError: a number, or an end of a range, is outside what is allowed, or nothing would be evaluated.
    """

    folder: Path
    config: TrainConfig
    space: Space = field(default_factory=dict)
    threshold: float | None = None
    trials: int = 20
    seeds: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        check_between("trials", self.trials, 1, MOST_TRIALS)
        check_between("seeds", self.seeds, 1, FIRST_TUNING_SEED)
        check_at_least("eval_freq", self.config.eval_freq, 1)
        if self.threshold is not None:
            check_between("threshold", self.threshold, -LARGEST, LARGEST, "a number", "none")
        if not self.space:
            object.__setattr__(self, "space", usual_space(self.config))
        for name, distribution in self.space.items():
            for value in ends(distribution):
                self.configuration({name: value})

    def configuration(self, values: Mapping[str, Any], seed: int = 0) -> TrainConfig:
        """The options of a trial with these values, in its run with the tuning seed of number ``seed``."""
        return dataclasses.replace(self.config, **{**values, **QUIET}, seed=FIRST_TUNING_SEED + seed)

    def first_values(self) -> list[dict[str, Any]]:
        """The values of the trials that are not left to the search: those of the options given, if they are allowed."""
        factors = FACTORS if "learning_rate" in self.space else FACTORS[:1]
        values = [{name: getattr(self.config, name) for name in self.space} for _ in factors]
        for trial, factor in zip(values[1:], factors[1:], strict=True):
            trial["learning_rate"] *= factor
        return [trial for trial in values if all(holds(self.space[name], value) for name, value in trial.items())]

    def identity(self) -> dict[str, str]:
        """What decides the values of the trials: a folder holds one study."""
        options = {name: repr(value) for name, value in self.configuration({}).values().items()}
        ranges = {name: distribution_to_json(distribution) for name, distribution in self.space.items()}
        own = {"threshold": self.threshold, "seeds": self.seeds, "search seed": self.seed}
        return {**options, "search": repr(ranges), **{name: repr(value) for name, value in own.items()}}


class Findings(NamedTuple):
    """What a study has found so far.

    Attributes:
        values: the best trial's values of the options that were searched.
        score: its value: iterations to the threshold, or the mean return.
        first: the same with the options that were given; None if they are not among what is searched.
        finished, pruned: trials that are done, and how many of these ended early.
        signal: number of the signal that stopped the search, or None.
    """

    values: dict[str, Any]
    score: float
    first: float | None
    finished: int
    pruned: int
    signal: int | None


def run_study(study: Study, *, progress_bar: bool = True) -> Findings:
    """Do the trials of ``study`` that are missing; Ctrl-C and SIGTERM end it, and what is finished is kept.

    ``progress_bar`` shows them, and what is known by then is returned. A trial that was interrupted is done again. A
    study that is stopped and resumed tries what one that nothing stops does: each trial's values are drawn by a
    generator of its own.

    Raises:
        ConfigError: the task or an option cannot be used; nothing is run then.
        RunFolderError: the folder cannot be written or read, holds a study with other options, or is in use.
        NumericalError: no trial could be finished.
    """
    check_can_run(study.configuration({}))
    bar = make_bar(progress_bar, total=study.trials, unit="trial", dynamic_ncols=True)
    with closing(bar), opened(study) as storage, stop_on_interrupt() as stop:
        signal, first = None, study.first_values()
        while len(done := finished(storage)) < study.trials and not stop.requested and signal is None:
            bar.update(len(done) - bar.n)
            if len(done) < len(first) and not storage.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
                storage.enqueue_trial(first[len(done)])
            number = np.random.SeedSequence([study.seed, len(done)]).generate_state(1)[0]
            storage.sampler = optuna.samplers.TPESampler(seed=int(number), n_startup_trials=RANDOM_TRIALS)
            signal = run_trial(study, storage)
            write_reports(study, storage)
        bar.update(len(done) - bar.n)
        return find_best(study, storage, stop.number if signal is None else signal)


def finished(storage: optuna.Study) -> list[FrozenTrial]:
    """The trials that are done, pruned ones included."""
    return storage.get_trials(deepcopy=False, states=FINISHED)


@contextmanager
def opened(study: Study) -> Iterator[optuna.Study]:
    """The study in its folder, which no other process may use meanwhile; what was interrupted is to be done again."""
    try:
        with locked(study.folder), database(study.folder / "study.db") as trials:
            storage = optuna.create_study(
                storage=trials,
                study_name=NAME,
                load_if_exists=True,
                direction="maximize" if study.threshold is None else "minimize",
                pruner=optuna.pruners.MedianPruner(RANDOM_TRIALS, n_warmup_steps=steps_before_pruning(study)),
            )
            check_identity(study, storage)
            requeue(storage)
            yield storage
    except (sqlite3.Error, SQLAlchemyError, optuna.exceptions.OptunaError) as error:
        reason = str(error).splitlines()[0]
        raise RunFolderError(f"the study in {study.folder} cannot be read or written: {reason}") from error


@contextmanager
def database(path: Path) -> Iterator[optuna.storages.RDBStorage]:
    """The storage of a study, made if it is missing; its connections are closed at the end.

    A write-ahead log keeps the file whole whatever happens, and does without bringing each report to the disk, which
    would take longer than a short evaluation.
    """
    with closing(sqlite3.connect(path)) as connection:  # refuses what is no database; the file remembers its mode
        connection.execute("PRAGMA journal_mode = WAL")
    storage = optuna.storages.RDBStorage(URL.create("sqlite", database=str(path)).render_as_string())
    event.listen(storage.engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous = NORMAL"))
    storage.engine.dispose()  # connections that were made before
    try:
        yield storage
    finally:
        storage.remove_session()
        storage.engine.dispose()


def steps_before_pruning(study: Study) -> int:
    """Reports of a trial before it may be pruned: two runs, or evaluations of the first quarter of its first run."""
    return 3 if study.threshold is not None else study.config.iterations // study.config.eval_freq // 4


def check_identity(study: Study, storage: optuna.Study) -> None:
    """Note what the study is about, or refuse a folder in which that is something else."""
    expected = study.identity()
    if IDENTITY not in storage.user_attrs:
        storage.set_user_attr(IDENTITY, expected)
    saved = storage.user_attrs[IDENTITY]
    for name, text in expected.items():
        if saved.get(name) != text:
            said = f"with {name} {saved.get(name)}, and {text} is asked for"
            raise RunFolderError(f"{study.folder} holds a study {said}: choose another folder")


def requeue(storage: optuna.Study) -> None:
    """Trials that a stop or a crash interrupted begin once more."""
    for trial in storage.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        storage.tell(trial.number, state=TrialState.FAIL)
        storage.enqueue_trial(trial.params)


def run_trial(study: Study, storage: optuna.Study) -> int | None:
    """One trial, from its values to its end.

    Returns:
        The number of the signal that stopped it, which leaves it unfinished; None if it came to an end.
    """
    reports = Reports(storage.ask(dict(study.space)), study.threshold)
    try:
        for seed in range(study.seeds):
            signal = run_once(study.configuration(reports.trial.params, seed), reports)
            if signal is not None:
                return signal
            reports.end_run(study.config.iterations)
    except (optuna.TrialPruned, NumericalError):
        storage.tell(reports.trial, state=TrialState.PRUNED)
    else:
        storage.tell(reports.trial, reports.value)
    return None


def run_once(config: TrainConfig, reports: Reports) -> int | None:
    """One run of a trial; returns the number of the signal that stopped it, or None."""
    return train(config, callbacks=reports.callbacks()).signal


def write_reports(study: Study, storage: optuna.Study) -> None:
    """Write trials.csv, a line for each finished trial, and best.yml, the options of the best one."""
    text = io.StringIO(newline="")
    table = csv.writer(text)
    value, reports = ("mean_return", "evaluations") if study.threshold is None else ("iterations", "runs")
    table.writerow(["trial", *study.space, value, reports, "state"])
    for trial in finished(storage):
        seen = trial.intermediate_values
        score = trial.value if trial.value is not None else seen[max(seen)] if seen else ""
        values = [trial.params[name] for name in study.space]
        table.writerow([trial.number, *values, score, len(seen), trial.state.name.lower()])
    write_atomically(study.folder / "trials.csv", text.getvalue().encode())
    if any(trial.state is TrialState.COMPLETE for trial in finished(storage)):
        dataclasses.replace(study.config, **storage.best_params).save(study.folder / "best.yml")


def find_best(study: Study, storage: optuna.Study, signal: int | None) -> Findings:
    """What is known by now.

    Raises:
        NumericalError: no trial has come to its end.
    """
    done = finished(storage)
    if not any(trial.state is TrialState.COMPLETE for trial in done):
        if signal is not None:
            return Findings({}, math.nan, None, len(done), len(done), signal)
        raise NumericalError("no trial came to its end: search lower learning rates")
    pruned = sum(trial.state is TrialState.PRUNED for trial in done)
    given = {name: getattr(study.config, name) for name in study.space}
    first = next((trial.value for trial in done if trial.params == given), None)
    return Findings(storage.best_params, storage.best_value, first, len(done), pruned, signal)
