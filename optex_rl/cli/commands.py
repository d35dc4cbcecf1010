"""The command line: optex-rl train | evaluate | plot | compare | tune."""

from __future__ import annotations

import argparse
import re
import sys
import threading
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from ..common.errors import ConfigError, OptExError
from ..common.validation import check_between
from ..runner.folder import check_run_dir
from ..runner.loop import TrainResult, resume, train
from ..runner.model import load
from ..runner.video import check_can_record, record_episode
from ..training.config import CLUSTER, LARGEST_SEED, MOST_EPISODES, TrainConfig
from ..training.presets import tuned_options
from ..training.rollouts.evaluator import keep_freed_memory
from .compare import add_compare_command
from .flags import add_config_arguments, given_options, tuned_for
from .own_code import add_trust, working_directory_importable
from .parser import Parser
from .pipes import until_pipes_close
from .tune import add_tune_command

MOST_THREADS: Final = 1024
RESUMABLE: Final = ("iterations", "policy")  # options that may be given with --resume


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit status: 0; 1 error, 2 bad options, 130 Ctrl-C, 141 closed pipe, 143 SIGTERM."""
    return until_pipes_close(lambda: run_command(sys.argv[1:] if arguments is None else arguments))


def run_command(arguments: Sequence[str]) -> int:
    """Run a command; its exit status."""
    try:
        options = build_parser(arguments).parse_args(arguments)
        check_between("threads", options.threads, 1, MOST_THREADS)
        torch.set_num_threads(options.threads)
        with warnings.catch_warnings(), events_fail_silently(), working_directory_importable():
            warnings.showwarning = show_warning
            status: int = options.run(options)
    except OptExError as error:
        print("optex-rl: error:", *str(error).splitlines(), file=sys.stderr)  # one line, whatever it quotes
        return 2 if isinstance(error, ConfigError) else 1
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        print("optex-rl: error: out of memory: choose fewer environments, steps, points or episodes", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("optex-rl: stopped", file=sys.stderr)
        return 130
    return status


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory was refused; of torch's errors only the text says so."""
    return isinstance(error, MemoryError) or {"allocate", "memory"} <= set(re.findall("[a-z]+", str(error)))


@contextmanager
def events_fail_silently() -> Iterator[None]:
    """A block without tracebacks of TensorBoard's thread on a full disk, whose error is raised at the next event."""
    before = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        is_writer = type(args.thread).__module__.startswith("tensorboard.")
        if not (is_writer and issubclass(args.exc_type, OSError)):
            before(args)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before


def show_warning(message: Warning | str, *details: Any, **more: Any) -> None:
    """A warning as one sentence, without the line of code that gave it."""
    print(f"optex-rl: warning: {message}", file=sys.stderr)


def build_parser(arguments: Sequence[str] = ()) -> Parser:
    """The parser of all commands; the flags of train are the fields of `TrainConfig`.

    Args:
        arguments: those that will be parsed: the help of train shows the tuned options of the task named there.
    """
    parser = Parser(prog="optex-rl", description="Policy-gradient training with OptEx.")
    parser.add_argument("--version", action="version", version=f"optex-rl {version('optex-rl')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    common = Parser(add_help=False)
    common.add_argument("--threads", type=int, default=1, help="torch threads; more than 1 rarely pays (default: 1)")

    text, (words, tuned) = "train a policy and write its run folder", tuned_for(arguments)
    command = commands.add_parser("train", parents=[common], help=text, description=f"T{text[1:]}. {words}")
    resumed = "resume a run; no other flags but --iterations, --policy, --trust and those of workers"
    command.add_argument("--resume", type=Path, metavar="RUN_DIR", help=resumed)
    add_trust(command)
    add_config_arguments(command, tuned=tuned)
    command.set_defaults(run=run_train)

    command = commands.add_parser("evaluate", parents=[common], help="play episodes with a trained policy")
    command.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    command.add_argument("--episodes", type=int, default=100, help="how many (default: 100)")
    command.add_argument("--seed", type=int, default=0, help="of the environments (default: 0)")
    command.add_argument("--best", action="store_true", help="use best_model.pt in place of the last policy")
    command.add_argument(
        "--video", nargs="?", const="", metavar="PATH", help="draw the first episode (default PATH: RUN_DIR/video.gif)"
    )
    text = "the run's network of your own, as for train; not needed if the run was started with it"
    command.add_argument("--policy", metavar="MODULE:FACTORY", help=text)
    add_trust(command)
    command.set_defaults(run=run_evaluate)

    command = commands.add_parser("plot", parents=[common], help="draw the learning curves of runs into one plot")
    command.add_argument("run_dirs", type=Path, nargs="+", metavar="RUN_DIR")
    command.add_argument("--output", type=Path, help="image file (default: learning_curve.png in the first RUN_DIR)")
    command.set_defaults(run=run_plot)

    add_compare_command(commands, common)
    add_tune_command(commands, common)
    return parser


def run_train(options: argparse.Namespace) -> int:
    """The command train: options not given are the tuned ones of the task, where there are any."""
    keep_freed_memory()
    if options.resume is not None:
        return run_resume(options)
    given = given_options(vars(options))
    config = TrainConfig.recommended(**given)
    print(f"{config.algo} on {config.env_name}, {config.method}, {config.optimizer} {config.learning_rate:g}")
    print(describe_presets(config, given))
    return report(train(config))


def run_resume(options: argparse.Namespace) -> int:
    """The command train with --resume."""
    given = given_options(vars(options))
    others = ["--" + name.replace("_", "-") for name in given if name not in (*RESUMABLE, *CLUSTER)]
    if others:
        raise ConfigError(f"--resume takes the options of the run: leave out {', '.join(others)}")
    cluster = {name: value for name, value in given.items() if name in CLUSTER}
    result = resume(options.resume, given.get("iterations"), given.get("policy"), cluster=cluster, trust=options.trust)
    if not result.rows and not result.interrupted:
        done = f"all its {result.iterations:,} iterations are done"
        print(f"{options.resume} is finished: {done}; a larger --iterations continues it")
        return 0
    return report(result)


def report(result: TrainResult) -> int:
    """Print the closing table; returns the exit status, 128 plus the number of the signal that stopped the run."""
    print_summary(result)
    if not result.interrupted:
        return 0
    print(f"resume with  optex-rl train --resume {result.run_dir}" if result.run_dir else "nothing was saved")
    return 128 + (result.signal or 0)


def describe_presets(config: TrainConfig, given: Collection[str]) -> str:
    """One line saying which tuned options of the task are in force, those given on the command line left out."""
    tuned = tuned_options(config.env_name, config.algo)
    if not tuned:
        return f"no presets for {config.algo} on {config.env_name}: defaults"
    words = [f"{name}={value}" for name, value in tuned.items() if name not in given]
    return f"presets: {', '.join(words) or 'none, all given'}"


def print_summary(result: TrainResult) -> None:
    """The closing table of a run, and what to do next."""
    last = result.rows[-1] if result.rows else {}
    table = {
        "sequential iterations": f"{result.iterations:,}" + (" (interrupted)" if result.interrupted else ""),
        "environment steps": f"{last.get('time/env_steps', 0):,}",
        "wall time": f"{last.get('time/wall_time', 0.0):.1f} s",
        "environments": result.backend,
        "episodes": f"{last.get('rollout/episodes', 0):,}",
        "cumulative average reward": f"{last.get('rollout/cumulative_average_reward', np.nan):.1f}",
        "mean return, last 100 episodes": f"{last.get('rollout/ep_rew_mean', np.nan):.1f}",
    }
    evaluations = [row["eval/mean_reward"] for row in result.rows if "eval/mean_reward" in row]
    if evaluations:
        table["evaluation return, last"] = f"{evaluations[-1]:.1f}"
        table["evaluation return, best"] = f"{max(evaluations):.1f}"
    width = max(map(len, table))
    print("\n".join(f"  {name:<{width}}  {value:>12}" for name, value in table.items()))
    if result.run_dir is not None:
        print(f"run folder   {result.run_dir}\nTensorBoard  tensorboard --logdir {result.run_dir.parent}")


def run_evaluate(options: argparse.Namespace) -> int:
    """The command evaluate."""
    check_between("episodes", options.episodes, 1, MOST_EPISODES)
    check_between("seed", options.seed, 0, LARGEST_SEED)
    check_run_dir(options.run_dir)
    video = None if options.video is None else Path(options.video or options.run_dir / "video.gif")
    if video is not None:
        check_can_record(video)
    model = load(options.run_dir, options.policy, options.best, trust=options.trust)
    returns = model.evaluate(options.episodes, seed=options.seed)
    print(
        f"{model.config.env_name}, {len(returns)} episodes: "
        f"mean return {np.mean(returns):.2f} ± {np.std(returns):.2f}, least {min(returns):.2f}, most {max(returns):.2f}"
    )
    if video is not None:
        episode_return, length = record_episode(model.config, model.policy, options.seed, model.normalizer, video)
        print(f"video  {video}, {length} steps, return {episode_return:.2f}")
    return 0


def run_plot(options: argparse.Namespace) -> int:
    """The command plot."""
    from ..runner.plots import plot

    for run_dir in options.run_dirs:
        check_run_dir(run_dir)
    print(f"learning curve  {plot(options.run_dirs, options.output)}")
    return 0
