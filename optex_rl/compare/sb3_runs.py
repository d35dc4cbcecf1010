"""Timed runs of stable-baselines3 with the hyperparameters of rl_zoo3, evaluated like ours."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from stable_baselines3 import A2C, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from ..envs import make_vec
from ..training.rollouts.evaluation import play_episodes
from ..training.rollouts.seeding import spawn_seeds
from .rl_zoo3 import Sb3Config
from .statistics import Curve, Point, hold_last, is_held


class EvaluationClock(BaseCallback):
    """Evaluates every few rollouts, before the first and after the last, and stops the clock meanwhile.

    Args:
        evaluate: mean return of the policy as it is.
        every: rollouts between two evaluations.
        rollouts: number after which the run is cut off; None for never.
        until: the return at which it is cut off once it holds it; None for never.
    """

    def __init__(
        self, evaluate: Callable[[], float], every: int, rollouts: int | None = None, until: float | None = None
    ) -> None:
        super().__init__()
        self.evaluate, self.every, self.rollouts, self.until = evaluate, every, rollouts, until
        self.points: list[Point] = []
        self.rollout = 0
        self._seconds = 0.0, 0.0  # of training, up to the last evaluation: wall, processor
        self._resumed = 0.0, 0.0  # when the clocks went on after it

    def _on_rollout_start(self) -> None:
        if self.rollout % self.every == 0 or self.rollout == self.rollouts:
            self._note()
        self.rollout += 1

    def _on_step(self) -> bool:
        return (self.rollouts is None or self.rollout <= self.rollouts) and not is_held(self.points, self.until)

    def _on_training_end(self) -> None:
        if self._on_step():
            self._note()

    def _note(self) -> None:
        wall, cpu = self._seconds
        if self.points:
            wall += time.perf_counter() - self._resumed[0]
            cpu += time.process_time() - self._resumed[1]
        self._seconds = wall, cpu
        self.points.append((self.rollout, self.num_timesteps, wall, cpu, self.evaluate()))
        self._resumed = time.perf_counter(), time.process_time()

    def curve(self, rollouts: int) -> Curve:
        """What was noted; an iteration is a rollout with the updates that follow it.

        Args:
            rollouts: of a run that is not cut off by its return; one that was keeps its last policy for those left.
        """
        return hold_last(self.points, self.points[-1][1:], rollouts, self.every)


def schedule(value: Any) -> Any:
    """``lin_X`` as a function of the remaining share of the run, which falls linearly from X to 0."""
    if not (isinstance(value, str) and value.startswith("lin_")):
        return value
    initial = float(value.removeprefix("lin_"))
    return lambda remaining: remaining * initial


def make_model(config: Sb3Config) -> BaseAlgorithm:
    """The algorithm and its environments, made as rl_zoo3 makes them: ``DummyVecEnv``, then ``VecNormalize``."""
    options = {name: schedule(value) for name, value in config.options().items() if name != "n_timesteps"}
    env: VecEnv = make_vec_env(config.env, options.pop("n_envs"), seed=config.seed)
    if options.pop("normalize", False):
        env = VecNormalize(env, gamma=options.get("gamma", 0.99))
    algorithm: Any = {"a2c": A2C, "ppo": PPO}[config.algo]
    model: BaseAlgorithm = algorithm("MlpPolicy", env, seed=config.seed, device="cpu", **options)
    return model


def follow_sb3(config: Sb3Config, until: float | None = None) -> Curve:
    """Train, and evaluate on the same episodes, with the most likely actions, as `optex_rl.compare.jobs` does."""
    model: Any = make_model(config)
    envs = make_vec(config.env, config.eval_episodes)
    seed = spawn_seeds(config.seed, 3, 1)[0]

    def act(obs: Any) -> Any:
        normalize = model.get_vec_normalize_env()
        return model.predict(obs if normalize is None else normalize.normalize_obs(obs), deterministic=True)[0]

    def evaluate() -> float:
        return math.fsum(play_episodes(act, envs, seed)) / config.eval_episodes

    total = config.options()["n_timesteps"]
    steps = total if config.steps is None else min(config.steps, total)
    rollouts = math.ceil(steps / (model.n_steps * model.n_envs))
    every = max(1, rollouts // config.evaluations)
    clock = EvaluationClock(evaluate, every, None if steps == total else rollouts, until)
    model.learn(total, clock)
    envs.close()
    model.env.close()
    return clock.curve(rollouts)
