"""Gradients at N parameter sets at once, by fused collection and one backward pass; returns of a finished policy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from .agents import Agent, AgentLosses, Batch, StackedPolicy, encode_observations
from .normalization import Normalizer
from .objective import Objective
from .rollout import Collector, Episode


class Evaluation(NamedTuple):
    """True gradients at N points.

    Attributes:
        gradients: ``[N, d]``.
        losses: the total loss at each point and its parts, ``[N]`` each, detached.
        episodes: the episodes that ended while the experience was collected.
    """

    gradients: Tensor
    losses: AgentLosses
    episodes: list[Episode]


class FusedEvaluator:
    """Evaluates an agent's loss and gradient at N parameter sets, each from its own rollouts.

    One batched forward pass per time step serves all N points, and one backward pass of the summed losses gives all N
    gradients, because no point's loss depends on another point's parameters.

    Args:
        policy: the network; only its architecture is used.
        agent: gives the loss.
        collector: steps the environments.
    """

    def __init__(self, policy: nn.Module, agent: Agent, collector: Collector) -> None:
        self.policy = StackedPolicy(policy)
        self.agent = agent
        self.collector = collector
        self.batch: Batch | None = None  # the experience of the last evaluation, for a look at what went wrong

    def __call__(self, points: Tensor) -> Evaluation:
        """Loss and gradient at ``points [N, d]``."""
        points = points.detach().requires_grad_()
        bound = self.policy.bind(points)
        batch, episodes = self.collector.collect(bound, points.device)
        self.batch = batch
        losses = self.agent.loss(bound, batch)
        (gradients,) = torch.autograd.grad(losses.total.sum(), points)
        return Evaluation(gradients, losses._replace(total=losses.total.detach()), episodes)

    def objective(self) -> Objective:
        """What is optimized, for bases that look at the batch of one point, as `point_batch` gives it."""
        return Objective(self._loss, self.policy.policy, lambda batch: batch.obs[0].flatten(0, 1))

    def point_batch(self, point: int) -> Batch:
        """The last evaluation's experience of one point, ``[1, T, E, …]``."""
        assert self.batch is not None, "there was an evaluation"
        return Batch(*(values[point : point + 1] for values in self.batch))

    def _loss(self, point: Tensor, batch: Batch) -> Tensor:
        """The loss of one parameter set ``[d]``, through operations that `torch.func` can differentiate."""
        return self.agent.loss(self.policy.bind(point[None], transforms=True), batch).total[0]


@torch.no_grad()
def evaluate_policy(
    policy: nn.Module,
    envs: VectorEnv[Any, Any, Any],
    seed: int,
    normalizer: Normalizer | None = None,
    before_step: Callable[[], object] | None = None,
) -> list[float]:
    """Undiscounted returns of one episode in every sub-environment, with the most likely action at every step.

    The first episode of each counts, so that short episodes are not favoured.

    Args:
        policy: a module that `StackedPolicy` takes.
        envs: E sub-environments with SAME_STEP autoreset.
        seed: of the environments; the same seed gives the same initial states.
        normalizer: the statistics that the policy was trained with; they are used and not updated.
        before_step: called before every step, with the environments as the policy sees them.

    Returns:
        E returns.
    """
    point = parameters_to_vector(policy.parameters()).detach()[None]
    bound = StackedPolicy(policy).bind(point)
    space = envs.single_observation_space
    obs, _ = envs.reset(seed=seed)
    returns = np.zeros(envs.num_envs)
    running = np.ones(envs.num_envs, np.bool_)
    while running.any():
        if before_step is not None:
            before_step()
        seen = encode_observations(space, obs)
        rows = torch.from_numpy(normalizer.observations(seen) if normalizer else seen).to(point.device)[None]
        actions = bound.distribution.mode(bound.actor(rows))[0].cpu().numpy()
        obs, rewards, terminated, truncated, _ = envs.step(bound.distribution.to_env(actions))
        returns += rewards * running
        running &= ~(terminated | truncated)
    return [float(r) for r in returns]
