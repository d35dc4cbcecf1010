"""Workers of a Ray cluster against the fused evaluator: their cost, and their gain where evaluations are slow.

    overhead  an iteration of CartPole with N = 4: Ray's part of it, on one worker and on four, and the CPU time of
              learner and workers, which other programs hardly change
    cheetah   HalfCheetah-v5: iterations per second of one process and of two workers
    delay     CartPole whose steps sleep for --delay seconds: N = 16 on sixteen workers and on one; N on N workers
    sizes     bytes sent and received in an iteration, as serialised by Ray, for several agents and networks

The variants compared take turns, iteration by iteration, and the table has the median and the best of the rounds: on a
busy machine the best shows what the code needs, the median what the machine allowed. Sixteen workers need 5 GB.
"""

from __future__ import annotations

import argparse
import importlib
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from optex_rl import TrainConfig
from optex_rl.agents import StackedPolicy
from optex_rl.cluster import choose_evaluator
from optex_rl.cluster.combine import count_bytes
from optex_rl.cluster.evaluator import divided_work, make_orders
from optex_rl.cluster.session import OWN
from optex_rl.cluster.shares import divide
from optex_rl.cluster.worker import Order, Spec, Worker
from optex_rl.envs import find_task
from optex_rl.training import Trainer
from optex_rl.training.builders import split_critic

ray: Any = importlib.import_module("ray")  # typed in parts only

SMALL: Mapping[str, Any] = {
    "logdir": None,
    "eval_freq": 0,
    "progress_bar": False,
    "iterations": 10**6,
    "horizon": "fixed",
}


@contextmanager
def trainers(configs: Mapping[str, TrainConfig]) -> Iterator[dict[str, Trainer]]:
    """A trainer for each, on one cluster."""
    workers = sum(config.workers or 0 for config in configs.values())
    ray.init(**OWN, num_cpus=workers, log_to_driver=False, logging_level="ERROR")
    made = {name: Trainer(config, make_evaluator=choose_evaluator(config)) for name, config in configs.items()}
    try:
        yield made
    finally:
        for trainer in made.values():
            trainer.close()
        ray.shutdown()


def alternate(made: Mapping[str, Trainer], rounds: int, warm_up: int) -> dict[str, list[dict[str, float]]]:
    """Metrics of the iterations of each, with their ``seconds``; they take turns."""
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in made}
    for number in range(warm_up + rounds):
        for name, trainer in made.items():
            started = time.perf_counter(), time.process_time()
            metrics = trainer.iterate()
            metrics["seconds"] = time.perf_counter() - started[0]
            metrics["cpu"] = time.process_time() - started[1]
            if number >= warm_up:
                rows[name].append(metrics)
    return rows


def column(rows: Sequence[Mapping[str, float]], value: Callable[[Mapping[str, float]], float]) -> list[float]:
    """Median and least over rounds, in milliseconds."""
    values = [1e3 * value(row) for row in rows]
    return [statistics.median(values), min(values)]


def cells(figures: Sequence[float]) -> str:
    """Figures of a row."""
    return " | ".join(f"{figure:.1f}" for figure in figures)


def seconds(row: Mapping[str, float]) -> float:
    """Of an iteration."""
    return row["seconds"]


def overhead_of(row: Mapping[str, float]) -> float:
    """Seconds of an evaluation in which not even the slowest worker computed."""
    return row["cluster/seconds_waited"] - row["cluster/slowest_seconds"]


def show_overhead(options: argparse.Namespace) -> None:
    """The subcommand overhead."""
    sizes = {**SMALL, "parallelism": 4, "n_envs": 8, "n_steps": 128}
    configs = {"fused": TrainConfig(**sizes)}
    configs |= {f"{W} worker{'s' if W > 1 else ''}": TrainConfig(**sizes, workers=W) for W in (1, 4)}
    with trainers(configs) as made:
        alternate(made, rounds=0, warm_up=8)
        before = {name: workers_cpu(trainer) for name, trainer in made.items()}
        rows = alternate(made, options.rounds, warm_up=0)
        spent = {name: 1e3 * (workers_cpu(made[name]) - before[name]) / options.rounds for name in made}
    print("| CartPole-v1, N = 4, 8 × 128 | iteration, ms | best | Ray's part, ms | best | CPU ms, learner | workers |")
    print("|---|---|---|---|---|---|---|")
    for name, some in rows.items():
        parts = "– | –" if name == "fused" else cells(column(some, overhead_of))
        cpu = statistics.median(1e3 * row["cpu"] for row in some)
        print(f"| {name} | {cells(column(some, seconds))} | {parts} | {cpu:.1f} | {spent[name]:.1f} |")


def workers_cpu(trainer: Trainer) -> float:
    """Processor seconds of all workers so far."""
    evaluator: Any = trainer.evaluator
    actors = evaluator.crew._actors if trainer.config.workers else []
    return float(sum(ray.get([actor.__ray_call__.remote(lambda self: time.process_time()) for actor in actors])))


def show_cheetah(options: argparse.Namespace) -> None:
    """The subcommand cheetah."""
    sizes = {**SMALL, "env": "HalfCheetah-v5", "parallelism": 4, "n_envs": 8, "n_steps": 256, "normalize_obs": True}
    configs = {"fused": TrainConfig(**sizes), "2 workers": TrainConfig(**sizes, workers=2)}
    with trainers(configs) as made:
        rows = alternate(made, options.rounds, warm_up=3)
    print("| HalfCheetah-v5, N = 4, 8 × 256 | iteration, ms | best |\n|---|---|---|")
    for name, some in rows.items():
        print(f"| {name} | {cells(column(some, seconds))} |")
    ratios = [a["seconds"] / b["seconds"] for a, b in zip(rows["fused"], rows["2 workers"], strict=True)]
    best = column(rows["fused"], seconds)[1] / column(rows["2 workers"], seconds)[1]
    print(f"\ntwo workers: {statistics.median(ratios):.2f} times the iterations per second (median), best {best:.2f}")


def show_delay(options: argparse.Namespace) -> None:
    """The subcommand delay."""
    sizes = {**SMALL, "n_envs": 8, "n_steps": 128, "step_delay": options.delay}
    least, most = options.parallelism[0], options.parallelism[-1]
    configs = {f"N = {N}, {N} workers": TrainConfig(**sizes, parallelism=N, workers=N) for N in options.parallelism}
    configs[f"N = {most}, 1 worker"] = TrainConfig(**sizes, parallelism=most, workers=1)
    with trainers(configs) as made:
        rows = alternate(made, options.rounds, warm_up=4)
    print(f"| CartPole-v1, {options.delay * 1e3:g} ms a step, 8 × 128 | iteration, ms | best | Ray's part, ms | best |")
    print("|---|---|---|---|---|")
    for name, some in rows.items():
        print(f"| {name} | {cells(column(some, seconds))} | {cells(column(some, overhead_of))} |")
    *spread, single = rows.values()
    for number, word in enumerate(("median", "best")):
        first, last, one = (column(some, seconds)[number] for some in (spread[0], spread[-1], single))
        print(
            f"\n{word}: {most} workers {one / last:.1f} times one; N = {most} costs {last / first:.2f} of N = {least}"
        )


def show_sizes(options: argparse.Namespace) -> None:
    """The subcommand sizes."""
    cases: dict[str, dict[str, Any]] = {
        "OptEx, 2 × 64": {},
        "OptEx, 2 × 64, normalised, shared critic": {"normalize_obs": True, "n_critic_updates": 2},
        "OptEx, 2 × 256": {"net_arch": (256, 256)},
        "OptEx, 2 × 1,024": {"net_arch": (1024, 1024)},
        "data-parallel": {"method": "data-parallel"},
        "PPO with the samples of all": {"method": "data-parallel", "algo": "ppo"},
    }
    print("| CartPole-v1, N = 4, 8 × 128, two workers | d | out, kB | of it arrays | back, kB | of it arrays |")
    print("|---|---|---|---|---|---|")
    for name, own in cases.items():
        evaluator = LocalEvaluator(TrainConfig(**{**SMALL, "workers": 2} | own))
        orders = evaluator.orders()
        replies = [worker.evaluate(order) for worker, order in zip(evaluator.workers, orders, strict=True)]
        pairs = " | ".join(
            f"{serialized(messages) / 1e3:,.1f} | {count_bytes(messages) / 1e3:,.1f}" for messages in (orders, replies)
        )
        print(f"| {name} | {evaluator.points.shape[1]:,} | {pairs} |", flush=True)


class LocalEvaluator:
    """The workers of a run in this process, to look at their messages."""

    def __init__(self, config: TrainConfig) -> None:
        trainer = Trainer(config)
        self.normalizer, self.points = trainer.evaluator.normalizer, trainer.optimizer.ask()
        critic = split_critic(trainer.policy)[1] if config.n_critic_updates else []
        self.policy = StackedPolicy(trainer.policy, shared=critic)
        self.shares = divide(config.parts, config.workers or 1, config.n_envs)
        made_from = config, trainer.agent, self.policy, find_task(config.env)
        wanted = divided_work(config, trainer.agent)
        self.workers = [Worker(Spec(*made_from, share, *wanted)) for share in self.shares]

    def orders(self) -> list[Order]:
        """What they are sent."""
        return make_orders(self.points, self.policy, self.normalizer, self.shares)


def serialized(messages: Sequence[Any]) -> int:
    """Bytes of messages as Ray serialises them, one by one."""
    total = 0
    for message in messages:
        buffers: list[Any] = []
        total += len(ray.cloudpickle.dumps(message, protocol=5, buffer_callback=buffers.append))
        total += sum(buffer.raw().nbytes for buffer in buffers)
    return total


PARTS = {"overhead": show_overhead, "cheetah": show_cheetah, "delay": show_delay, "sizes": show_sizes}


def main() -> None:
    """Parse the flags, run, and print Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=list(PARTS), metavar="PART", help=f"any of {', '.join(PARTS)}")
    parser.add_argument("--rounds", type=int, default=30, help="iterations of each (default: 30)")
    parser.add_argument("--delay", type=float, default=2e-3, help="seconds per step (default: 0.002)")
    parser.add_argument("--parallelism", type=int, nargs="+", default=[1, 4, 16], help="N for delay (default: 1 4 16)")
    options = parser.parse_args()
    if unknown := set(options.parts) - PARTS.keys():
        parser.error(f"no part {', '.join(sorted(unknown))}")
    torch.set_num_threads(1)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    for part in options.parts:
        print(f"\nload of the machine before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores\n")
        PARTS[part](options)


if __name__ == "__main__":
    main()
