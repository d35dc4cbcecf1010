"""What a base optimizer may need besides a gradient: the objective, and two protocols to get at it.

Axes: ``d`` parameters, ``B`` rows of a batch, ``O`` observation features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ..common.errors import ConfigError

GradientFunction = Callable[[Tensor], Tensor]  # θ [d] → gradient [d]


@dataclass(frozen=True)
class Objective:
    """The objective as a function of parameters and batch, for bases that need more of it than gradients.

    Attributes:
        loss: ``(θ [d], batch)`` → the loss, a scalar; `torch.func` must be able to differentiate it twice. Needed by
            AdaHessian, and by SAM where there is no posterior.
        policy: the module whose parameters are optimized, with ``actor(obs)``, ``distribution`` and possibly
            ``critic(obs)``, see `optex_rl.agents.StackedPolicy`. Needed by natural gradient and K-FAC.
        observations: batch → the observations ``[B, O]`` at which the policy is evaluated.
    """

    loss: Callable[[Tensor, Any], Tensor] | None = None
    policy: nn.Module | None = None
    observations: Callable[[Any], Tensor] = lambda batch: batch.obs

    def loss_on(self, batch: Any) -> Callable[[Tensor], Tensor]:
        """θ [d] → the loss on a batch, a scalar.

        Raises:
            ConfigError: the objective has no loss.
        """
        loss = self.loss
        if loss is None:
            raise ConfigError("this base optimizer needs the loss: bind an Objective with a loss")
        return lambda point: loss(point, batch)


@runtime_checkable
class RefreshedBase(Protocol):
    """A base that uses one batch of each sequential iteration, such as AdaHessian, natural gradient and K-FAC.

    The training loop binds the objective once, and calls `refresh` once per sequential iteration with the parameters at
    the iterate: before ``step``, or between ``ask`` and ``tell``. What the base derives from the batch is frozen over
    all base steps until the next `refresh`. `Trainer` does all this.
    """

    def bind(self, objective: Objective) -> None:
        """Set the objective. It is not part of the state, so a base that was loaded or copied must be bound again.

        Raises:
            ConfigError: the base cannot work with this objective.
        """

    def refresh(self, batch: Any, generator: torch.Generator) -> None:
        """Use a batch, the parameters being at the iterate; random numbers come from ``generator``, on the CPU.

        Raises:
            ConfigError: no objective was bound.
            NonFiniteError: the batch gives NaN or infinite numbers; the state is as before.
        """

    def reset(self) -> None:
        """Undo all refreshes; the curvature is the identity until the next one."""


@runtime_checkable
class AskingBase(Protocol):
    """A base whose step asks for the gradient at a further point, as SAM's does at the perturbed one."""

    def step_asking(self, put_gradient: Callable[[], Any]) -> None:
        """One step from the gradients in ``.grad``; ``put_gradient()`` makes them those at the parameters by then."""

    def gradient(self, point: Tensor) -> Tensor:
        """The true gradient at a point ``[d]``, for steps without a `GradientFunction`, which are those with one point.

        Raises:
            ConfigError: the base does not know the objective.
        """
