"""Where the time of a sequential iteration goes: evaluation (rollout and N gradients) and optimizer, for several N.

All N take turns in one process and one thread; N = 1 is the plain base. The clock is the CPU time of that thread, so
that other work on the machine matters only through the caches. Figures are medians over rounds, after the history has
filled.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from optex_rl import TrainConfig
from optex_rl.training import Trainer

TASKS = ["CartPole-v1", "Acrobot-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Pendulum-v1"]


def timed_iteration(trainer: Trainer) -> tuple[float, float, float]:
    """Seconds for propose (ask), evaluation, and select (tell)."""
    start = time.thread_time()
    points = trainer.optimizer.ask()
    asked = time.thread_time()
    evaluation = trainer.evaluator(points)
    evaluated = time.thread_time()
    trainer.optimizer.tell(evaluation.gradients, evaluation.losses.total)
    return asked - start, evaluated - asked, time.thread_time() - evaluated


def medians(env: str, options: argparse.Namespace) -> list[list[float]]:
    """Milliseconds of `timed_iteration` on a task, for each N."""
    T0 = options.history_size
    trainers = [
        Trainer(TrainConfig(env=env, algo=options.algo, parallelism=N, history_size=T0, horizon="fixed"))
        for N in options.parallelism
    ]
    warm_up = max(-(-trainer.optimizer.options.history_size // trainer.config.parallelism) for trainer in trainers) + 2
    times: list[list[tuple[float, float, float]]] = [[] for _ in trainers]
    for round_number in range(warm_up + options.rounds):
        for trainer, rows in zip(trainers, times, strict=True):
            row = timed_iteration(trainer)
            if round_number >= warm_up:
                rows.append(row)
    for trainer in trainers:
        trainer.close()
    return [[statistics.median(column) * 1e3 for column in zip(*rows, strict=True)] for rows in times]


def main() -> None:
    """Parse the flags, run, and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--envs", nargs="+", default=TASKS)
    parser.add_argument("--algo", default="a2c")
    parser.add_argument("--parallelism", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--history-size", type=int, help="pairs in the history (default: that of TrainConfig)")
    parser.add_argument("--rounds", type=int, default=60)
    options = parser.parse_args()
    torch.set_num_threads(1)
    sizes = [TrainConfig(parallelism=N, history_size=options.history_size) for N in options.parallelism]
    words = ", ".join(f"{config.optex_options().history_size} (N = {config.parallelism})" for config in sizes)
    print(f"{options.algo}, 8 environments × 128 steps per point, T0 = {words}; × of the first N\n")
    print("| task | N | propose, ms | evaluate, ms | select, ms | evaluation, × | whole iteration, × |")
    print("|---|---|---|---|---|---|---|")
    for env in options.envs:
        rows = medians(env, options)
        for N, row in zip(options.parallelism, rows, strict=True):
            figures = " | ".join(f"{figure:.2f}" for figure in (*row, row[1] / rows[0][1], sum(row) / sum(rows[0])))
            print(f"| {env} | {N} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
