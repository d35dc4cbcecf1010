"""The evaluator whose points are on W workers of a Ray cluster, each of which evaluates its share fused.

Axes: ``N`` points, ``P`` parts (see `optex_rl.cluster.shares`), ``T`` steps, ``E`` environments per part, ``d``
parameters.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

from torch import Tensor

from ..agents import Agent, StackedPolicy
from ..bases import RefreshedBase, resolve_base
from ..common.errors import WorkerWarning
from ..envs import find_task
from ..training import EvaluatorFactory, fuse
from ..training.builders import build_normalizer
from ..training.config import TrainConfig
from ..training.rollouts.evaluator import Evaluation, Evaluator, Prepare
from ..training.rollouts.normalization import Normalizer
from .combine import combine_experience, combine_gradients, measure
from .crew import Crew
from .session import Session
from .shares import Share, cut_state, divide, join_states
from .worker import Order, Spec


def choose_evaluator(config: TrainConfig) -> EvaluatorFactory:
    """What makes the evaluator that a ``config`` asks for: `spread` with workers, else `fuse`."""
    return fuse if config.workers is None else spread


def spread(config: TrainConfig, agent: Agent, policy: StackedPolicy) -> Evaluator:
    """The evaluator on ``config.workers`` processes, see `RayEvaluator`; the arguments are those of `fuse`.

    Raises:
        ConfigError: Ray is not installed, there is no cluster, or a worker does not start.
    """
    return RayEvaluator(config, agent, policy)


def divided_work(config: TrainConfig, agent: Agent) -> tuple[bool, bool]:
    """Whether the workers differentiate, and whether the learner needs their experience.

    The learner differentiates where the samples of all must be there first: for a critic that is fitted to them before
    the advantages are computed, and where the parts are environments of one point. It needs the experience besides for
    an agent that moves the iterate itself and for a base that uses a batch.
    """
    gradients = config.n_critic_updates == 0 and config.parts == config.num_points
    moves_itself = type(agent).make_update is not Agent.make_update
    uses_batch = issubclass(resolve_base(config.optimizer).cls, RefreshedBase)
    return gradients, moves_itself or uses_batch or not gradients


def make_orders(points: Tensor, policy: StackedPolicy, normalizer: Normalizer, shares: Sequence[Share]) -> list[Order]:
    """What the workers are sent, but for the states.

    Args:
        points: ``[N, d]``; each worker gets its own, or, if there is one, that.
        policy: the network, for its buffers.
        normalizer: the statistics of all environments.
        shares: of the workers.
    """
    arrays = points.detach().cpu().numpy()
    buffers = {name: buffer.detach().cpu().numpy() for name, buffer in policy.policy.named_buffers()}
    return [
        Order(arrays if len(arrays) == 1 else arrays[share.parts], buffers, normalizer.share(share.envs), None)
        for share in shares
    ]


class RayEvaluator:
    """Evaluates the N points on W workers; the run is the one of `FusedEvaluator`, to rounding.

    A worker that dies, fails or does not answer in time is replaced. Natively vectorised tasks are evaluated again by
    its successor, from the state that the learner keeps, so that nothing is lost. Of other tasks the points of that
    worker are dropped from the evaluation, as if their numbers were not finite, and start new episodes.

    Args:
        config: the options; `TrainConfig.workers` is W.
        agent: gives the loss.
        policy: the network's architecture.

    Raises:
        ConfigError: Ray is not installed, there is no cluster, or a worker does not start.
    """

    def __init__(self, config: TrainConfig, agent: Agent, policy: StackedPolicy) -> None:
        self.config, self.agent, self.policy = config, agent, policy
        workers = config.workers or 1
        self.shares = divide(config.parts, workers, config.n_envs)
        architecture = deepcopy(policy)
        architecture.policy.cpu()
        self._spread_gradients, _ = wanted = divided_work(config, agent)
        made_from = config, agent, architecture, find_task(config.env)
        specs = [Spec(*made_from, share, *wanted) for share in self.shares]
        self.session = Session(config.ray_address, workers)
        try:
            self.crew = Crew(self.session, specs, config.worker_timeout, config.max_bad_iterations)
        except BaseException:
            self.session.close()
            raise
        infos = self.crew.infos
        self._states = [info.state for info in infos]
        self.is_exact = infos[0].is_exact
        num_envs, manner = self.shares[-1].envs.stop, infos[0].description.partition(" x ")[2]
        self.description = f"{num_envs} x {manner}, on {workers} Ray worker{'s' if workers > 1 else ''}"
        self.normalizer = build_normalizer(config, infos[0].observations, num_envs)
        self._metrics: dict[str, float] = {}
        self._dropped = 0

    def __call__(self, points: Tensor, prepare: Prepare | None = None) -> Evaluation:
        """Loss and gradient at ``points [N, d]``; NaN for points whose worker was lost and that cannot go on.

        See `Evaluator`; ``prepare`` is allowed with `TrainConfig.n_critic_updates` only.

        Raises:
            WorkerError: a worker was lost too often in a row, or the cluster is gone.
        """
        orders = make_orders(points, self.policy, self.normalizer, self.shares)
        started, deaths = time.perf_counter(), self.crew.deaths
        replies = self.crew.run(orders, self._states, again=self.is_exact)
        self._metrics = measure(time.perf_counter() - started, orders, replies, self.shares)
        for number, (share, reply) in enumerate(zip(self.shares, replies, strict=True)):
            if reply is None:
                self.normalizer.reset_episodes(share.envs)
                self._dropped += share.size
                continue
            self._states[number] = reply.state
            if reply.report is not None:
                self.normalizer.include(share.envs, reply.report)
        if deaths == 0 < self.crew.deaths:
            self._warn()
        if self._spread_gradients:
            return combine_gradients(points, replies, self.shares, self.config.n_steps)
        return combine_experience(self.agent, self.policy, points, replies, self.shares, prepare)

    def _warn(self) -> None:
        """Say once what happens where workers are lost."""
        if self.is_exact:
            words = "its points were evaluated again by another one, from the same state, and the run goes on exactly"
        else:
            words = "its points are dropped from this iteration and start new episodes"
        text = f"a worker was lost, because {self.crew.last_reason}; {words} (cluster/deaths counts how often)"
        warnings.warn(text, WorkerWarning, stacklevel=3)

    def metrics(self) -> dict[str, float]:
        """What the last evaluation took, and how many workers were lost so far, by TensorBoard tag."""
        return self._metrics | {"cluster/deaths": self.crew.deaths}

    def end_iteration(self) -> None:
        """Update the statistics."""
        self.normalizer.update()

    def state_dict(self) -> dict[str, Any]:
        """Random numbers and environments: the state of `FusedEvaluator`, whatever the number of workers."""
        return dict(join_states(self._states))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a state from `state_dict`; the workers get it with the next evaluation."""
        self._states = [cut_state(state, share) for share in self.shares]
        self.crew.forget()

    def close(self) -> None:
        """End the workers, and a cluster of our own; say what was dropped."""
        self.crew.close()
        self.session.close()
        if self._dropped:
            text = f"{self.crew.deaths} workers were lost in all, and {self._dropped} evaluations of points with them"
            warnings.warn(text, WorkerWarning, stacklevel=2)
