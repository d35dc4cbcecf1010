"""Where the time of a sequential iteration goes: evaluation (rollout and N gradients) and optimizer, for several N.

All N take turns in one process, one thread; figures are medians over rounds, after the history has filled.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from optex_rl import TrainConfig
from optex_rl.training import Trainer


def timed_iteration(trainer: Trainer) -> tuple[float, float, float]:
    """Seconds for propose (ask), evaluation, and select (tell)."""
    start = time.perf_counter()
    points = trainer.optimizer.ask()
    asked = time.perf_counter()
    evaluation = trainer.evaluator(points)
    evaluated = time.perf_counter()
    trainer.optimizer.tell(evaluation.gradients, evaluation.losses.total)
    return asked - start, evaluated - asked, time.perf_counter() - evaluated


def main() -> None:
    """Parse the flags, run, and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("--algo", default="a2c")
    parser.add_argument("--parallelism", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--history-size", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=60)
    options = parser.parse_args()
    torch.set_num_threads(1)
    trainers = [
        Trainer(TrainConfig(env=options.env, algo=options.algo, parallelism=N, history_size=options.history_size))
        for N in options.parallelism
    ]
    warm_up = options.history_size // min(N for N in options.parallelism if N > 1) + 2
    times: list[list[tuple[float, float, float]]] = [[] for _ in trainers]
    for round_number in range(warm_up + options.rounds):
        for trainer, rows in zip(trainers, times, strict=True):
            row = timed_iteration(trainer)
            if round_number >= warm_up:
                rows.append(row)
    d = sum(p.numel() for p in trainers[0].policy.parameters())
    print(
        f"{options.algo} on {options.env}, 8 environments × 128 steps per point, d = {d:,}, T0 = {options.history_size}"
    )
    print("\n| N | propose, ms | evaluate, ms | select, ms | evaluation, × of first row | optimizer's share |")
    print("|---|---|---|---|---|---|")
    medians = [[statistics.median(column) * 1e3 for column in zip(*rows, strict=True)] for rows in times]
    for N, (propose, evaluate, select) in zip(options.parallelism, medians, strict=True):
        share = (propose + select) / (propose + evaluate + select)
        ratio = evaluate / medians[0][1]
        print(f"| {N} | {propose:.2f} | {evaluate:.2f} | {select:.2f} | {ratio:.2f} | {share:.0%} |")


if __name__ == "__main__":
    main()
