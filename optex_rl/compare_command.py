"""The command optex-rl compare: its flags, and what it prints."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from .errors import ConfigError
from .flags import add_config_arguments, given_options
from .plots import new_figure

# Decided by the comparison itself, or without a meaning in it.
LEFT_OUT: Final = ("env", "method", "seed", "logdir", "run_name", "checkpoint_freq", "eval_freq", "progress_bar")
DESCRIPTION: Final = """\
Train every method on every task over seeds, all cores busy, and print what it took. Each method has the same tuning
budget: every learning rate with --tuning-seeds seeds; the one with the largest area under the curve of evaluations
makes the --seeds final runs. Each finished run is a file in --folder: the same command goes on with what is missing.
table.md, summary.csv, curves.csv, pictures and TensorBoard events are written there as well. The flags of train are
options of all methods; what is not given is the tuned setting of each task."""
METHODS_HELP: Final = """\
vanilla, data-parallel, target, optex; mean and last: optex with that predictor; ppo: PPO with the samples of all N
points; sb3-a2c, sb3-ppo: stable-baselines3 with the settings of rl_zoo3. Each may have options of its own, as in
optex:stride=2,selection=last or sb3-ppo:steps=100000 (default: the first four)"""


def add_compare_command(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the command to the parser's commands."""
    command = commands.add_parser(
        "compare", parents=[common], help="run methods side by side over seeds", description=DESCRIPTION
    )
    command.add_argument(
        "--env", nargs="+", default=["CartPole-v1"], metavar="ENV", help="tasks (default: CartPole-v1)"
    )
    command.add_argument("--methods", nargs="+", metavar="METHOD", help=METHODS_HELP)
    command.add_argument("--seeds", type=int, default=10, help="final runs of each method and task (default: 10)")
    command.add_argument("--tuning-seeds", type=int, default=3, help="tuning runs of each setting (default: 3)")
    numbers: dict[str, Any] = {"type": float, "nargs": "+"}
    text = "tuning budget, as factors on the learning rate (default: 1 2 4 8)"
    command.add_argument("--learning-rates", **numbers, default=[1.0, 2.0, 4.0, 8.0], metavar="FACTOR", help=text)
    text = "tuning budget, each with each learning rate (default: that of the task's settings)"
    command.add_argument("--ent-coefs", **numbers, default=[], metavar="ENT_COEF", help=text)
    command.add_argument("--all-settings", action="store_true", help="final runs with every setting, no tuning runs")
    text = "return to reach, one a task (default: of known tasks)"
    command.add_argument("--threshold", **numbers, default=[], help=text)
    command.add_argument("--eval-freq", type=int, default=2, help="iterations between two evaluations (default: 2)")
    command.add_argument("--workers", type=int, default=0, help="runs at once (default: as many as there are cores)")
    command.add_argument("--folder", type=Path, default=Path("comparison"), help="of the runs (default: comparison)")
    command.add_argument("--report-only", action="store_true", help="run nothing, report what is in the folder")
    command.add_argument("--no-progress-bar", action="store_true", help="show no progress bar")
    add_config_arguments(command, leave_out=LEFT_OUT)
    command.set_defaults(run=run_compare)


def run_compare(options: argparse.Namespace) -> int:
    """The command compare; returns the exit status, 128 plus the number of the signal that stopped it."""
    from .race_report import write_report  # SciPy takes a second, which the other commands need not wait for

    new_figure(width=1, height=1)  # where Matplotlib is missing, say so before the runs and not after them
    flags = vars(options)
    thresholds = read_thresholds(options.env, options.threshold)
    status = 0 if options.report_only else _run(flags)
    if status and not any(options.folder.glob("*.json")):
        print("stopped before a run was finished")
        return status
    print(write_report(options.folder, thresholds))
    print(f"folder       {options.folder}\nTensorBoard  tensorboard --logdir {options.folder / 'tensorboard'}")
    if status:
        print("stopped: the same command goes on with what is missing")
    return status


def read_thresholds(envs: Sequence[str], thresholds: Sequence[float]) -> dict[str, float]:
    """The returns to reach by task, as given.

    Raises:
        ConfigError: there is not one for each task.
    """
    if thresholds and len(thresholds) != len(envs):
        raise ConfigError(f"--threshold needs one number for each of the {len(envs)} tasks, got {len(thresholds)}")
    return dict(zip(envs, thresholds, strict=False))


def _run(flags: Mapping[str, Any]) -> int:
    """Do the runs; returns the exit status."""
    from .race import Race, run_race

    overrides = {name: value for name, value in given_options(flags).items() if name != "env"}
    names = ("folder", "seeds", "tuning_seeds", "learning_rates", "ent_coefs", "all_settings", "workers")
    chosen = {name: flags[name] for name in names} | ({"methods": flags["methods"]} if flags["methods"] else {})
    race = Race(
        **chosen,
        envs=flags["env"],
        algo=overrides.pop("algo", "a2c"),
        overrides=overrides,
        progress_bar=not flags["no_progress_bar"],
    )
    stop = run_race(race)
    return 128 + stop.number if stop.number is not None else 0
