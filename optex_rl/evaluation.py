"""Gradients at N parameter sets at once, by fused collection and one backward pass; returns of a finished policy."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import Space
from gymnasium.vector import VectorEnv
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from .agents import Agent, AgentLosses, Batch, StackedPolicy, encode_observations, sample_observations
from .envs import NativeVectorEnv, describe_backend
from .normalization import Normalizer
from .rollout import Collector, Episode

KEPT_BYTES: Final = 2**25 - 2**16  # just below the 32 MiB that glibc lets its threshold rise to on its own


class Evaluation(NamedTuple):
    """True gradients at N points.

    Attributes:
        gradients: ``[N, d]``.
        losses: the total loss at each point and its parts, ``[N]`` each, detached.
        episodes: the episodes that ended while the experience was collected.
        batch: the experience, ``[N, T, E, …]``.
        broken: which environments gave observations or rewards that are NaN or infinite, ``[N·E]``.
        samples: environment steps that it took, over all points.
    """

    gradients: Tensor
    losses: AgentLosses
    episodes: list[Episode]
    batch: Batch
    broken: npt.NDArray[np.bool_]
    samples: int


class Evaluator(Protocol):
    """Evaluates an agent's loss and gradient at N parameter sets, each from its own rollouts, here or elsewhere."""

    @property
    def normalizer(self) -> Normalizer:
        """The statistics that the policy is used with; saved with it, and loaded before `load_state_dict`."""

    @property
    def description(self) -> str:
        """What steps the environments, for a reader."""

    @property
    def is_exact(self) -> bool:
        """Whether `load_state_dict` goes on bit for bit; else episodes start anew."""

    def __call__(self, points: Tensor) -> Evaluation:
        """Loss and gradient at ``points [N, d]``."""

    def end_iteration(self) -> None:
        """Update the statistics, which stand still while points are evaluated, by what was seen at them."""

    def state_dict(self) -> dict[str, Any]:
        """What later evaluations depend on, besides the statistics."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""

    def close(self) -> None:
        """Give back environments and processes."""


class FusedEvaluator:
    """The evaluator in the process: one batched forward pass per time step serves all N points.

    One backward pass of the summed losses gives all N gradients, because no point's loss depends on another point's
    parameters.

    Args:
        policy: the network's architecture, as a function of the points.
        agent: gives the loss.
        collector: steps the environments.
    """

    def __init__(self, policy: StackedPolicy, agent: Agent, collector: Collector) -> None:
        self.policy = policy
        self.agent = agent
        self.collector = collector
        keep_freed_memory()

    def __call__(self, points: Tensor) -> Evaluation:
        """Loss and gradient at ``points [N, d]``."""
        points = points.detach().requires_grad_()
        bound = self.policy.bind(points)
        batch, episodes = self.collector.collect(bound, points.device)
        losses = self.agent.loss(bound, batch)
        (gradients,) = torch.autograd.grad(losses.total.sum(), points)
        losses = losses._replace(total=losses.total.detach())
        return Evaluation(gradients, losses, episodes, batch, self.collector.broken, math.prod(self.collector.shape))

    @property
    def normalizer(self) -> Normalizer:
        """The statistics of the collector."""
        return self.collector.normalizer

    @property
    def description(self) -> str:
        """What the environments are."""
        return describe_backend(self.collector.envs)

    @property
    def is_exact(self) -> bool:
        """Whether the environments give their state away, as the native ones do."""
        return isinstance(self.collector.envs, NativeVectorEnv)

    def end_iteration(self) -> None:
        """Update the statistics."""
        self.normalizer.update()

    def state_dict(self) -> dict[str, Any]:
        """Random numbers and environments."""
        return self.collector.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.collector.load_state_dict(state)

    def close(self) -> None:
        """Close the environments."""
        self.collector.envs.close()


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
