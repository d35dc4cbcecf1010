"""Training: from options to a run folder with a trained policy."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import nn

from .agents import MlpPolicy, make_agent, observation_size
from .bases import fused_kwargs, make_base
from .checkpoints import make_run_folder, save_checkpoint
from .config import TrainConfig
from .envs import describe_backend, make_vec
from .evaluation import FusedEvaluator, evaluate_policy
from .interrupts import stop_on_interrupt
from .logs import EpisodeStatistics, ProgressBar, RunLog
from .normalization import Normalizer
from .optimizer import OptEx
from .rollout import Collector, spawn_seeds


@dataclass
class TrainResult:
    """What training gives.

    Attributes:
        policy: the trained network.
        normalizer: the statistics that the policy is used with, see `evaluate_policy`.
        run_dir: the run folder, or None if nothing was written.
        backend: what steps the environments.
        interrupted: whether training was stopped before its last iteration.
        rows: the metrics of each iteration by TensorBoard tag.
    """

    policy: nn.Module
    normalizer: Normalizer
    run_dir: Path | None
    backend: str
    interrupted: bool = False
    rows: list[dict[str, float]] = field(default_factory=list)


class Trainer:
    """Wires the rooms together: environments, agent, optimizer; one call of `iterate` is one sequential iteration.

    Args:
        config: the options.
        policy: a network of the user's own, see `StackedPolicy`; by default an `MlpPolicy`.

    Raises:
        ConfigError: an option, the task or its spaces cannot be used.
    """

    def __init__(self, config: TrainConfig, policy: nn.Module | None = None) -> None:
        self.config = config
        agent = make_agent(config.algo, **config.agent_options())
        envs = make_vec(config.env, config.num_points * config.envs_per_point)
        policy = build_policy(config, envs) if policy is None else policy
        self.policy = policy.to(config.device)
        kwargs = fused_kwargs(config.optimizer)
        base = make_base(config.optimizer, parameter_groups(policy), config.learning_rate, kwargs)
        self.optimizer = OptEx.wrap(base, **asdict(config.optex_options()))
        self.normalizer = build_normalizer(config, envs)
        collector = Collector(
            envs, config.num_points, config.n_steps, config.seed, self.normalizer, config.noise_repeat
        )
        self.evaluator = FusedEvaluator(policy, agent, collector)
        self.episodes = EpisodeStatistics()
        self.iteration = 0
        self.env_steps = 0
        self.best_return = -np.inf
        self._evaluation_envs: Any = None

    def iterate(self) -> dict[str, float]:
        """One sequential iteration; its metrics by TensorBoard tag.

        Raises:
            NumericalError: a loss or gradient is not finite; the policy is as it was before the evaluation.
        """
        learning_rate = self.config.learning_rate_at(self.iteration)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        for _ in range(self.config.evaluations):
            points = self.optimizer.ask()
            gradients, losses, episodes = self.evaluator(points)
            self.optimizer.tell(gradients, losses.total)
            self.normalizer.update()
            self.episodes.add(episodes)
            self.env_steps += int(np.prod(self.evaluator.collector.shape))
        self.iteration += 1
        parts = losses._asdict().items()
        return {
            "time/env_steps": self.env_steps,
            **self.episodes.metrics(),
            "train/learning_rate": learning_rate,
            **{f"train/{name}": float(value.mean()) for name, value in parts if name != "total"},
            **{f"optex/{name}": value for name, value in self.optimizer.statistics.items()},
        }

    def evaluate(self) -> float:
        """Mean return of the policy's most likely actions over ``eval_episodes`` episodes, the same ones every time."""
        if self._evaluation_envs is None:
            self._evaluation_envs = make_vec(self.config.env, self.config.eval_episodes)
        seed = spawn_seeds(self.config.seed, 3, 1)[0]
        return float(np.mean(evaluate_policy(self.policy, self._evaluation_envs, seed, self.normalizer)))

    def evaluation_due(self) -> bool:
        """Whether the iterate is to be evaluated now."""
        frequency = self.config.eval_freq
        return frequency > 0 and (self.iteration % frequency == 0 or self.iteration == self.config.iterations)

    def state_dict(self) -> dict[str, Any]:
        """Everything that later iterations depend on, as plain values and tensors."""
        return {
            "policy": self.policy.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "normalizer": self.normalizer.state_dict(),
            "collector": self.evaluator.collector.state_dict(),
            "episodes": self.episodes.state_dict(),
            "iteration": self.iteration,
            "env_steps": self.env_steps,
            "best_return": self.best_return,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.policy.load_state_dict(state["policy"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.normalizer.load_state_dict(state["normalizer"])
        self.evaluator.collector.load_state_dict(state["collector"])
        self.episodes.load_state_dict(state["episodes"])
        self.iteration, self.env_steps = state["iteration"], state["env_steps"]
        self.best_return = state["best_return"]

    def close(self) -> None:
        """Close the environments."""
        self.evaluator.collector.envs.close()
        if self._evaluation_envs is not None:
            self._evaluation_envs.close()


def build_policy(config: TrainConfig, envs: VectorEnv[Any, Any, Any]) -> MlpPolicy:
    """The network that the options describe, freshly initialised from the seed of the run."""
    return MlpPolicy(
        envs.single_observation_space,
        envs.single_action_space,
        net_arch=config.net_arch,
        activation=config.activation,
        critic=make_agent(config.algo, **config.agent_options()).needs_critic,
        log_std_init=config.log_std_init,
        generator=torch.Generator().manual_seed(spawn_seeds(config.seed, 2, 1)[0]),
    )


def build_normalizer(config: TrainConfig, envs: VectorEnv[Any, Any, Any]) -> Normalizer:
    """The normalisation that the options describe, before it has seen anything."""
    features = observation_size(envs.single_observation_space)
    flags = {"obs": config.normalize_obs, "reward": config.normalize_reward}
    return Normalizer(features, envs.num_envs, config.gamma, **flags)


def parameter_groups(policy: nn.Module) -> list[dict[str, Any]]:
    """One named group for each part that a policy names (actor, critic), else one for all parameters."""
    parts = getattr(policy, "parameter_groups", None)
    if parts is None:
        return [{"params": list(policy.parameters())}]
    return [{"params": parameters, "name": name} for name, parameters in parts()]


def train(config: TrainConfig, policy: nn.Module | None = None) -> TrainResult:
    """Train a policy and write its run folder.

    Ctrl-C ends the run after the iteration under way; it is saved and usable like a finished one. Numerical trouble
    saves the state before it and is raised.

    Args:
        config: the options.
        policy: a network of the user's own, see `StackedPolicy`; by default an `MlpPolicy`.

    Raises:
        ConfigError: an option, the task or its spaces cannot be used; no run folder is made then.
        RunFolderError: the run folder exists or cannot be written.
        NumericalError: a loss or gradient is not finite.
    """
    trainer = Trainer(config, policy)
    run_dir = make_run_folder(config)
    result = TrainResult(
        trainer.policy, trainer.normalizer, run_dir, describe_backend(trainer.evaluator.collector.envs)
    )
    log = None if run_dir is None else RunLog(run_dir)
    bar = ProgressBar(config.iterations, show=config.progress_bar)
    started = time.perf_counter()
    try:
        with stop_on_interrupt() as stop:
            while trainer.iteration < config.iterations and not stop.requested:
                metrics = trainer.iterate()
                if trainer.evaluation_due():
                    metrics["eval/mean_reward"] = _evaluate_and_keep_best(trainer, run_dir)
                elapsed = time.perf_counter() - started
                metrics |= {"time/wall_time": elapsed, "time/fps": trainer.env_steps / elapsed}
                result.rows.append(metrics)
                bar.update(metrics)
                if log is not None:
                    log.write(trainer.iteration, metrics)
        result.interrupted = trainer.iteration < config.iterations
    finally:
        bar.close()
        if log is not None and run_dir is not None:
            log.close()
            save_checkpoint(run_dir / "checkpoint.pt", trainer.state_dict())
        trainer.close()
    return result


def _evaluate_and_keep_best(trainer: Trainer, run_dir: Path | None) -> float:
    """Evaluate the iterate and write ``best_model.pt`` if no evaluation was better before."""
    mean_return = trainer.evaluate()
    if mean_return > trainer.best_return:
        trainer.best_return = mean_return
        if run_dir is not None:
            content = {
                "policy": trainer.policy.state_dict(),
                "normalizer": trainer.normalizer.state_dict(),
                "iteration": trainer.iteration,
                "return": mean_return,
            }
            save_checkpoint(run_dir / "best_model.pt", content)
    return mean_return
