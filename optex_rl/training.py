"""Training: environments, agent and optimizer wired together, one sequential iteration at a time."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any, Final

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor, nn

from .agents import PPO, AgentLosses, MlpPolicy, make_agent, observation_size
from .bases import fused_kwargs, make_base
from .config import TrainConfig
from .envs import make_vec
from .epochs import CriticUpdates, Epochs
from .errors import ConfigError, NotPositiveDefiniteError, NumericalError, NumericalWarning
from .evaluation import FusedEvaluator, evaluate_policy
from .flat import FlatBase
from .logs import EpisodeStatistics
from .normalization import Normalizer
from .objective import RefreshedBase
from .optimizer import OptEx
from .rollout import Collector, spawn_seeds
from .trouble import TroubleLog, describe, find_trouble, gather_evidence

MOST_NUMBERS: Final = 2 * 10**9  # of an array: 8 GB in single precision


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
        check_sizes(
            config, observation_size(envs.single_observation_space), sum(p.numel() for p in policy.parameters())
        )
        self.policy = policy.to(config.device)
        kwargs = fused_kwargs(config.optimizer)
        groups, critic = split_critic(policy) if config.n_critic_updates else (parameter_groups(policy), [])
        base = make_base(config.optimizer, groups, config.learning_rate, kwargs)
        self.optimizer = OptEx.wrap(base, **asdict(config.optex_options()))
        self.normalizer = build_normalizer(config, envs)
        collector = Collector(
            envs, config.num_points, config.n_steps, config.seed, self.normalizer, config.noise_repeat
        )
        # With one point nobody needs the gradient where PPO's epochs begin.
        only_epochs = isinstance(agent, PPO) and config.num_points == 1
        self.evaluator = FusedEvaluator(policy, agent, collector, differentiate=not only_epochs, shared=critic)
        self.critic = CriticUpdates(agent, self.evaluator.policy, critic, config) if critic else None
        self.epochs: Epochs | None = None
        if isinstance(agent, PPO):
            flat = FlatBase(base, config.max_grad_norm)
            self.epochs = Epochs(agent, self.evaluator.policy, flat, spawn_seeds(config.seed, 4, 1)[0])
        if isinstance(base, RefreshedBase):
            base.bind(self.evaluator.objective())
        self.episodes = EpisodeStatistics()
        self.trouble = TroubleLog(config.max_bad_iterations)
        self.iteration = 0
        self.env_steps = 0
        self.best_return = -np.inf
        self._evaluation_envs: Any = None

    def iterate(self) -> dict[str, float]:
        """One sequential iteration; its metrics by TensorBoard tag.

        Raises:
            NumericalError: more than ``max_bad_iterations`` bad attempts in a row, see `optex_rl.trouble`; the policy
                is as it was before the last of them.
        """
        dropped = self.trouble.dropped
        schedule = self.config.schedule_at(self.iteration)
        learning_rate = self.config.learning_rate * schedule
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        if self.critic is not None:
            self.critic.set_learning_rate(self.config.critic_learning_rate * schedule)
        for _ in range(self.config.evaluations):
            losses = self._evaluate_and_step()
            self.normalizer.update()  # after each evaluation, so that target stays vanilla with fewer reports
        self.iteration += 1
        parts = losses._asdict().items()
        return {
            "time/env_steps": self.env_steps,
            **self.episodes.metrics(),
            "train/learning_rate": learning_rate,
            **{f"train/{name}": float(value.mean()) for name, value in parts if name != "total"},
            "train/dropped_points": self.trouble.dropped - dropped,
            **{f"optex/{name}": value for name, value in self.optimizer.statistics.items()},
        }

    def _evaluate_and_step(self) -> AgentLosses:
        """Evaluate and step, again with new samples where numerical trouble allows no step; losses of usable points."""
        while True:
            try:
                losses = self._attempt()
            except NotPositiveDefiniteError as error:
                self.trouble.bad(self.iteration + 1, error)
                self.optimizer.reset_history()  # the same history would give the same matrix
            except NumericalError as error:
                if self.trouble.stops_with(error):
                    raise
                self.trouble.bad(self.iteration + 1, error, {"policy": self.policy.state_dict()})
            else:
                if losses is not None:
                    return losses

    def _attempt(self) -> AgentLosses | None:
        """One evaluation, and the step from its usable points; None if no point is usable."""
        points = self.optimizer.ask()
        gradients, losses, episodes = self.evaluator(points)
        self.episodes.add(episodes)
        self.env_steps += int(np.prod(self.evaluator.collector.shape))
        reasons = find_trouble(gradients, losses.total, self.evaluator.collector.broken)
        if not reasons:
            losses = self._step(points, gradients, losses)
            self.trouble.good()
            return losses
        evidence = gather_evidence(reasons, points, gradients, losses, self.evaluator.batch)
        self.trouble.bad(self.iteration + 1, describe(reasons), evidence)
        self.trouble.dropped += len(reasons)
        usable = torch.tensor([point not in reasons for point in range(len(points))])
        if not usable.any():
            return None
        return self._step(points, gradients, losses, usable)

    def _step(
        self, points: Tensor, gradients: Tensor, losses: AgentLosses, usable: Tensor | None = None
    ) -> AgentLosses:
        """Move to the next iterate by the optimizer, or by PPO's epochs; the losses to report."""
        told = losses.total
        if usable is not None:
            losses = AgentLosses(*(value[usable] for value in losses))
        self._refresh(0 if usable is None else int(usable.int().argmax()))
        batch = self.evaluator.batch
        assert batch is not None, "there was an evaluation"
        if self.epochs is not None:
            losses = self.epochs(points, batch, usable)
        with nullcontext() if self.critic is None else self.critic.fitted(points, batch, usable):
            self.optimizer.tell(gradients, told, usable)  # after epochs it only remembers: the parameters have moved
        return losses

    def _refresh(self, point: int) -> None:
        """Let the base look at the batch of a point: the iterate, or the first usable one."""
        base = self.optimizer.base
        if isinstance(base, RefreshedBase):
            # The steps so far number the attempts, so that a resumed run draws what the uninterrupted one does.
            seed = np.random.SeedSequence(self.config.seed, spawn_key=(4, self.env_steps)).generate_state(1)[0]
            base.refresh(self.evaluator.point_batch(point), torch.Generator().manual_seed(int(seed)))

    def evaluate(self) -> float:
        """Mean return of the policy's most likely actions over ``eval_episodes`` episodes, the same ones every time."""
        if self._evaluation_envs is None:
            self._evaluation_envs = make_vec(self.config.env, self.config.eval_episodes)
        seed = spawn_seeds(self.config.seed, 3, 1)[0]
        returns = evaluate_policy(self.policy, self._evaluation_envs, seed, self.normalizer)
        bad = [number for number, value in enumerate(returns) if not np.isfinite(value)]
        if bad:
            text = f"the returns of evaluation episodes {', '.join(map(str, bad))} are not finite"
            warnings.warn(f"iteration {self.iteration}: {text}; it counts for nothing", NumericalWarning, stacklevel=2)
            return float("nan")
        return float(np.mean(returns))

    def evaluation_due(self) -> bool:
        """Whether the iterate is to be evaluated now."""
        frequency = self.config.eval_freq
        return frequency > 0 and (self.iteration % frequency == 0 or self.iteration == self.config.iterations)

    def state_dict(self) -> dict[str, Any]:
        """Everything that later iterations depend on, as plain values and tensors."""
        optimizer = self.optimizer.state_dict()
        optimizer["optex"]["proposal"] = None  # an iteration that came to nothing is proposed again, the same
        return {
            "policy": self.policy.state_dict(),
            "optimizer": optimizer,
            "normalizer": self.normalizer.state_dict(),
            "collector": self.evaluator.collector.state_dict(),
            "episodes": self.episodes.state_dict(),
            "trouble": self.trouble.state_dict(),
            "epochs": None if self.epochs is None else self.epochs.state_dict(),
            "critic": None if self.critic is None else self.critic.state_dict(),
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
        self.trouble.load_state_dict(state["trouble"])
        if self.epochs is not None:
            self.epochs.load_state_dict(state["epochs"])
        if self.critic is not None:
            self.critic.load_state_dict(state["critic"])
        self.iteration, self.env_steps = state["iteration"], state["env_steps"]
        self.best_return = state["best_return"]

    def close(self) -> None:
        """Close the environments."""
        self.evaluator.collector.envs.close()
        if self._evaluation_envs is not None:
            self._evaluation_envs.close()


def check_sizes(config: TrainConfig, features: int, d: int) -> None:
    """Refuse options of which an iteration could not be held in memory.

    Args:
        config: the options.
        features: of an observation.
        d: number of parameters.

    Raises:
        ConfigError: naming the first array that would be too large.
    """
    options = config.optex_options()
    sizes = {"samples × features of an observation": config.samples * features}
    if options.parallelism > 1:
        sizes["history_size × parameters"] = options.history_size * d
        sizes["parallelism × stride × parameters"] = options.parallelism * options.stride * d
    for words, size in sizes.items():
        if size > MOST_NUMBERS:
            raise ConfigError(f"{words} must be at most {MOST_NUMBERS} numbers, got {size}")


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


def split_critic(policy: nn.Module) -> tuple[list[dict[str, Any]], list[nn.Parameter]]:
    """The groups of a policy but the one named "critic", and the parameters of that one.

    Raises:
        ConfigError: there is none.
    """
    groups = parameter_groups(policy)
    critic = [parameter for group in groups if group.get("name") == "critic" for parameter in group["params"]]
    if not critic:
        name = type(policy).__name__
        raise ConfigError(f"n_critic_updates needs a part 'critic' in {name}.parameter_groups(): name it, or use 0")
    return [group for group in groups if group["name"] != "critic"], critic
