"""The command optex-rl compare: its flags, and what it prints."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from ..common.errors import ConfigError
from ..runner.plots import new_figure
from ..training.config import CLUSTER
from .flags import add_config_arguments, given_options

# Decided by the comparison itself, or without a meaning in it.
LEFT_OUT: Final = (
    *("env", "method", "seed", "logdir", "run_name", "checkpoint_freq", "eval_freq", "progress_bar"),
    *(*CLUSTER, "step_delay"),
)
DESCRIPTION: Final = """\
Train every method on every task over seeds, all cores busy, and print what each takes. All are tuned by the same
rules: settings that fall behind stop early, those that remain have --tuning-seeds seeds, and a grid whose best value
lies at its edge is extended; the setting with the fewest iterations to the threshold makes the --seeds final runs. Each
finished run is a file in --folder: the same command does only what is missing. table.md, summary.csv, curves.csv,
tuning.csv, plots and TensorBoard events are written there as well. The flags of train are options of all methods;
what is not given comes from each task's presets."""
METHODS_HELP: Final = """\
vanilla, data-parallel, target, optex; mean and last: optex with that predictor; ppo: PPO with the samples of all N
points; sb3-a2c, sb3-ppo: stable-baselines3 with the hyperparameters of rl_zoo3. Each may have options of its own, as in
optex:stride=2,selection=last or sb3-ppo:steps=100000; of several numbers, as in ppo:n_epochs=5/10/20, tuning chooses
one (default: the first four)"""


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
    text = "tuning runs of the settings that remain at the end (default: 5)"
    command.add_argument("--tuning-seeds", type=int, default=5, help=text)
    numbers: dict[str, Any] = {"type": float, "nargs": "+"}
    text = "grid to begin with, as factors on the learning rate; one: no tuning (default: 0.5 1 2 4)"
    command.add_argument("--learning-rates", **numbers, default=[0.5, 1.0, 2.0, 4.0], metavar="FACTOR", help=text)
    text = "tuned after the learning rate (default: that of the task's presets)"
    command.add_argument("--ent-coefs", **numbers, default=[], metavar="ENT_COEF", help=text)
    text = "return to reach, one a task (default: of known tasks)"
    command.add_argument("--threshold", **numbers, default=[], help=text)
    text = "stop a run once it holds its threshold"
    command.add_argument("--until-threshold", action="store_true", help=text)
    command.add_argument("--eval-freq", type=int, default=2, help="iterations between two evaluations (default: 2)")
    command.add_argument("--workers", type=int, default=0, help="runs at once (default: as many as there are cores)")
    command.add_argument("--folder", type=Path, default=Path("comparison"), help="of the runs (default: comparison)")
    command.add_argument("--report-only", action="store_true", help="run nothing, report what is in the folder")
    command.add_argument("--no-progress-bar", action="store_true", help="show no progress bar")
    add_config_arguments(command, leave_out=LEFT_OUT)
    command.set_defaults(run=run_compare)


def run_compare(options: argparse.Namespace) -> int:
    """The command compare; returns the exit status, 128 plus the number of the signal that stopped it."""
    from ..compare.report import write_report  # SciPy takes a second, which the other commands need not wait for

    new_figure(width=1, height=1)  # where Matplotlib is missing, say so before the runs and not after them
    flags = vars(options)
    thresholds = read_thresholds(options.env, options.threshold)
    status = 0 if options.report_only else _run(flags, thresholds)
    if status and not any(options.folder.glob("*.json")):
        print("stopped before a run was finished")
        return status
    print(write_report(options.folder, thresholds))
    print(f"folder       {options.folder}\nTensorBoard  tensorboard --logdir {options.folder / 'tensorboard'}")
    if status:
        print("stopped: the same command does what is missing")
    return status


def read_thresholds(envs: Sequence[str], thresholds: Sequence[float]) -> dict[str, float]:
    """The returns to reach by task, as given.

    Raises:
        ConfigError: there is not one for each task.
    """
    if thresholds and len(thresholds) != len(envs):
        raise ConfigError(f"--threshold needs one number for each of the {len(envs)} tasks, got {len(thresholds)}")
    return dict(zip(envs, thresholds, strict=False))


def _run(flags: Mapping[str, Any], thresholds: Mapping[str, float]) -> int:
    """Do the runs; returns the exit status."""
    from ..compare.sweep import Sweep, run_sweep

    # --env and --workers are the comparison's own, and mean something else there.
    overrides = {name: value for name, value in given_options(flags).items() if name not in ("env", *CLUSTER)}
    names = ("folder", "seeds", "tuning_seeds", "learning_rates", "ent_coefs", "until_threshold", "workers")
    chosen = {name: flags[name] for name in names} | ({"methods": flags["methods"]} if flags["methods"] else {})
    sweep = Sweep(
        **chosen,
        envs=flags["env"],
        algo=overrides.pop("algo", "a2c"),
        thresholds=thresholds,
        overrides=overrides,
        progress_bar=not flags["no_progress_bar"],
    )
    stop = run_sweep(sweep)
    return 128 + stop.number if stop.number is not None else 0
