"""Print the environment steps per second of the native environments and their baselines as a Markdown table.

All baselines of a cell take turns in one process and one thread; a figure is the median over the turns. Actions
are random and drawn beforehand. It needs the `dev` extra and an idle machine: python scripts/benchmark_envs.py
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import gymnasium
import torch
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.vec_env import DummyVecEnv

from optex_rl.envs import NATIVE

ACTIONS_DRAWN = 64
BASELINES = ("native", "SyncVectorEnv", "Gymnasium's own", "SB3 DummyVecEnv")


def parse_arguments() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(NATIVE), choices=list(NATIVE), metavar="ID", help="tasks")
    parser.add_argument("--sizes", nargs="+", type=int, default=[1, 8, 64, 512], metavar="E", help="environments")
    parser.add_argument("--seconds", type=float, default=4.0, help="time per cell, all baselines together (default 4)")
    parser.add_argument("--turns", type=int, default=5, help="turns each baseline gets within a cell (default 5)")
    return parser.parse_args()


def make_baseline(name: str, env_id: str, num_envs: int) -> Any | None:
    """Return the baseline, reset; None where Gymnasium has no vector environment of its own for the task."""
    if name == "SB3 DummyVecEnv":
        env: Any = DummyVecEnv([lambda: gymnasium.make(env_id)] * num_envs)
        env.seed(0)
        env.reset()
        return env
    if name == "native":
        env = NATIVE[env_id](num_envs)
    elif name == "SyncVectorEnv":
        same_step = {"autoreset_mode": AutoresetMode.SAME_STEP}
        env = gymnasium.make_vec(env_id, num_envs, vectorization_mode="sync", vector_kwargs=same_step)
    elif gymnasium.spec(env_id).vector_entry_point is None:
        return None
    else:
        env = gymnasium.make_vec(env_id, num_envs, vectorization_mode="vector_entry_point")
    env.reset(seed=0)
    return env


def steps_a_second(step: Callable[[Any], object], actions: list[Any], num_envs: int, seconds: float) -> float:
    """Call `step` with the actions in turn for at least `seconds`; return environment steps a second."""
    calls = 0
    start = time.perf_counter()
    elapsed = 0.0
    while elapsed < seconds:
        for action in actions:
            step(action)
        calls += len(actions)
        elapsed = time.perf_counter() - start
    return calls * num_envs / elapsed


def measure_cell(env_id: str, num_envs: int, seconds: float, turns: int) -> dict[str, float]:
    """Return the median rate of each baseline that exists, in environment steps a second."""
    space = NATIVE[env_id](num_envs).action_space
    space.seed(0)
    # A few calls of SyncVectorEnv with many copies fill a turn already.
    actions = [space.sample() for _ in range(max(4, ACTIONS_DRAWN // num_envs))]
    made = {name: make_baseline(name, env_id, num_envs) for name in BASELINES}
    baselines = {name: env for name, env in made.items() if env is not None}
    share = seconds / (turns * len(baselines))
    rates: dict[str, list[float]] = {name: [] for name in baselines}
    for turn in range(turns + 1):
        for name, env in baselines.items():
            rate = steps_a_second(env.step, actions, num_envs, share if turn else share / 4)
            if turn:  # the first, short one warms up
                rates[name].append(rate)
    for env in baselines.values():
        env.close()
    return {name: statistics.median(values) for name, values in rates.items()}


def format_row(env_id: str, num_envs: int, rates: dict[str, float]) -> str:
    """Return one line of the table: thousands of steps a second, with the ratio to SyncVectorEnv."""
    cells = []
    for name in BASELINES:
        ratio = rates[name] / rates["SyncVectorEnv"] if name in rates else 0.0
        cells.append(f"{rates[name] / 1000:,.0f} ({ratio:.{2 if ratio < 10 else 0}f}x)" if name in rates else "–")
    return f"| {env_id} | {num_envs} | " + " | ".join(cells) + " |"


def main() -> None:
    """Measure and print."""
    options = parse_arguments()
    torch.set_num_threads(1)
    print("1000 environment steps per second (ratio to SyncVectorEnv), random actions, one thread\n")
    print("| task | E | " + " | ".join(BASELINES) + " |")
    print("|---|---|" + "---|" * len(BASELINES))
    for env_id in options.tasks:
        for num_envs in options.sizes:
            rates = measure_cell(env_id, num_envs, options.seconds, options.turns)
            print(format_row(env_id, num_envs, rates), flush=True)


if __name__ == "__main__":
    main()
