"""Gradients at N parameter sets at once, by fused collection and one backward pass; returns of a finished policy."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import Space
from gymnasium.vector import VectorEnv
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from .agents import Agent, AgentLosses, Batch, StackedPolicy, encode_observations, sample_observations
from .agents.stacking import warn_of_passes
from .normalization import Normalizer
from .objective import Objective
from .rollout import Collector, Episode

KEPT_BYTES: Final = 2**25 - 2**16  # just below the 32 MiB that glibc lets its threshold rise to on its own


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
        differentiate: whether the gradients are wanted; else they are zero.
        shared: parameters of the network that all points have in common, see `StackedPolicy`.

    Raises:
        ConfigError: what the network draws, changes or keeps in its forward pass would be shared by the points.

    Warns:
        PerformanceWarning: the points are evaluated one after the other.
    """

    def __init__(
        self,
        policy: nn.Module,
        agent: Agent,
        collector: Collector,
        differentiate: bool = True,
        shared: Iterable[nn.Parameter] = (),
    ) -> None:
        self.policy = StackedPolicy(policy, shared=shared)
        space = collector.envs.single_observation_space
        self.policy.examine(example_observations(space), agent.needs_critic and self.policy.has_critic)
        warn_of_passes(type(policy).__name__, collector.shape[0], self.policy.obstacle, stacklevel=5)  # at `train`
        self.agent = agent
        self.collector = collector
        self.differentiate = differentiate
        self.batch: Batch | None = None  # the experience of the last evaluation, for a look at what went wrong
        keep_freed_memory()

    def __call__(self, points: Tensor) -> Evaluation:
        """Loss and gradient at ``points [N, d]``."""
        points = points.detach().requires_grad_()
        bound = self.policy.bind(points)
        batch, episodes = self.collector.collect(bound, points.device)
        self.batch = batch
        with torch.set_grad_enabled(self.differentiate):
            losses = self.agent.loss(bound, batch)
        if not self.differentiate:
            return Evaluation(torch.zeros_like(points), losses, episodes)
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


def example_observations(space: Space[Any]) -> Tensor:
    """Two random observations as the networks take them, [2, O]."""
    return torch.from_numpy(encode_observations(space, sample_observations(space, 2)))


def keep_freed_memory() -> None:
    """Have the process keep freed arrays of up to 32 MiB for the next ones, not return them to the system each time.

    A page that comes back from the system costs more to touch than the arithmetic on it. glibc returns arrays above a
    threshold, which rises when a larger one is freed (mallopt(3), M_MMAP_THRESHOLD): so one is made, never touched, and
    freed. With other C libraries, or where the environment has set the threshold, nothing happens.
    """
    torch.empty(KEPT_BYTES, dtype=torch.uint8)


def play_episodes(
    act: Callable[[npt.NDArray[Any]], npt.NDArray[Any]],
    envs: VectorEnv[Any, Any, Any],
    seed: int,
    before_step: Callable[[], object] | None = None,
) -> list[float]:
    """Undiscounted returns of one episode in every sub-environment.

    The first episode of each counts, so that short episodes are not favoured.

    Args:
        act: actions ``[E, …]`` for observations ``[E, …]``, both as the environments have them.
        envs: E sub-environments with SAME_STEP autoreset.
        seed: of the environments; the same seed gives the same initial states.
        before_step: called before every step, with the environments as the policy sees them.

    Returns:
        E returns.
    """
    obs, _ = envs.reset(seed=seed)
    returns = np.zeros(envs.num_envs)
    running = np.ones(envs.num_envs, np.bool_)
    while running.any():
        if before_step is not None:
            before_step()
        obs, rewards, terminated, truncated, _ = envs.step(act(obs))
        returns += rewards * running
        running &= ~(terminated | truncated)
    return [float(r) for r in returns]


@torch.no_grad()
def evaluate_policy(
    policy: nn.Module,
    envs: VectorEnv[Any, Any, Any],
    seed: int,
    normalizer: Normalizer | None = None,
    before_step: Callable[[], object] | None = None,
) -> list[float]:
    """Undiscounted returns of one episode in every sub-environment, with the most likely action at every step.

    Args:
        policy: a module that `StackedPolicy` takes.
        envs: E sub-environments, as for `play_episodes`.
        seed: of the environments, likewise.
        normalizer: the statistics that the policy was trained with; they are used and not updated.
        before_step: as for `play_episodes`.

    Returns:
        E returns.

    Raises:
        ConfigError: the outputs of the network would depend on earlier calls, see `StackedPolicy.examine`.
    """
    point = parameters_to_vector(policy.parameters()).detach()[None]
    space = envs.single_observation_space
    stacked = StackedPolicy(policy)
    stacked.examine(example_observations(space), critic=False)
    bound = stacked.bind(point)

    def act(obs: npt.NDArray[Any]) -> npt.NDArray[Any]:
        seen = encode_observations(space, obs)
        rows = torch.from_numpy(normalizer.observations(seen) if normalizer else seen).to(point.device)[None]
        actions = bound.distribution.mode(bound.actor(rows))[0].cpu().numpy()
        return bound.distribution.to_env(actions)

    return play_episodes(act, envs, seed, before_step)
