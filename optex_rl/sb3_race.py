"""stable-baselines3 on the clock: a run with the settings of rl_zoo3, evaluated like ours."""

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

from .comparison import Curve
from .envs import make_vec
from .evaluation import play_episodes
from .rl_zoo3 import Sb3Config
from .rollout import spawn_seeds


class EvaluationClock(BaseCallback):
    """Evaluates every few rollouts, before the first and after the last, and stops the clock meanwhile.

    Args:
        evaluate: mean return of the policy as it is.
        every: rollouts between two evaluations.
        rollouts: after so many the run is cut off; None for never.
    """

    def __init__(self, evaluate: Callable[[], float], every: int, rollouts: int | None = None) -> None:
        super().__init__()
        self.evaluate, self.every, self.rollouts = evaluate, every, rollouts
        self.points: list[tuple[int, int, float, float]] = []
        self.rollout = 0
        self._seconds = 0.0  # of training, up to the last evaluation
        self._resumed = 0.0  # when the clock went on after it

    def _on_rollout_start(self) -> None:
        if self.rollout % self.every == 0 or self.rollout == self.rollouts:
            self._note()
        self.rollout += 1

    def _on_step(self) -> bool:
        return self.rollouts is None or self.rollout <= self.rollouts

    def _on_training_end(self) -> None:
        if self.rollouts is None or self.rollout <= self.rollouts:
            self._note()

    def _note(self) -> None:
        if self.points:
            self._seconds += time.perf_counter() - self._resumed
        self.points.append((self.rollout, self.num_timesteps, self._seconds, self.evaluate()))
        self._resumed = time.perf_counter()

    def curve(self) -> Curve:
        """What was noted; an iteration is a rollout with the updates that follow it."""
        return Curve(*zip(*self.points, strict=True))


def schedule(value: Any) -> Any:
    """``lin_X`` as a function of the remaining share of the run, which falls linearly from X to 0."""
    if not (isinstance(value, str) and value.startswith("lin_")):
        return value
    initial = float(value.removeprefix("lin_"))

    def linear(remaining: float) -> float:
        return remaining * initial

    return linear


def make_model(config: Sb3Config) -> BaseAlgorithm:
    """The algorithm and its environments, made as rl_zoo3 makes them: ``DummyVecEnv``, then ``VecNormalize``."""
    options = {name: schedule(value) for name, value in config.options().items() if name != "n_timesteps"}
    env: VecEnv = make_vec_env(config.env, options.pop("n_envs"), seed=config.seed)
    if options.pop("normalize", False):
        env = VecNormalize(env, gamma=options.get("gamma", 0.99))
    algorithm: Any = {"a2c": A2C, "ppo": PPO}[config.algo]
    model: BaseAlgorithm = algorithm("MlpPolicy", env, seed=config.seed, device="cpu", **options)
    return model


def follow_sb3(config: Sb3Config) -> Curve:
    """Train, and evaluate on the same episodes, with the most likely actions, as `optex_rl.race_runs` does."""
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
    clock = EvaluationClock(evaluate, max(1, rollouts // config.evaluations), None if steps == total else rollouts)
    model.learn(total, clock)
    envs.close()
    model.env.close()
    return clock.curve()
