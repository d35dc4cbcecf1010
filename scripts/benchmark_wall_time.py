"""Wall-clock time to a return where steps are slow: OptEx, data-parallel and PPO on the same workers, and vanilla.

The steps of the task sleep for --delay seconds: a stand-in for a simulator elsewhere. Each of N workers of a Ray
cluster on this machine has one point or, with data-parallel and PPO, a group of as many environments. Every method has
the settings that `optex-rl compare` found for it with that many points. A run stops once it holds the threshold.
Seconds are wall-clock time of training without evaluations; CPU seconds are those of the learner, PPO's epochs
included. Finished runs are kept in --folder, and the same command does the missing ones; then the table is printed and
the figure drawn.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from optex_rl import TrainConfig
from optex_rl.agents import Agent, StackedPolicy
from optex_rl.cluster import spread
from optex_rl.cluster.session import OWN
from optex_rl.compare.jobs import THRESHOLDS, follow_trainer
from optex_rl.compare.methods import method_options
from optex_rl.compare.report import figure
from optex_rl.compare.report import spread as spread_of
from optex_rl.compare.statistics import Array, Curve, interquartile_mean, stratified_interval, summarize
from optex_rl.runner.plots import new_figure, save_figure
from optex_rl.training import Trainer
from optex_rl.training.builders import build_collector
from optex_rl.training.rollouts.evaluator import Evaluator

ray: Any = importlib.import_module("ray")  # typed in parts only

# Task, N: iterations of a whole run, and each method at the settings that `optex-rl compare` found for it.
SETTINGS: Final[Mapping[str, Mapping[int, tuple[int, Sequence[str]]]]] = {
    "MountainCar-v0": {
        1: (60, ["vanilla:learning_rate=0.012", "ppo:learning_rate=0.0015,batch_size=512,n_epochs=10"]),
        4: (
            60,
            [
                "optex:learning_rate=0.006",
                "data-parallel:learning_rate=0.012",
                "ppo:learning_rate=0.0015,batch_size=2048,n_epochs=10",
            ],
        ),
        16: (
            40,
            [
                "optex:learning_rate=0.0015",
                "data-parallel:learning_rate=0.048",
                "ppo:learning_rate=0.00075,batch_size=2048,n_epochs=10",
            ],
        ),
    },
    "InvertedPendulum-v5": {
        1: (60, ["vanilla:learning_rate=0.024", "ppo:learning_rate=0.003,batch_size=128,n_epochs=40"]),
        4: (
            30,
            [
                "optex:learning_rate=0.012",
                "data-parallel:learning_rate=0.024",
                "ppo:learning_rate=0.00075,batch_size=512,n_epochs=10",
            ],
        ),
        16: (20, ["optex:learning_rate=0.0015", "data-parallel:learning_rate=0.024"]),  # PPO: not searched
    },
}


def config_of(env: str, method: str, N: int, iterations: int, delay: float) -> TrainConfig:
    """The options of a method on a task with N workers."""
    fixed, _ = method_options(method)
    quiet: dict[str, Any] = {"logdir": None, "progress_bar": False, "eval_freq": 1, "step_delay": delay}
    sizes: dict[str, Any] = {"parallelism": N, "workers": N, "iterations": iterations}
    return TrainConfig.recommended(env, **{"algo": "a2c"} | quiet | sizes | fixed)


class Lent:
    """An evaluator for several runs: it is not closed with them."""

    def __init__(self, inner: Evaluator) -> None:
        self.inner = inner

    def __call__(self, points: torch.Tensor, prepare: Any = None) -> Any:
        """See `Evaluator`."""
        return self.inner(points, prepare)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def close(self) -> None:
        """Nothing."""


@contextmanager
def evaluator_of(config: TrainConfig) -> Iterator[Evaluator]:
    """The workers of a method; starting them takes longer than a run."""
    made: list[Evaluator] = []

    def make(*arguments: Any) -> Any:
        made.append(spread(*arguments))
        return made[0]

    trainer = Trainer(config, make_evaluator=make)
    try:
        yield made[0]
    finally:
        trainer.close()


def run(config: TrainConfig, evaluator: Evaluator) -> Curve:
    """A run on workers that are there, whose environments, random numbers and statistics are made those of its seed."""
    fresh = build_collector(replace(config, step_delay=0.0), config.parts, config.n_envs)
    evaluator.normalizer.load_state_dict(fresh.normalizer.state_dict())
    evaluator.load_state_dict(fresh.state_dict())

    def lend(config: TrainConfig, agent: Agent, policy: StackedPolicy) -> Any:
        vars(evaluator).update(config=config, agent=agent, policy=policy)  # the critic is in the learner's
        return Lent(evaluator)

    return follow_trainer(Trainer(config, make_evaluator=lend), THRESHOLDS[str(config.env)])


def run_all(options: argparse.Namespace) -> dict[str, list[Curve]]:
    """The curves of all methods, "N = 4, optex", those that are not in the folder being run."""
    curves: dict[str, list[Curve]] = {}
    for N, (iterations, methods) in SETTINGS[options.env].items():
        for method in methods:
            name = f"N = {N}, {method.partition(':')[0]}"
            config = config_of(options.env, method, N, iterations, options.delay)
            paths = [
                options.folder / f"{options.env}_N{N}_{method.partition(':')[0]}_{s}.json" for s in range(options.seeds)
            ]
            if not all(path.exists() for path in paths):
                with evaluator_of(config) as evaluator:
                    for seed, path in enumerate(paths):
                        if not path.exists():
                            curve = run(replace(config, seed=seed), evaluator)
                            path.write_text(json.dumps(curve._asdict()))
            curves[name] = [Curve(**json.loads(path.read_text())) for path in paths]
    return curves


def returns_over(seconds: Array, curves: Sequence[Curve]) -> Array:
    """The return of each run at given wall seconds, linear between evaluations."""
    return np.array([np.interp(seconds, curve.wall_time, curve.returns) for curve in curves])


def common_seconds(curves: Mapping[str, Sequence[Curve]]) -> Array:
    """From the start until half of the runs of the slowest method have ended."""
    return np.linspace(0.0, max(np.median([curve.wall_time[-1] for curve in some]) for some in curves.values()), 200)


def print_table(env: str, curves: Mapping[str, Sequence[Curve]]) -> None:
    """Medians of what it took to the threshold, and the mean return over wall time."""
    seconds = common_seconds(curves)
    print(
        "| workers | iterations | wall seconds | s an iteration | CPU s of the learner | reached | "
        f"mean return of the first {seconds[-1]:.0f} s (95 %) |\n|---|---|---|---|---|---|---|"
    )
    for name, some in curves.items():
        found = summarize(some, THRESHOLDS[env], 0.0, np.random.default_rng(0))
        each = np.median([seconds_of_one(curve) for curve in some])
        areas = returns_over(seconds, some).mean(axis=1)
        area = spread_of(float(interquartile_mean(areas)), stratified_interval([areas], np.random.default_rng(0)))
        cells = [figure(found.iterations), figure(found.seconds, 1), f"{each:.2f}", figure(found.cpu_seconds, 1)]
        print(f"| {name} | {' | '.join(cells)} | {found.reached}/{found.runs} | {area} |")


def seconds_of_one(curve: Curve) -> float:
    """Wall seconds of an iteration; where the run has stopped the time stands still."""
    going = sum(later > now for now, later in zip(curve.wall_time, curve.wall_time[1:], strict=False))
    return curve.wall_time[-1] / going


def draw(env: str, curves: Mapping[str, Sequence[Curve]], output: Path) -> None:
    """Return against wall seconds, interquartile mean over seeds."""
    drawing = new_figure(width=8, height=4.5)
    panel: Any = drawing.subplots()
    seconds = common_seconds(curves)
    for number, (name, some) in enumerate(curves.items()):
        style = {"vanilla": "-", "optex": "-", "data-parallel": "--", "ppo": ":"}[name.partition(", ")[2]]
        returns = interquartile_mean(returns_over(seconds, some))
        panel.plot(seconds, returns, style, label=name, color=f"C{number}")
    panel.axhline(THRESHOLDS[env], color="black", linestyle=":", linewidth=1)
    panel.set(xlabel="wall seconds of training", ylabel="return", title=env)
    panel.grid(alpha=0.3)
    panel.legend(fontsize="small")
    save_figure(drawing, output)


def main() -> None:
    """Parse the flags, run, print a Markdown table and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="MountainCar-v0", choices=list(SETTINGS))
    parser.add_argument("--delay", type=float, default=5e-3, help="seconds per step (default: 0.005)")
    parser.add_argument("--seeds", type=int, default=10, help="runs of each method (default: 10)")
    parser.add_argument("--folder", type=Path, default=Path("wall-time"), help="for the runs (default: wall-time)")
    parser.add_argument("--output", type=Path, default=Path("wall-time.png"), help="image (default: wall-time.png)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.folder.mkdir(parents=True, exist_ok=True)
    print(f"load of the machine before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores", flush=True)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(**OWN, num_cpus=max(SETTINGS[options.env]), log_to_driver=False, logging_level="ERROR")
    try:
        curves = run_all(options)
    finally:
        ray.shutdown()
    print_table(options.env, curves)
    draw(options.env, curves, options.output)


if __name__ == "__main__":
    main()
