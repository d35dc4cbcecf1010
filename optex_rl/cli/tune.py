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

# Decided by the search itself, or without a meaning in it.
LEFT_OUT: Final = ("seed", "logdir", "run_name", "checkpoint_freq", "eval_freq", "progress_bar")
DESCRIPTION: Final = """\
Search for the options with which a task is learnt best, with Optuna (extra tune). A trial trains once with each of the
tuning seeds; its value is the mean return of all periodic evaluations, the area under the learning curve. The first
trial has the options that are given, else the task's presets; trials that fall behind end early. Finished trials are
kept in --folder: the same command goes on where it was stopped, and a larger --trials adds to them."""
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
    command.add_argument("--tuning-seeds", type=int, default=3, help="runs of a trial (default: 3)")
    command.add_argument("--search-seed", type=int, default=0, help="seed of the search (default: 0)")
    command.add_argument("--eval-freq", type=int, default=2, help="iterations between two evaluations (default: 2)")
    command.add_argument("--folder", type=Path, default=Path("tuning"), help="of the study (default: tuning)")
    command.add_argument("--no-progress-bar", action="store_true", help="show no progress bar")
    add_config_arguments(command, leave_out=LEFT_OUT)
    command.set_defaults(run=run_tune)


def run_tune(options: argparse.Namespace) -> int:
    """The command tune; returns the exit status, 128 plus the number of the signal that stopped it."""
    if importlib.util.find_spec("optuna") is None:
        raise ConfigError("tuning needs Optuna: pip install 'optex-rl[tune]'")
    import optuna  # a second, which the other commands need not wait for

    from ..compare.search_space import read_space
    from ..compare.study import Study, run_study

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    given = given_options(vars(options))
    study = Study(
        folder=options.folder,
        config=TrainConfig.recommended(**given),
        space=read_space(options.search),
        trials=options.trials,
        seeds=options.tuning_seeds,
        seed=options.search_seed,
    )
    found = run_study(study, progress_bar=not options.no_progress_bar)
    print(f"{found.finished} of {study.trials} trials, {found.pruned} of them ended early: {study.folder}/trials.csv")
    if found.values:
        beside = "" if found.first is None else f", {found.first:.1f} with the options given"
        print(f"best: mean return {found.score:.1f}{beside}\n  {' '.join(starmap(as_flag, found.values.items()))}")
    if found.signal is None:
        return 0
    print("the same command goes on")
    return 128 + found.signal


def as_flag(name: str, value: Any) -> str:
    """An option as a flag of train."""
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{flag}" if value else f"--no-{flag}"
    return f"--{flag} {value:.4g}" if isinstance(value, float) else f"--{flag} {value}"
