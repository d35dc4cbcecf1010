"""Every base optimizer alone and under OptEx, each at the best learning rate of its own small search: one table.

The area is the mean of ``ep_rew_mean`` (window: 100 episodes) over all sequential iterations; figures are interquartile
means over seeds with 95 % bootstrap intervals. Vanilla and OptEx search separately, by the mean area of two seeds that
the table does not use: three rates a factor of 3 apart, extended until the best is at neither end. A run stopped by a
numerical fault has the area 0.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import shlex
import statistics
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from typing import Any, Final, NamedTuple

import numpy as np
import torch

from optex_rl import TrainConfig, train
from optex_rl.bases import BASES
from optex_rl.cli.flags import add_config_arguments, given_options
from optex_rl.common.errors import NumericalError
from optex_rl.compare.statistics import interquartile_mean, stratified_interval
from optex_rl.training.config import CLUSTER

FIXED: Final[dict[str, Any]] = {"logdir": None, "run_name": None, "progress_bar": False, "eval_freq": 0}
METHODS: Final = ("vanilla", "optex")
FACTOR: Final = 3
TUNING_SEEDS: Final = (1_000, 1_001)
# Where the search begins: the middle of the three rates.
RATES: Final = {
    "sgd": 10.0,
    "momentum": 3.0,
    "nesterov": 3.0,
    "adagrad": 3e-2,
    "adadelta": 10.0,
    "rmsprop": 3e-3,
    "adam": 6e-3,
    "adamw": 6e-3,
    "nadam": 6e-3,
    "radam": 0.1,
    "lars": 30.0,
    "lamb": 0.1,
    "novograd": 1e-2,
    "adahessian": 3.0,
    "sam": 6e-3,
    "kfac": 30.0,
    "natural": 30.0,
}


class Cell(NamedTuple):
    """A method with a base: the rate that it chose, and its areas over seeds."""

    rate: float
    areas: list[float]

    @property
    def mean(self) -> float:
        """Interquartile mean over seeds."""
        return float(interquartile_mean(self.areas))

    def __str__(self) -> str:
        low, high = stratified_interval([self.areas], np.random.default_rng(0))
        return f"{self.rate:.2g} | {self.mean:.0f} ({low:.0f} … {high:.0f})"


def area(config: TrainConfig) -> float:
    """Area under the curve of one run."""
    torch.set_num_threads(1)
    try:
        rows = train(config).rows
    except NumericalError as error:
        print(f"{config.optimizer}, {config.method}, {config.learning_rate:g}: {error}", file=sys.stderr)
        return 0.0
    return statistics.fmean(value for row in rows if not math.isnan(value := row["rollout/ep_rew_mean"]))


def best_rate(score: Callable[[float], float], middle: float, low: int = -1, high: int = 1) -> float:
    """The best of rates a factor apart, none of which lies at an end of those that were tried.

    Args:
        score: of a rate, the greater the better.
        middle: the rate whose multiples by powers of the factor are tried.
        low: the power that the search begins with.
        high: the power up to which it goes at least.
    """
    scores = {k: score(middle * FACTOR**k) for k in range(low, high + 1)}
    while (best := max(scores, key=lambda k: scores[k])) in (low, high):
        low, high = (low - 1, high) if best == low else (low, high + 1)
        scores |= {k: score(middle * FACTOR**k) for k in (low, high) if k not in scores}
    return float(middle * FACTOR**best)


def measure(pool: ProcessPoolExecutor, flags: dict[str, Any], seeds: int, rate: float | None) -> Cell:
    """Choose a rate unless there is one, and run the seeds with it."""

    def areas(rate: float, these: Iterable[int]) -> list[float]:
        given = {"horizon": "fixed", **given_options(flags), "learning_rate": rate}
        return list(pool.map(area, [TrainConfig(**given, seed=seed) for seed in these]))

    if rate is None:
        rate = best_rate(lambda rate: statistics.fmean(areas(rate, TUNING_SEEDS)), RATES[flags["optimizer"]])
    return Cell(rate, areas(rate, range(seeds)))


def main() -> None:
    """Parse the flags, measure base after base, and print a line for each as it is done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bases", nargs="+", choices=BASES, default=list(BASES), metavar="BASE")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rate", type=float, help="one rate for all bases; by default each searches its own")
    parser.add_argument("--workers", type=int, default=1, help="runs at once")
    add_config_arguments(parser, leave_out=("method", "optimizer", "learning_rate", "seed", *FIXED, *CLUSTER))
    parser.set_defaults(iterations=40)
    options = vars(parser.parse_args())
    bases, seeds, rate, workers = (options.pop(name) for name in ("bases", "seeds", "rate", "workers"))
    print(f"{shlex.join(sys.argv)}\n")
    print("| base | rate | vanilla | rate | OptEx | ratio |\n|---|---|---|---|---|---|")
    ratios = []
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for base in bases:
            flags = options | FIXED | {"optimizer": base}
            vanilla, optex = (measure(pool, flags | {"method": method}, seeds, rate) for method in METHODS)
            ratios.append(optex.mean / vanilla.mean)
            print(f"| {base} | {vanilla} | {optex} | {ratios[-1]:.2f} |", flush=True)
    print(f"\nOptEx is ahead for {sum(ratio > 1 for ratio in ratios)} of {len(ratios)} bases.")


if __name__ == "__main__":
    main()
