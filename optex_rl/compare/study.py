"""Tuning with Optuna: options are searched in ranges, trials that fall behind end early, a study can be resumed.

`optex_rl.compare.tuning` tunes methods for a comparison, by grids that are the same for all; this is for one task of
one's own. Needs the extra ``tune``.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import math
import statistics
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import optuna
from optuna.distributions import distribution_to_json
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import URL, NullPool, event
from sqlalchemy.exc import SQLAlchemyError
from tqdm import tqdm

from ..common.errors import NumericalError, RunFolderError
from ..common.storage import write_atomically
from ..common.validation import check_at_least, check_between
from ..runner.callbacks import OptunaPruningCallback
from ..runner.folder import locked
from ..runner.loop import train
from ..runner.signals import stop_on_interrupt
from ..training.config import TrainConfig
from .jobs import FIRST_TUNING_SEED, check_can_run
from .search_space import Space, ends, usual_space

NAME: Final = "optex-rl"  # of the study in its database
IDENTITY: Final = "options"  # the attribute that says what the study is about
MOST_TRIALS: Final = 10**5
RANDOM_TRIALS: Final = 5  # before the search models what is known, and before a trial may be pruned
FINISHED: Final = (TrialState.COMPLETE, TrialState.PRUNED)
QUIET: Final[dict[str, Any]] = {"logdir": None, "run_name": None, "progress_bar": False, "checkpoint_freq": 0}


@dataclass(frozen=True, kw_only=True)
class Study:
    """A search for the options with which a task is learnt best.

    A trial trains once with each of the tuning seeds, the same in all trials. Its value is the mean return of all
    periodic evaluations, which is the area under the learning curve: it rewards speed and reliability. The first trial
    has the options of ``config``; the others follow the tree-structured Parzen estimator (Bergstra et al., 2011,
    NeurIPS 24). A trial whose mean so far is below the median of the completed ones at the same evaluation is pruned.

    Args:
        folder: of study.db, which keeps the trials, and of trials.csv and best.yml.
        config: the options that are not searched, and the first trial's values of those that are.
        space: what is searched; by default see `usual_space`.
        trials: finished trials in all, those of earlier calls included.
        seeds: runs of a trial.
        seed: of the search.

    Raises:
        ConfigError: a number, or an end of a range, is outside what is allowed, or nothing would be evaluated.
    """

    folder: Path
    config: TrainConfig
    space: Space = field(default_factory=dict)
    trials: int = 20
    seeds: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        check_between("trials", self.trials, 1, MOST_TRIALS)
        check_between("seeds", self.seeds, 1, FIRST_TUNING_SEED)
        check_at_least("eval_freq", self.config.eval_freq, 1)
        if not self.space:
            object.__setattr__(self, "space", usual_space(self.config))
        for name, distribution in self.space.items():
            for value in ends(distribution):
                self.configuration({name: value})

    def configuration(self, values: Mapping[str, Any], seed: int = 0) -> TrainConfig:
        """The options of a trial with these values, in its run with the tuning seed of number ``seed``."""
        return dataclasses.replace(self.config, **{**values, **QUIET}, seed=FIRST_TUNING_SEED + seed)

    def identity(self) -> dict[str, str]:
        """What decides the values of the trials: a folder holds one study."""
        options = {name: repr(value) for name, value in self.configuration({}).values().items()}
        ranges = {name: distribution_to_json(distribution) for name, distribution in self.space.items()}
        return {**options, "search": repr(ranges), "seeds": repr(self.seeds), "search seed": repr(self.seed)}


class Findings(NamedTuple):
    """What a study has found so far.

    Attributes:
        values: the best trial's values of the options that were searched.
        score: its mean return over all evaluations and seeds.
        first: the same of the first trial, whose options are those that were given; None if it has none.
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
    bar = tqdm(total=study.trials, unit="trial", disable=not progress_bar, dynamic_ncols=True)
    with closing(bar), opened(study) as storage, stop_on_interrupt() as stop:
        signal = None
        while len(done := finished(storage)) < study.trials and not stop.requested and signal is None:
            bar.update(len(done) - bar.n)
            number = np.random.SeedSequence([study.seed, len(done)]).generate_state(1)[0]
            storage.sampler = optuna.samplers.TPESampler(seed=int(number), n_startup_trials=RANDOM_TRIALS)
            signal = run_trial(study, storage)
            write_reports(study, storage)
        bar.update(len(done) - bar.n)
        return find_best(storage, stop.number if signal is None else signal)


def finished(storage: optuna.Study) -> list[FrozenTrial]:
    """The trials that are done, pruned ones included."""
    return storage.get_trials(deepcopy=False, states=FINISHED)


@contextmanager
def opened(study: Study) -> Iterator[optuna.Study]:
    """The study in its folder, which no other process may use meanwhile; what was interrupted is to be done again."""
    try:
        study.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFolderError(f"the folder {study.folder} cannot be made: {error.strerror}") from error
    try:
        with locked(study.folder):
            storage = optuna.create_study(
                storage=database(study.folder / "study.db"),
                study_name=NAME,
                load_if_exists=True,
                direction="maximize",
                pruner=optuna.pruners.MedianPruner(RANDOM_TRIALS, n_warmup_steps=first_quarter(study)),
            )
            check_identity(study, storage)
            requeue(study, storage)
            yield storage
    except (SQLAlchemyError, optuna.exceptions.OptunaError) as error:
        reason = str(error).splitlines()[0]
        raise RunFolderError(f"the study in {study.folder} cannot be read or written: {reason}") from error


def database(path: Path) -> optuna.storages.RDBStorage:
    """The storage of a study, made if it is missing; a connection is closed after each use.

    A write-ahead log keeps the file whole whatever happens, and does without bringing each report to the disk, which
    would take longer than a short evaluation.
    """
    url = URL.create("sqlite", database=str(path)).render_as_string()
    storage = optuna.storages.RDBStorage(url, engine_kwargs={"poolclass": NullPool})

    @event.listens_for(storage.engine, "connect")
    def begin(connection: Any, _: Any) -> None:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")

    return storage


def first_quarter(study: Study) -> int:
    """Evaluations of the first quarter of a trial's first run, in which it is not pruned."""
    return study.config.iterations // study.config.eval_freq // 4


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


def requeue(study: Study, storage: optuna.Study) -> None:
    """The options given come first; trials that a stop or a crash interrupted begin once more."""
    if not storage.get_trials(deepcopy=False):
        storage.enqueue_trial({name: getattr(study.config, name) for name in study.space})
    for trial in storage.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        storage.tell(trial.number, state=TrialState.FAIL)
        storage.enqueue_trial(trial.params)


class Reports:
    """Stands in for a trial over its runs, for `OptunaPruningCallback`: what is reported is the mean so far.

    Args:
        trial: the trial.
    """

    def __init__(self, trial: optuna.Trial) -> None:
        self.trial = trial
        self.returns: list[float] = []

    def report(self, value: float, step: int) -> None:
        """Take the mean return of an evaluation, the next one of the trial whatever its ``step`` within the run."""
        self.returns.append(value)
        self.trial.report(statistics.fmean(self.returns), len(self.returns))

    def should_prune(self) -> bool:
        """Whether the trial is to end."""
        return self.trial.should_prune()


def run_trial(study: Study, storage: optuna.Study) -> int | None:
    """One trial, from its values to its end.

    Returns:
        The number of the signal that stopped it, which leaves it unfinished; None if it came to an end.
    """
    reports = Reports(storage.ask(dict(study.space)))
    try:
        for seed in range(study.seeds):
            signal = run_once(study.configuration(reports.trial.params, seed), reports)
            if signal is not None:
                return signal
    except (optuna.TrialPruned, NumericalError):
        storage.tell(reports.trial, state=TrialState.PRUNED)
    else:
        storage.tell(reports.trial, statistics.fmean(reports.returns))
    return None


def run_once(config: TrainConfig, reports: Reports) -> int | None:
    """One run of a trial; returns the number of the signal that stopped it, or None."""
    return train(config, callbacks=[OptunaPruningCallback(reports)]).signal


def write_reports(study: Study, storage: optuna.Study) -> None:
    """Write trials.csv, a line for each finished trial, and best.yml, the options of the best one."""
    text = io.StringIO(newline="")
    table = csv.writer(text)
    table.writerow(["trial", *study.space, "mean_return", "evaluations", "state"])
    for trial in finished(storage):
        seen = trial.intermediate_values
        score = trial.value if trial.value is not None else seen[max(seen)] if seen else ""
        values = [trial.params[name] for name in study.space]
        table.writerow([trial.number, *values, score, len(seen), trial.state.name.lower()])
    write_atomically(study.folder / "trials.csv", text.getvalue().encode())
    if any(trial.state is TrialState.COMPLETE for trial in finished(storage)):
        dataclasses.replace(study.config, **storage.best_params).save(study.folder / "best.yml")


def find_best(storage: optuna.Study, signal: int | None) -> Findings:
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
    first = min(done, key=lambda trial: trial.number)
    return Findings(storage.best_params, storage.best_value, first.value, len(done), pruned, signal)
