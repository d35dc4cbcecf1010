"""Training: environments, agent and optimizer wired together, one sequential iteration at a time."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..agents import Agent, AgentLosses, Batch, StackedPolicy, observation_size
from ..agents.networks.batching import warn_of_passes
from ..bases import RefreshedBase, make_base
from ..bases.flat import FlatBase
from ..common.errors import ConfigError, Interrupted, NotPositiveDefiniteError, NumericalError, NumericalWarning
from ..optimizer import OptEx
from .builders import (
    EvaluatorFactory,
    base_kwargs,
    build_objective,
    check_sizes,
    choose_policy,
    fuse,
    make_envs,
    parameter_groups,
    split_critic,
)
from .config import TrainConfig
from .diagnostics import actor_first, ceilings
from .faults import FaultLog, describe, gather_evidence
from .rollouts.episodes import EpisodeStatistics
from .rollouts.evaluation import evaluate_policy, example_observations
from .rollouts.evaluator import Evaluation, ReportsMetrics, find_faults
from .rollouts.seeding import spawn_seeds
from .updates import CriticUpdates


class Trainer:
    """Connects evaluator, agent and optimizer; one call of `iterate` is one sequential iteration.

    Args:
        config: the options.
        policy: a custom network, see `StackedPolicy`; by default an `MlpPolicy`.
        agent: a custom agent; by default the one that ``config.algo`` names.
        make_evaluator: makes what evaluates the points; by default the fused evaluator in this process.

    Raises:
        ConfigError: an option, the task or its spaces cannot be used; or what the network draws, changes or keeps in
            its forward pass would be shared by the points.

    Warns:
        PerformanceWarning: the points are evaluated one after the other.
        UserWarning: what looks like an image is flattened, or its channels may be in another axis.
    """

    def __init__(
        self,
        config: TrainConfig,
        policy: nn.Module | None = None,
        agent: Agent | None = None,
        make_evaluator: EvaluatorFactory = fuse,
    ) -> None:
        self.config = config
        self.agent = agent = config.make_agent() if agent is None else agent
        if config.n_critic_updates and not agent.shares_critic:  # a custom agent, which the options do not know
            name = type(agent).__name__
            raise ConfigError(
                f"n_critic_updates must be 0 with {name}, got {config.n_critic_updates}: see shares_critic"
            )
        with closing(make_envs(config, 1)) as envs:
            spaces = envs.single_observation_space, envs.single_action_space
        policy = choose_policy(config, policy, agent.needs_critic, *spaces, stacklevel=4)  # at `train`
        check_sizes(config, observation_size(spaces[0]), sum(p.numel() for p in policy.parameters()))
        self.policy = policy.to(config.device)
        groups, critic = split_critic(policy) if config.n_critic_updates else (parameter_groups(policy), [])
        base = make_base(config.optimizer, groups, config.learning_rate, base_kwargs(config))
        self.optimizer = OptEx.wrap(base, **asdict(config.optex_options()))
        self.stacked = stacked = StackedPolicy(policy, shared=critic)
        stacked.examine(example_observations(spaces[0]), agent.needs_critic and stacked.has_critic)
        warn_of_passes(type(policy).__name__, config.num_points, stacked.obstacle, stacklevel=4)  # at `train`
        self.critic = CriticUpdates(agent, stacked, critic, config) if critic else None
        iterate = FlatBase(base, config.max_grad_norm)
        self.update = agent.make_update(stacked, iterate, spawn_seeds(config.seed, 4, 1)[0])
        if isinstance(base, RefreshedBase):
            base.bind(build_objective(agent, stacked))
        self.evaluator = make_evaluator(config, agent, stacked)
        self.episodes = EpisodeStatistics()
        self.faults = FaultLog(config.max_bad_iterations)
        self.iteration = 0
        self.env_steps = 0
        self.best_return = -np.inf
        self._evaluation_envs: Any = None
        self._before_step: Callable[[], object] | None = None
        self._ceilings: dict[str, float] | None = None

    @contextmanager
    def calling_before_steps(self, before_step: Callable[[], object]) -> Iterator[None]:
        """A block in which ``before_step`` is called before every step of the environments, evaluations included.

        `Interrupted` from it ends an evaluation, or an iteration with the state as it was before; evaluators that do
        not know it (see `Evaluator`) finish theirs.
        """
        set_in_evaluator = getattr(self.evaluator, "call_before_steps", lambda _: None)
        self._before_step = before_step
        set_in_evaluator(before_step)
        try:
            yield
        finally:
            self._before_step = None
            set_in_evaluator(None)

    def iterate(self, with_ceiling: bool = False) -> dict[str, float]:
        """One sequential iteration; its metrics by TensorBoard tag.

        Args:
            with_ceiling: whether to report ``optex/ceiling``, which takes one more backward pass.

        Raises:
            NumericalError: more than ``max_bad_iterations`` bad attempts in a row, see `optex_rl.training.faults`; the
                policy is as it was before the last of them.
            Interrupted: see `calling_before_steps`.
        """
        before = deepcopy(self.state_dict()) if self.config.evaluations > 1 else None  # there are steps in between
        self._ceilings = {} if with_ceiling else None
        try:
            return self._iterate()
        except Interrupted:
            if before is not None:
                self.load_state_dict(before)
            raise

    def _iterate(self) -> dict[str, float]:
        dropped = self.faults.dropped
        schedule = self.config.schedule_at(self.iteration)
        learning_rate = self.config.learning_rate * schedule
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        if self.critic is not None:
            self.critic.set_learning_rate(self.config.critic_learning_rate * schedule)
        for _ in range(self.config.evaluations):
            while not (report := self._attempt()):
                pass  # a fault allowed no step: again, with new samples
            self.evaluator.end_iteration()  # after each evaluation, so that target stays vanilla with fewer reports
        self.iteration += 1
        return {
            "time/env_steps": self.env_steps,
            **self.episodes.metrics(),
            "train/learning_rate": learning_rate,
            **{f"train/{name}": value for name, value in report.items()},
            "train/dropped_points": self.faults.dropped - dropped,
            **{f"optex/{name}": value for name, value in self._diagnostics().items()},
            **(self.evaluator.metrics() if isinstance(self.evaluator, ReportsMetrics) else {}),
        }

    def _attempt(self) -> dict[str, float]:
        """One evaluation, and the step from its usable points; returns the metrics, none if no step was possible."""
        try:
            with nullcontext() if self.critic is None else self.critic.undone_on_fault():
                return self._evaluate_and_step()
        except NotPositiveDefiniteError as error:
            self.faults.bad(self.iteration + 1, error)
            self.optimizer.reset_history()  # the same history would give the same matrix
        except NumericalError as error:
            if self.faults.stops_with(error):
                raise
            self.faults.bad(self.iteration + 1, error, {"policy": self.policy.state_dict()})
        return {}

    def _evaluate_and_step(self) -> dict[str, float]:
        points = self.optimizer.ask()
        evaluation = self.evaluator(*(points,) if self.critic is None else (points, self.critic.fit))
        self.episodes.add(evaluation.episodes)
        self.env_steps += evaluation.samples
        reasons = find_faults(evaluation.gradients, evaluation.losses.total, evaluation.broken)
        if not reasons:
            if self._ceilings is not None:
                groups = self.optimizer.param_groups
                self._ceilings = ceilings(self.agent, self.stacked, points, evaluation.batch, groups)
            report = self._step(points, evaluation)
            self.faults.in_a_row = 0
            return report
        usable = self._drop(reasons, points, evaluation)
        return self._step(points, evaluation, usable) if usable.any() else {}

    def _diagnostics(self) -> dict[str, float]:
        statistics = actor_first(self.optimizer.statistics, "cosine")
        return statistics | (actor_first(self._ceilings or {}, "ceiling") if "cosine" in statistics else {})

    def _drop(self, reasons: dict[int, str], points: Tensor, evaluation: Evaluation) -> Tensor:
        """Count and save what is not finite at some of the points; returns the mask ``[N]`` of the others."""
        self.faults.bad(self.iteration + 1, describe(reasons), gather_evidence(reasons, points, evaluation))
        self.faults.dropped += len(reasons)
        return torch.tensor([point not in reasons for point in range(len(points))])

    def _step(self, points: Tensor, evaluation: Evaluation, usable: Tensor | None = None) -> dict[str, float]:
        """Move to the next iterate, by the agent's update or the optimizer; returns the metrics."""
        losses, batch = evaluation.losses, evaluation.batch
        collected = points
        if usable is not None:
            losses, batch, collected = AgentLosses(*(part[usable] for part in losses)), batch.at(usable), points[usable]
        if isinstance(self.optimizer.base, RefreshedBase):
            self._refresh(self.optimizer.base, batch)
        report = {name: float(part.mean()) for name, part in losses._asdict().items() if name != "total"}
        if self.update is not None:
            report |= self.update(collected, batch)
        self.optimizer.tell(evaluation.gradients, evaluation.losses.total, usable, move=self.update is None)
        return report

    def _refresh(self, base: RefreshedBase, batch: Batch) -> None:
        """Refresh the base with the batch of one point: the iterate, or the first usable one."""
        # The steps so far number the attempts, so that a resumed run draws what the uninterrupted one does.
        seed = np.random.SeedSequence(self.config.seed, spawn_key=(4, self.env_steps)).generate_state(1)[0]
        base.refresh(batch.at(slice(0, 1)), torch.Generator().manual_seed(int(seed)))

    def evaluate(self) -> float:
        """Mean return of the policy's most likely actions over ``eval_episodes`` episodes, each time the same.

        Raises:
            Interrupted: see `calling_before_steps`.
        """
        if self._evaluation_envs is None:
            self._evaluation_envs = make_envs(self.config, self.config.eval_episodes)
        seed = spawn_seeds(self.config.seed, 3, 1)[0]
        normalizer = self.evaluator.normalizer
        returns = evaluate_policy(self.policy, self._evaluation_envs, seed, normalizer, self._before_step)
        bad = [number for number, value in enumerate(returns) if not np.isfinite(value)]
        if bad:
            text = f"the returns of evaluation episodes {', '.join(map(str, bad))} are not finite"
            warnings.warn(f"iteration {self.iteration}: {text}; it is ignored", NumericalWarning, stacklevel=2)
            return float("nan")
        return float(np.mean(returns))

    def evaluation_due(self, ahead: int = 0) -> bool:
        """Whether the iterate is to be evaluated now, or so many iterations ahead."""
        frequency, iteration = self.config.eval_freq, self.iteration + ahead
        return frequency > 0 and (iteration % frequency == 0 or iteration == self.config.iterations)

    def state_dict(self) -> dict[str, Any]:
        """Everything that later iterations depend on, as plain values and tensors."""
        optimizer = self.optimizer.state_dict()
        optimizer["optex"]["proposal"] = None  # an iteration without a step is proposed again, identically
        return {
            "policy": self.policy.state_dict(),
            "optimizer": optimizer,
            "normalizer": self.evaluator.normalizer.state_dict(),
            "evaluator": self.evaluator.state_dict(),
            "episodes": self.episodes.state_dict(),
            "faults": self.faults.state_dict(),
            "update": None if self.update is None else self.update.state_dict(),
            "critic": None if self.critic is None else self.critic.state_dict(),
            "iteration": self.iteration,
            "env_steps": self.env_steps,
            "best_return": self.best_return,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a state from `state_dict`."""
        self.policy.load_state_dict(state["policy"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.evaluator.normalizer.load_state_dict(state["normalizer"])
        self.evaluator.load_state_dict(state["evaluator"])
        self.episodes.load_state_dict(state["episodes"])
        self.faults.load_state_dict(state["faults"])
        if self.update is not None:
            self.update.load_state_dict(state["update"])
        if self.critic is not None:
            self.critic.load_state_dict(state["critic"])
        self.iteration, self.env_steps = state["iteration"], state["env_steps"]
        self.best_return = state["best_return"]

    def close(self) -> None:
        """Close the environments."""
        self.evaluator.close()
        if self._evaluation_envs is not None:
            self._evaluation_envs.close()
