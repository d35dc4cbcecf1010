"""Gradients at N parameter sets at once, by fused collection and one backward pass.

Axes: ``N`` points, ``T`` steps, ``E`` environments per point, ``d`` parameters.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final, NamedTuple, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ...agents import Agent, AgentLosses, Batch, BoundPolicy, StackedPolicy
from ...common.errors import Interrupted
from ...envs import NativeVectorEnv, describe_backend
from .collector import Collector
from .episodes import Episode
from .normalization import Normalizer

# Called with points [N, d], their experience and which environments broke, [N·E], before the losses are computed.
Prepare: TypeAlias = Callable[[Tensor, Batch, npt.NDArray[np.bool_]], None]
KEPT_BYTES: Final = 2**25 - 2**16  # just below the 32 MiB that glibc lets its threshold rise to on its own


class Evaluation(NamedTuple):
    """True gradients at N points.

    Attributes:
        gradients: ``[N, d]``.
        losses: the total loss at each point and its parts, ``[N]`` each, detached.
        episodes: the episodes that ended while the experience was collected.
        batch: the experience, ``[N, T, E, …]``; without steps (T = 0) where nobody asked an evaluator for it.
        broken: which environments gave observations or rewards that are NaN or infinite, ``[N·E]``.
        samples: environment steps that it took, over all points.
    """

    gradients: Tensor
    losses: AgentLosses
    episodes: list[Episode]
    batch: Batch
    broken: npt.NDArray[np.bool_]
    samples: int


def find_faults(gradients: Tensor, losses: Tensor, broken: npt.NDArray[np.bool_]) -> dict[int, str]:
    """What is not finite at each point that cannot be used; empty if all is well.

    Args:
        gradients: ``[N, d]``.
        losses: ``[N]``.
        broken: ``[N·E]``, which environments gave observations or rewards that are not finite.
    """
    norms = torch.linalg.vector_norm(gradients, dim=1)
    if norms.isfinite().all() and losses.isfinite().all() and not broken.any():
        return {}  # as nearly always, at a fraction of the cost
    by_point = broken.reshape(len(gradients), -1)
    bad = (~gradients.isfinite()).sum(1).tolist()
    reasons = {}
    for point, (loss, entries) in enumerate(zip(losses.tolist(), bad, strict=True)):
        causes = []
        if by_point[point].any():
            which = ", ".join(map(str, np.flatnonzero(by_point[point])))
            causes.append(f"observations or rewards of its environments {which}")
        if not np.isfinite(loss):
            causes.append(f"its loss, {loss}")
        if entries:
            causes.append(f"{entries} of {gradients.shape[1]} entries of its gradient")
        if causes:
            reasons[point] = " and ".join(causes)
    return reasons


class Evaluator(Protocol):
    """Evaluates an agent's loss and gradient at N parameter sets, each from its own rollouts, here or elsewhere.

    One that has a method ``call_before_steps``, as `FusedEvaluator` has, can be interrupted in the middle of them.
    """

    @property
    def normalizer(self) -> Normalizer:
        """The statistics that the policy is used with; saved with it, and loaded before `load_state_dict`."""

    @property
    def description(self) -> str:
        """What steps the environments, in words."""

    @property
    def is_exact(self) -> bool:
        """Whether a loaded state continues bit for bit; else episodes start over."""

    def __call__(self, points: Tensor, prepare: Prepare | None = None) -> Evaluation:
        """Loss and gradient at ``points [N, d]``.

        Args:
            points: ``[N, d]``.
            prepare: called between the collection and the losses; it may change what the points share, in place.
        """

    def end_iteration(self) -> None:
        """Update the statistics, which are frozen while points are evaluated, with the data seen there."""

    def state_dict(self) -> dict[str, Any]:
        """What later evaluations depend on, besides the statistics."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a state from `state_dict`."""

    def close(self) -> None:
        """Close environments and processes."""


@runtime_checkable
class ReportsMetrics(Protocol):
    """An evaluator with something to log."""

    def metrics(self) -> dict[str, float]:
        """Metrics of the last iteration by TensorBoard tag."""


def differentiate(agent: Agent, bound: BoundPolicy, points: Tensor, batch: Batch) -> tuple[Tensor, AgentLosses]:
    """Gradients ``[N, d]`` and losses, detached, of an agent at ``points``, which ``bound`` depends on."""
    losses = agent.loss(bound, batch)
    (gradients,) = torch.autograd.grad(losses.total.sum(), points)
    return gradients, losses._replace(total=losses.total.detach())


class FusedEvaluator:
    """The evaluator in this process: one batched forward pass per time step serves all N points.

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
        self.normalizer = collector.normalizer
        self.description = describe_backend(collector.envs)
        self.is_exact = isinstance(collector.envs.unwrapped, NativeVectorEnv)
        self._before_step: Callable[[], object] | None = None

    def call_before_steps(self, before_step: Callable[[], object] | None) -> None:
        """Have ``before_step`` called before every step, or nothing; `Interrupted` from it leaves all as it was."""
        self._before_step = before_step

    def __call__(self, points: Tensor, prepare: Prepare | None = None) -> Evaluation:
        """Loss and gradient at ``points [N, d]``, see `Evaluator`."""
        points = points.detach().requires_grad_()
        bound = self.policy.bind(points)
        before = self.collector.state_dict()
        try:
            batch, episodes = self.collector.collect(bound, points.device, self._before_step)
        except Interrupted:
            self.collector.load_state_dict(before)
            raise
        if prepare is not None:
            prepare(points.detach(), batch, self.collector.broken)
        gradients, losses = differentiate(self.agent, bound, points, batch)
        return Evaluation(gradients, losses, episodes, batch, self.collector.broken, math.prod(self.collector.shape))

    def end_iteration(self) -> None:
        """Update the statistics."""
        self.normalizer.update()

    def state_dict(self) -> dict[str, Any]:
        """Random numbers and environments."""
        return self.collector.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a state from `state_dict`."""
        self.collector.load_state_dict(state)

    def close(self) -> None:
        """Close the environments."""
        self.collector.envs.close()


def keep_freed_memory() -> None:
    """Have the process keep freed arrays of up to 32 MiB for the next ones, not return them to the system each time.

    It acts on the whole process, so the commands call it, and no constructor. Without it an iteration takes 6 to 15 %
    longer: a page that comes back from the system costs more to touch than the arithmetic on it. glibc returns arrays
    above a threshold, which rises when a larger one is freed (mallopt(3), M_MMAP_THRESHOLD): so one is made, never
    touched, and freed. With other C libraries, or where the environment has set the threshold, nothing happens.
    """
    torch.empty(KEPT_BYTES, dtype=torch.uint8)
