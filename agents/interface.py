"""The interface of agents: experience, losses, and what moves the iterate.

Axes: N points (parameter sets), T steps, E environments per point, O entries of an observation's row, m components of
an action that has several, K rows whose successor observation is not the next row.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from ..common.errors import ConfigError
from .networks.stacked import BoundPolicy, StackedPolicy


class Batch(NamedTuple):
    """One window of experience of every point, collected with that point's own parameters.

    Attributes:
        obs: [N, T, E, O], what the actor acted on; float32, or uint8 where there are images, see `ObservationLayout`.
        actions: [N, T, E] or [N, T, E, m] int64, or [N, T, E, m] float32; as sampled, before clipping and offsets.
        rewards: [N, T, E], float32.
        terminated: [N, T, E], bool; ended by the task's rules.
        truncated: [N, T, E], bool; ended by a time limit. Where both are set the episode has terminated.
        final_obs: [N, K, O], as `obs`; successor observations that are not the next row, 0 in padding entries.
        final_index: [N, K], int64; the flat rows t·E + e they belong to: every row that is truncated and not
            terminated, and the last step of every environment that did not end there; −1 in padding entries.
    """

    obs: Tensor
    actions: Tensor
    rewards: Tensor
    terminated: Tensor
    truncated: Tensor
    final_obs: Tensor
    final_index: Tensor

    def at(self, points: slice | Tensor) -> Batch:
        """The experience of some of the points: a slice or a mask [N]."""
        return Batch(*(column[points] for column in self))


class AgentLosses(NamedTuple):
    """The loss of every point and its parts; all [N], all but the first detached.

    Attributes:
        total: what is differentiated: policy_loss + vf_coef · value_loss − ent_coef · entropy.
        policy_loss: −mean(advantage · log π).
        value_loss: mean squared error of the critic; 0 without one.
        entropy: mean entropy of the policy in nats.
        explained_variance: share of the returns' variance that the critic explains; 0 without one.
    """

    total: Tensor
    policy_loss: Tensor
    value_loss: Tensor
    entropy: Tensor
    explained_variance: Tensor


class Iterate(Protocol):
    """The parameters that an `Update` moves, and the base optimizer that may take the steps."""

    def point(self) -> Tensor:
        """Copy of the parameters, [d]."""

    def move_to(self, point: Tensor) -> None:
        """Copy `point` [d] into the parameters."""

    def step(self, gradient: Tensor) -> None:
        """One step of the base optimizer with `gradient` [d], clipped to `max_grad_norm`."""

    def undone_on_fault(self) -> AbstractContextManager[None]:
        """A block whose moves and steps are undone if it raises a `NumericalError`, or ends in NaN."""


class Update(Protocol):
    """How an agent moves the iterate by itself, from the samples of all points."""

    def __call__(self, points: Tensor, batch: Batch) -> dict[str, float]:
        """Move the iterate; returns metrics for the log, by name.

        Args:
            points: [N, d], where `batch` was collected; row 0 may be the iterate.
            batch: the experience of points that are usable.

        Raises:
            NumericalError: something became NaN or infinite; the iterate is where it was.
        """

    def state_dict(self) -> dict[str, Any]:
        """What later updates depend on, besides the parameters and the base."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a state from `state_dict`."""


class Agent(ABC):
    """A policy-gradient method, as the training loop sees it.

    The built-in agents are frozen dataclasses, whose fields are options of `TrainConfig`.
    """

    @property
    def needs_critic(self) -> bool:
        """Whether the policy must have a critic."""
        return True

    @property
    def shares_critic(self) -> bool:
        """Whether one critic for all points may be fitted apart from them, to `targets`; see `n_critic_updates`."""
        return False

    @abstractmethod
    def loss(self, policy: BoundPolicy, batch: Batch) -> AgentLosses:
        """The N losses of `policy` on `batch`; the gradient of their sum is the N gradients."""

    def targets(self, policy: BoundPolicy, batch: Batch) -> Tensor:
        """Targets of a critic that all points share, for the `batch` and `policy` of `loss`: constants, [N, T, E].

        Raises:
            ConfigError: the agent has none.
        """
        raise ConfigError(f"{type(self).__name__} has no targets for a shared critic: n_critic_updates must be 0.")

    def make_update(self, policy: StackedPolicy, iterate: Iterate, seed: int) -> Update | None:
        """What moves the iterate once the points are evaluated; None: the optimizer, with the gradients of `loss`.

        Args:
            policy: the network's architecture, as a function of [N, d].
            iterate: what is moved.
            seed: of everything random in the update.
        """
        return None
