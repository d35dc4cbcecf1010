"""stable-baselines3's A2C against OptEx in it: return against rollouts and against seconds, as a Markdown table.

rl_zoo3's hyperparameters for A2C, except for 128 steps per rollout: 8 environments for CartPole-v1; 16 and VecNormalize
for Acrobot-v1. Every few rollouts the policy plays 32 episodes, sampling its actions; this is not timed. The area is
the mean return over all rollouts; area and final return are interquartile means over seeds, the area's with a 95 %
bootstrap interval. To a fixed return, and to the one where plain A2C ended: median rollouts, median seconds, and how
many seeds got there. Run one benchmark at a time: the seconds are wall-clock time. Ctrl-C prints the table of the
complete seeds.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from stable_baselines3 import A2C
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from optex_rl import OptEx
from optex_rl.compare.report import figure
from optex_rl.compare.sb3_runs import EvaluationClock
from optex_rl.compare.statistics import Curve, interquartile_mean, median, stratified_interval
from optex_rl.sb3 import NativeVecEnv, OptExA2C, make_sb3_vec_env, sb3_defaults

RATE = 7e-4  # A2C's default, which rl_zoo3 keeps
EPISODES = 32
PLAIN = "A2C"
Prepare = Callable[[], tuple[Callable[..., Any], VecEnv]]


@dataclass(frozen=True)
class Task:
    """Hyperparameters of rl_zoo3, and the return to reach."""

    n_envs: int
    normalize: bool
    threshold: float


TASKS = {"CartPole-v1": Task(8, False, 400.0), "Acrobot-v1": Task(16, True, -100.0)}


def first(curve: Curve, threshold: float, axis: str) -> float:
    """Rollouts or seconds at which the return first reached the threshold; infinite if it never did."""
    return next((x for x, r in zip(getattr(curve, axis), curve.returns, strict=True) if r >= threshold), math.inf)


def mean_return(model: Any, env: NativeVecEnv, seed: int) -> float:
    """Mean return of one episode in each environment, so that short ones are not counted more often.

    Training's random numbers are left as they were.
    """
    state = torch.get_rng_state()
    normalize = model.get_vec_normalize_env()
    env.seed(10_000 + seed)
    obs: Any = env.reset()
    returns = np.full(EPISODES, np.nan)
    while np.isnan(returns).any():
        actions, _ = model.predict(obs if normalize is None else normalize.normalize_obs(obs))
        obs, _, dones, infos = env.step(actions)
        for i in np.flatnonzero(dones & np.isnan(returns)):
            returns[i] = infos[i]["episode"]["r"]
    torch.set_rng_state(state)
    return float(returns.mean())


def train(make: Callable[..., Any], env: VecEnv, task: Task, options: argparse.Namespace, seed: int) -> Curve:
    """One run of ``make``'s algorithm for a number of rollouts."""
    if task.normalize:
        env = VecNormalize(env)
    model = make("MlpPolicy", env, n_steps=options.n_steps, seed=seed, device="cpu")
    envs = make_sb3_vec_env(options.env, EPISODES, seed=10_000 + seed)
    clock = EvaluationClock(lambda: mean_return(model, envs, seed), options.every)
    model.learn(options.rollouts * options.n_steps * env.num_envs, clock)
    env.close()
    return clock.curve(options.rollouts)


def methods(env_id: str, N: int, M: int) -> dict[str, Prepare]:
    """What is compared: a constructor and its environment, by name."""

    def drop_in(*args: Any, **kwargs: Any) -> A2C:
        options = {**sb3_defaults("a2c"), "parallelism": N, "max_grad_norm": 0.5}
        policy_kwargs = {"optimizer_class": OptEx, "optimizer_kwargs": options}
        return A2C(*args, **kwargs | {"policy_kwargs": policy_kwargs, "max_grad_norm": math.inf})

    def at_rate(k: int, cls: Callable[..., Any], points: int, **kwargs: Any) -> Prepare:
        make = partial(cls, learning_rate=k * RATE, **kwargs)
        return lambda: (make, make_sb3_vec_env(env_id, points * M))

    return {
        PLAIN: at_rate(1, A2C, 1),
        "A2C, DummyVecEnv": lambda: (A2C, make_vec_env(env_id, M)),
        "A2C, rate × 4": at_rate(4, A2C, 1),
        **{f"A2C, {N} × environments, rate × {k}": at_rate(k, A2C, N) for k in (1, 2, 4, 8)},
        "OptEx as optimizer_class": at_rate(1, drop_in, 1),
        **{f"OptExA2C, rate × {k}": at_rate(k, OptExA2C, N, parallelism=N) for k in (1, 2, 4)},
    }


def reached(curves: list[Curve], threshold: float) -> str:
    """Median rollouts and seconds to a return, and how many seeds got there."""
    rollouts, seconds = ([first(curve, threshold, axis) for curve in curves] for axis in ("iterations", "wall_time"))
    medians = figure(median(rollouts)), figure(median(seconds), 1)
    return f"{medians[0]} / {medians[1]} s ({sum(map(math.isfinite, rollouts))}/{len(curves)})"


def table_row(name: str, curves: list[Curve], thresholds: list[float]) -> str:
    """One line of the Markdown table."""
    areas = [statistics.fmean(curve.returns) for curve in curves]
    low, high = stratified_interval([areas], np.random.default_rng(0), method="BCa")
    pace = statistics.median(1e3 * curve.wall_time[-1] / curve.iterations[-1] for curve in curves)
    columns = [
        figure(interquartile_mean(areas)),
        f"{figure(low)} … {figure(high)}",
        figure(final_return(curves)),
        *(reached(curves, threshold) for threshold in thresholds),
        f"{pace:.0f}",
    ]
    return f"| {name} | {' | '.join(columns)} |"


def final_return(curves: list[Curve]) -> float:
    """Interquartile mean of the last returns."""
    return float(interquartile_mean([curve.returns[-1] for curve in curves]))


def main() -> None:
    """Parse the flags, run every method with every seed, one after the other, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", choices=TASKS, default="CartPole-v1")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--rollouts", type=int, default=150)
    parser.add_argument("--n-steps", type=int, default=128, help="steps of each environment in a rollout")
    parser.add_argument("--parallelism", type=int, default=4)
    parser.add_argument("--every", type=int, default=5, help="rollouts between two evaluations")
    options = parser.parse_args()
    torch.set_num_threads(1)
    task = TASKS[options.env]
    chosen = methods(options.env, options.parallelism, task.n_envs)
    curves: dict[str, list[Curve]] = {name: [] for name in chosen}
    # Seed by seed, so that whatever else the machine does falls on all methods alike.
    with suppress(KeyboardInterrupt):
        for seed in range(options.seeds):
            for name, prepare in chosen.items():
                make, env = prepare()
                curves[name].append(train(make, env, task, options, seed))
                print(f"seed {seed}, {name}: {curves[name][-1].returns[-1]:.0f}", file=sys.stderr, flush=True)
    complete = min(len(runs) for runs in curves.values())
    curves = {name: runs[:complete] for name, runs in curves.items()}
    thresholds = [task.threshold, final_return(curves[PLAIN])]
    print(f"{' '.join(sys.argv)}\n")
    print(f"| method | area | 95 % | at the end | to {thresholds[0]:.0f} | to {thresholds[1]:.0f} | ms a rollout |")
    print("|---|---|---|---|---|---|---|")
    for name in chosen:
        print(table_row(name, curves[name], thresholds))


if __name__ == "__main__":
    main()
