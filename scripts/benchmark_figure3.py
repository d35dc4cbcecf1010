"""The paper's Figure 3: DQN on four tasks, cumulative average reward against sequential iterations.

Every method is stable-baselines3's DQN with rl_zoo3's tuned settings but for what it does with one sequential iteration
of the learner. Target is rl_zoo3's algorithm, its gradient steps counted N at a time; the others make an N-th of its
steps in sequence, and all see as much of the environment in each iteration:

    vanilla         one minibatch, one gradient step
    data-parallel   the mean gradient of N minibatches, one gradient step
    target          N gradient steps one after the other, a minibatch each: N times the sequential time
    last, refine    OptExDQN: N minibatches at N points, the next iterate by this selection
    auto            refine with the horizon that adapts in place of the fixed one, N base steps
    extrapolate     OptEx as the optimizer class: one minibatch, N steps with predicted gradients

Exploration follows the schedule of rl_zoo3's whole run, also where --steps ends it before. Rates are searched for each
method by itself: three a factor of 3 apart, rl_zoo3's in the middle, or as many as --powers says, then further ones at
the end where the best is, by the mean over tuning seeds of the cumulative average reward at the end; with --one-rate
all have rl_zoo3's, and methods differ in nothing else. Each run is kept as a file of the folder, so that the same
command goes on where it was interrupted, and one with fewer --steps takes the beginnings of these runs.

In the table each seed is held against vanilla's same one, and there is no way to target where target does not end above
vanilla; seconds are those of the processor, all on one thread.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import multiprocessing
import shlex
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from optex_rl import ConfigError, OptExError
from optex_rl.common.storage import write_atomically
from optex_rl.compare.jobs import FIRST_TUNING_SEED
from optex_rl.compare.report import figure, spread
from optex_rl.compare.rl_zoo3 import zoo_options
from optex_rl.compare.statistics import bands, interquartile_mean, stratified_interval
from optex_rl.runner.plots import new_figure, save_figure

from .benchmark_bases import best_rate
from .dqn_runs import Job, Row, train
from .reports import at_least, positive

ENVS: Final = ("CartPole-v1", "Acrobot-v1", "MountainCar-v0", "LunarLander-v3")
METHODS: Final = {
    "vanilla": "vanilla",
    "data-parallel": "data-parallel",
    "target": "target",
    "last": "OptEx, last",
    "refine": "OptEx, refine",
    "auto": "OptEx, refine, auto",
    "extrapolate": "OptEx, extrapolate",
}
POWERS: Final = "search from rl_zoo3's rate * 3^LOW to * 3^HIGH, at least (default: -1 1)"
AXES: Final = {"iterations": "sequential iterations", "env_steps": "environment steps", "seconds": "processor seconds"}
FIGURES: Final = {"cumulative": "cumulative average reward", "last": "mean return, last 100 episodes"}


def finished(folder: Path, job: Job) -> list[Row]:
    """The rows of a run, from its file if that has them all; one of fewer steps is the beginning of one of more.

    Rates that differ by rounding alone are one: products of the same factors may have another last digit.

    Raises:
        ConfigError: the file is of a run with other options.
    """
    path = folder / job.file_name
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    if kept is not None:
        rate = job.rate if math.isclose(kept["job"]["rate"], job.rate) else kept["job"]["rate"]
        if kept["job"] | {"steps": job.steps, "rate": rate} != job.options():
            raise ConfigError(f"{path} is of a run with other options: {kept['job']}; use another --folder")
    if kept is None or kept["job"]["steps"] < job.steps:
        kept = train(job)
        write_atomically(path, json.dumps(kept).encode())
        print(f"{job.file_name}: {figure(kept['rows'][-1].cumulative)} {kept['fault']}", file=sys.stderr, flush=True)
    rows = [Row(*row) for row in kept["rows"]]
    return [row for row in rows if row.env_steps <= job.steps]


Runs = Sequence[Sequence[Row]]  # one a seed
RunAll = Callable[[Iterable[Job]], Iterable[list[Row]]]


class Cell(NamedTuple):
    """A method on a task at the rate that it chose."""

    rate: float
    runs: Runs

    def ends(self, name: str) -> list[float]:
        """A figure at the end of each run."""
        return [getattr(rows[-1], name) for rows in self.runs]

    def column(self, name: str) -> np.ndarray:
        """``[S, K]``, a row a seed."""
        return np.array([[getattr(row, name) for row in rows] for rows in self.runs], dtype=np.float64)


def choose_rate(run_all: RunAll, job: Job, tuning_seeds: int, powers: Sequence[int]) -> float:
    """The rate with the greatest mean cumulative average reward at the end, which is printed for each that is tried.

    Args:
        powers: of 3, times rl_zoo3's rate, from the first to the second, which are tried in any case.
    """

    def score(rate: float) -> float:
        seeds = range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + tuning_seeds)
        runs = run_all([dataclasses.replace(job, rate=rate, seed=seed) for seed in seeds])
        mean = statistics.fmean(rows[-1].cumulative for rows in runs)
        print(f"| {job.env} | {METHODS[job.method]} | {rate:.2g} | {figure(mean, 1)} |", flush=True)
        return -math.inf if math.isnan(mean) else mean  # no episode has ended

    return best_rate(score, zoo_options("dqn", job.env)["learning_rate"], *powers)


def rate_of(job: Job, run_all: RunAll, options: argparse.Namespace) -> float:
    """The method's own rate, or the one that the flags give to all."""
    if options.rate is not None:
        return float(options.rate)
    if options.one_rate:
        return float(zoo_options("dqn", job.env)["learning_rate"])
    return choose_rate(run_all, job, options.tuning_seeds, options.powers)


def first(rows: Sequence[Row], value: float) -> Row | None:
    """The first row whose cumulative average reward is at least a value."""
    return next((row for row in rows if row.cumulative >= value), None)


def milliseconds(rows: Sequence[Row]) -> float:
    """Processor milliseconds an iteration of a run; NaN where it ended before the first."""
    end = rows[-1]
    return 1e3 * end.seconds / end.iterations if end.iterations else math.nan


def table_row(env: str, method: str, cells: Mapping[str, Cell]) -> str:
    """One line of the Markdown table."""
    cell, vanilla = cells[method], cells["vanilla"]
    means = {name: float(interquartile_mean(other.ends("cumulative"))) for name, other in cells.items()}
    way = means.get("target", math.nan) - means["vanilla"]
    reached = [first(rows, own[-1].cumulative) for rows, own in zip(cell.runs, vanilla.runs, strict=True)]
    needed = [(math.inf, math.inf) if row is None else (row.iterations, row.seconds) for row in reached]
    iterations, seconds = (statistics.median_high(column) for column in zip(*needed, strict=True))
    columns = [env, METHODS[method], f"{cell.rate:.2g}"]
    for name in FIGURES:
        ends = cell.ends(name)
        interval = stratified_interval([ends], np.random.default_rng(0))
        columns.append(spread(float(interquartile_mean(ends)), interval, 1))
    columns += [
        figure((means[method] - means["vanilla"]) / way, 2) if way > 0 else "–",
        figure(iterations),
        figure(seconds),
        f"{sum(row is not None for row in reached)}/{len(reached)}",
        figure(statistics.median(map(milliseconds, cell.runs)), 1),
    ]
    return f"| {' | '.join(columns)} |"


def header() -> str:
    """The head of the Markdown table."""
    names = ["task", "method", "rate", *(f"{label} (95 %)" for label in FIGURES.values()), "of the way to target"]
    names += ["iterations to vanilla's", "s to it", "seeds", "ms an iteration"]
    return f"| {' | '.join(names)} |\n{'|---' * len(names)}|"


def draw(tasks: Mapping[str, Mapping[str, Cell]], output: Path) -> None:
    """Interquartile means and 95 % intervals of both figures against the three axes, two rows of panels a task."""
    figure = new_figure(width=12, height=5 * len(tasks))
    panels = figure.subplots(2 * len(tasks), len(AXES), squeeze=False)
    for number, (env, cells) in enumerate(tasks.items()):
        for line, (name, ylabel) in enumerate(FIGURES.items()):
            for method, cell in cells.items():
                middle, low, high = bands(cell.column(name))
                for panel, axis in zip(panels[2 * number + line], AXES, strict=True):
                    x = cell.column(axis).mean(0)
                    (curve,) = panel.plot(x, middle, label=METHODS[method], linewidth=1.2)
                    panel.fill_between(x, low, high, color=curve.get_color(), alpha=0.15, linewidth=0)
            for panel, xlabel in zip(panels[2 * number + line], AXES.values(), strict=True):
                panel.set(title=env, xlabel=xlabel, ylabel=ylabel)
                panel.locator_params(axis="x", nbins=5)  # numbers of six digits stand apart
                panel.grid(alpha=0.3)
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=len(METHODS))
    save_figure(figure, output)


def measure(run_all: RunAll, options: argparse.Namespace) -> dict[str, dict[str, Cell]]:
    """Every method on every task: the rates first, then the seeds with them."""
    tasks: dict[str, dict[str, Cell]] = {}
    for env in options.env:
        steps = options.steps or zoo_options("dqn", env)["n_timesteps"]
        jobs = [Job(env, method, 0.0, 0, options.parallelism, steps, options.every) for method in options.methods]
        chosen = [dataclasses.replace(job, rate=rate_of(job, run_all, options)) for job in jobs]
        seeds = range(options.seeds)
        # Seed by seed, so that whatever else the machine does falls on all methods alike.
        runs = iter(run_all([dataclasses.replace(job, seed=seed) for seed in seeds for job in chosen]))
        by_seed = [[next(runs) for _ in chosen] for _ in seeds]
        columns = zip(*by_seed, strict=True)
        tasks[env] = {job.method: Cell(job.rate, list(column)) for job, column in zip(chosen, columns, strict=True)}
    return tasks


def parse_flags() -> argparse.Namespace:
    """The flags of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", nargs="+", choices=ENVS, default=list(ENVS), metavar="ENV")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="METHOD")
    parser.add_argument("--seeds", type=at_least(1), default=10, help="with the chosen rate (default: %(default)s)")
    parser.add_argument("--tuning-seeds", type=at_least(1), default=5, help="for each rate (default: %(default)s)")
    given = parser.add_mutually_exclusive_group()
    given.add_argument("--one-rate", action="store_true", help="rl_zoo3's learning rate for all, no search")
    given.add_argument("--rate", type=positive, help="this learning rate for all, no search")
    given.add_argument("--powers", nargs=2, type=int, default=[-1, 1], metavar=("LOW", "HIGH"), help=POWERS)
    parser.add_argument("--steps", type=at_least(1), help="environment steps of a run; by default rl_zoo3's")
    parser.add_argument("--every", type=at_least(1), default=1_000, help="environment steps between two rows")
    parser.add_argument("--parallelism", type=at_least(2), default=4, help="N (default: %(default)s)")
    parser.add_argument("--workers", type=at_least(1), default=1, help="runs at once")
    parser.add_argument("--folder", type=Path, default=Path("figure3"), help="of the runs (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="image file for the plot")
    options = parser.parse_args()
    if "vanilla" not in options.methods:
        parser.error("--methods must have vanilla, which the others are held against")
    if options.powers[0] > options.powers[1]:
        parser.error(f"--powers must be the lower one first, got {options.powers[0]} {options.powers[1]}")
    return options


def main() -> int:
    """Run what is not kept yet, print the table, draw the plot; returns the exit status."""
    options = parse_flags()
    options.folder.mkdir(parents=True, exist_ok=True)
    print(
        f"{shlex.join(sys.argv)}\n\n| task | method | rate | {options.tuning_seeds} tuning seeds |\n|---|---|---|---|"
    )
    try:
        with ProcessPoolExecutor(options.workers, mp_context=multiprocessing.get_context("spawn")) as pool:
            tasks = measure(partial(pool.map, partial(finished, options.folder)), options)
        print(f"\n{header()}")
        print("\n".join(table_row(env, method, cells) for env, cells in tasks.items() for method in cells))
        if options.output is not None:
            draw(tasks, options.output)
    except OptExError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
