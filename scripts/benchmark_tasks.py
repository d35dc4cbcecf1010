"""How well and how fast every task is learnt with its presets: one table of all tasks, over seeds.

The final return is the mean over 100 episodes with the policy's most likely actions, from initial states not used in
training; over seeds: median, and interquartile mean with its 95 % bootstrap interval. Iterations and wall-clock time
are those of the first periodic evaluation (20 episodes, most likely actions) that reaches the score published by
rl_zoo3 for A2C, or by CleanRL for PPO on MuJoCo's tasks, which are run only if they are named; the time includes all
evaluations up to there.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import shlex
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor
from typing import Any, Final, NamedTuple

import numpy as np
import torch

from optex_rl import TrainConfig, train
from optex_rl.cli.flags import add_config_arguments, given_options
from optex_rl.compare.statistics import interquartile_mean, median, stratified_interval
from optex_rl.envs import make_vec
from optex_rl.training.config import CLUSTER
from optex_rl.training.rollouts.evaluation import evaluate_policy

# rl_zoo3's benchmark.md, A2C, one run each, deterministic policy. LunarLander's was published for v2.
PUBLISHED: Final = {
    "CartPole-v1": 500.0,
    "Acrobot-v1": -83.353,
    "MountainCar-v0": -111.263,
    "MountainCarContinuous-v0": 91.166,
    "Pendulum-v1": -162.965,
    "LunarLander-v3": 155.751,
}
# CleanRL's documentation, PPO after 10⁶ steps, episodes of training; published for v4.
PUBLISHED_MUJOCO: Final = {
    "InvertedPendulum-v5": 950.98,
    "Hopper-v5": 2051.80,
    "HalfCheetah-v5": 2905.85,
    "Walker2d-v5": 2890.97,
}
SCORES: Final = PUBLISHED | PUBLISHED_MUJOCO
FIXED: Final[dict[str, Any]] = {"logdir": None, "run_name": None, "progress_bar": False, "eval_episodes": 20}
FINAL_EPISODES: Final = 100
FINAL_SEED: Final = 1_000_003  # plus the seed of the run: every run has starts of its own


class Outcome(NamedTuple):
    """What one run gave; iteration and seconds are infinite if the published score was never reached."""

    final_return: float
    iteration: float
    seconds: float
    env_steps: int


def run(config: TrainConfig) -> Outcome:
    """Train, and play the final policy."""
    torch.set_num_threads(1)
    result = train(config)
    hit = (math.inf, math.inf)
    for iteration, row in enumerate(result.rows, 1):
        if row.get("eval/mean_reward", -math.inf) >= SCORES[config.env_name]:
            hit = (iteration, row["time/wall_time"])
            break
    envs = make_vec(config.env, FINAL_EPISODES)
    returns = evaluate_policy(result.policy, envs, FINAL_SEED + config.seed, result.normalizer)
    envs.close()
    return Outcome(statistics.fmean(returns), *hit, int(result.rows[-1]["time/env_steps"]))


def spread(values: list[float]) -> str:
    """Interquartile mean over seeds with its 95 % bootstrap interval."""
    low, high = stratified_interval([values], np.random.default_rng(0))
    return f"{interquartile_mean(values):.0f} ({low:.0f} … {high:.0f})"


def median_of_all(values: list[float], digits: int) -> str:
    """The median over all seeds, a dash where half of them or more never got there."""
    middle = median(values)
    return "–" if math.isinf(middle) else f"{middle:.{digits}f}"


def table_row(config: TrainConfig, outcomes: list[Outcome]) -> str:
    """One line of the Markdown table."""
    finals, iterations, seconds, _ = map(list, zip(*outcomes, strict=True))
    reached = sum(map(math.isfinite, iterations))
    env = config.env_name
    return (
        f"| {env} | {SCORES[env]:.0f} | {statistics.median(finals):.1f} | {spread(finals)} | "
        f"{median_of_all(iterations, 0)} of {config.iterations} | {median_of_all(seconds, 1)} | "
        f"{reached}/{len(outcomes)} | {config.parallelism} | {outcomes[0].env_steps / 1e6:.2f} |"
    )


def main() -> None:
    """Parse the flags, run tasks and seeds; a line as each task is done, the final returns of its seeds to stderr."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=SCORES, default=list(PUBLISHED), metavar="TASK")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--workers", type=int, default=1, help="runs at once; more than cores distorts the seconds")
    add_config_arguments(parser, leave_out=("env", "seed", *FIXED, *CLUSTER))
    parser.set_defaults(eval_freq=5)
    flags = vars(parser.parse_args())
    workers = flags.pop("workers")
    given = given_options(flags)
    print(f"{shlex.join(sys.argv)}\n")
    print(
        "| task | published | final return, median | IQM (95 %) | iterations to published | seconds | seeds | N | "
        "10⁶ steps |\n|---|---|---|---|---|---|---|---|---|"
    )
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for task in flags["tasks"]:
            configs = [TrainConfig.recommended(task, **FIXED, **given, seed=seed) for seed in range(flags["seeds"])]
            outcomes = list(pool.map(run, configs))
            print(table_row(configs[0], outcomes), flush=True)
            print(task, *(f"{outcome.final_return:.1f}" for outcome in outcomes), file=sys.stderr)


if __name__ == "__main__":
    main()
