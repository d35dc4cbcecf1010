"""The command optex-rl tune: its flags, and what it prints."""

from __future__ import annotations

import argparse
import importlib.util
from itertools import starmap
from pathlib import Path
from typing import Any, Final

from ..common.errors import ConfigError
from ..training.config import TrainConfig
from .flags import add_config_arguments, given_options

KNOWN: Final = "known"  # the threshold of a task that has one
# Decided by the search itself, or without a meaning in it.
LEFT_OUT: Final = ("seed", "logdir", "run_name", "checkpoint_freq", "eval_freq", "progress_bar")
DESCRIPTION: Final = """\
Search for the options with which a task is learnt best, with Optuna (extra tune). A trial trains once with each of the
tuning seeds. Its value is the geometric mean of the iterations to the threshold, where runs end; without a threshold it
is the mean return of all periodic evaluations, the area under the learning curve. The first trial has the options that
are given, else the task's presets; trials that fall behind end early. Finished trials are kept in --folder: the same
command goes on where it was stopped, and a larger --trials adds to them."""
THRESHOLD_HELP: Final = """\
return to be reached in few iterations, or none for the mean return of whole runs (default: of known tasks, else
none)"""
SEARCH_HELP: Final = """\
what is searched: ranges, as in learning_rate=1e-4..1e-2 (by the logarithm where the lower end is above 0), and lists,
as in n_steps=64/128/256 or normalize_obs=yes/no (default: the learning rate, up to ten times lower and higher, and
ent_coef=0..0.05)"""


def add_tune_command(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command to the parser's commands."""
    command = commands.add_parser(
        "tune", parents=[common], help="search for the best options of a task", description=DESCRIPTION
    )
    command.add_argument("--search", nargs="+", default=[], metavar="NAME=VALUES", help=SEARCH_HELP)
    command.add_argument("--trials", type=int, default=20, help="trials in all (default: 20)")
    command.add_argument("--threshold", default=KNOWN, metavar="RETURN", help=THRESHOLD_HELP)
    command.add_argument("--tuning-seeds", type=int, default=10, help="runs of a trial (default: 10)")
    command.add_argument("--search-seed", type=int, default=0, help="seed of the search (default: 0)")
    command.add_argument("--eval-freq", type=int, default=1, help="iterations between two evaluations (default: 1)")
    command.add_argument("--folder", type=Path, default=Path("tuning"), help="of the study (default: tuning)")
    command.add_argument("--no-progress-bar", action="store_true", help="show no progress bar")
    add_config_arguments(command, leave_out=LEFT_OUT)
    command.set_defaults(run=run_tune)


def run_tune(options: argparse.Namespace) -> int:
    """The command tune; returns the exit status, 128 plus the number of the signal that stopped it."""
    if importlib.util.find_spec("optuna") is None:
        raise ConfigError("tuning needs Optuna: pip install 'optex-rl[tune]'")
    import optuna  # a second, which the other commands need not wait for

    from ..compare.jobs import THRESHOLDS
    from ..compare.search_space import read_space
    from ..compare.study import Study, run_study

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    given = given_options(vars(options))
    config = TrainConfig.recommended(**given)
    study = Study(
        folder=options.folder,
        config=config,
        space=read_space(options.search),
        threshold=THRESHOLDS.get(config.env_name) if options.threshold == KNOWN else read_threshold(options.threshold),
        trials=options.trials,
        seeds=options.tuning_seeds,
        seed=options.search_seed,
    )
    found = run_study(study, progress_bar=not options.no_progress_bar)
    print(f"{found.finished} of {study.trials} trials, {found.pruned} of them ended early: {study.folder}/trials.csv")
    if found.values:
        beside = "" if found.first is None else f", {found.first:.1f} with the options given"
        kind = "mean return" if study.threshold is None else f"iterations to a return of {study.threshold:g}:"
        print(f"best: {kind} {found.score:.1f}{beside}\n  {' '.join(starmap(as_flag, found.values.items()))}")
    if found.signal is None:
        return 0
    print("the same command goes on")
    return 128 + found.signal


def read_threshold(text: str) -> float | None:
    """The return that a flag names, or None."""
    try:
        return None if text == "none" else float(text)
    except ValueError as error:
        raise ConfigError(f"threshold must be a number or none, got {text!r}") from error


def as_flag(name: str, value: Any) -> str:
    """An option as a flag of train."""
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{flag}" if value else f"--no-{flag}"
    return f"--{flag} {value:.4g}" if isinstance(value, float) else f"--{flag} {value}"
