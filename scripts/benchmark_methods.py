"""Learning curves of the four methods over seeds: area under the curve and iterations to a threshold, as a table.

The area is the mean of ``ep_rew_mean`` (window: 100 episodes) over all sequential iterations; figures are interquartile
means over seeds with 95 % bootstrap intervals, and medians for the iterations to the threshold.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import torch

from optex_rl import TrainConfig, train
from optex_rl.comparison import interquartile_mean, median, stratified_interval
from optex_rl.config import METHODS
from optex_rl.flags import add_config_arguments, config_from_flags

FIXED = {"logdir": None, "run_name": None, "progress_bar": False, "eval_freq": 0}


def run(config: TrainConfig) -> list[float]:
    """The curve of ep_rew_mean of one run, one value for each sequential iteration."""
    torch.set_num_threads(1)
    result = train(config)
    curve = [row["rollout/ep_rew_mean"] for row in result.rows]
    first = next((value for value in curve if not math.isnan(value)), math.nan)
    return [first if math.isnan(value) else value for value in curve]


def first_at_least(curve: list[float], threshold: float) -> float:
    """The first iteration, from 1, whose value reaches the threshold; infinite if none does."""
    return next((i for i, value in enumerate(curve, 1) if value >= threshold), math.inf)


def table_row(name: str, curves: list[list[float]], threshold: float) -> str:
    """One line of the Markdown table."""
    areas = [statistics.fmean(curve) for curve in curves]
    low, high = stratified_interval([areas], np.random.default_rng(0), method="BCa")
    finals = interquartile_mean([curve[-1] for curve in curves])
    reached = [first_at_least(curve, threshold) for curve in curves]
    middle = median(reached)
    return (
        f"| {name} | {interquartile_mean(areas):.0f} | {low:.0f} … {high:.0f} | {finals:.0f} | "
        f"{'–' if math.isinf(middle) else middle} | {sum(map(math.isfinite, reached))}/{len(curves)} |"
    )


def main() -> None:
    """Parse the flags, run all methods and seeds over the cores, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--learning-rates", type=float, nargs="+", default=[3e-3], help="each method runs at each rate")
    parser.add_argument("--threshold", type=float, default=475.0)
    add_config_arguments(parser, leave_out=("method", "seed", "learning_rate", *FIXED))
    parser.set_defaults(iterations=60)
    options = vars(parser.parse_args())
    methods, seeds, rates, threshold = (options.pop(n) for n in ("methods", "seeds", "learning_rates", "threshold"))
    cells = [(method, rate) for method in methods for rate in rates]
    jobs = [
        config_from_flags(options | FIXED | {"method": method, "learning_rate": rate, "seed": seed})
        for method, rate in cells
        for seed in range(seeds)
    ]
    with ProcessPoolExecutor(os.cpu_count(), mp_context=multiprocessing.get_context("spawn")) as pool:
        curves = list(pool.map(run, jobs))
    print(f"{' '.join(sys.argv)}\n")
    print(f"| method | area under the curve | 95 % | at the end | iterations to {threshold:g} | seeds |")
    print("|---|---|---|---|---|---|")
    for k, (method, rate) in enumerate(cells):
        print(table_row(f"{method}, {rate:g}", curves[k * seeds : (k + 1) * seeds], threshold))


if __name__ == "__main__":
    main()
