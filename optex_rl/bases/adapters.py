"""AdaHessian and SAM of pytorch-optimizer, given from outside what they need besides a gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytorch_optimizer
import torch
from torch import Tensor
from torch.func import grad

from ..common.errors import ConfigError, NonFiniteError
from ..common.linear_algebra import hutchinson_diagonal, rademacher, spatial_average
from ..common.torch_private import flatten, split
from .protocols import Objective


class _NeedsLoss:
    """A base that is given the objective for its loss."""

    _objective: Objective | None = None

    def bind(self, objective: Objective) -> None:
        """Take the objective, which must have a loss."""
        objective.loss_on(None)
        self._objective = objective


class AdaHessian(_NeedsLoss, pytorch_optimizer.AdaHessian):
    """AdaHessian (Yao et al., 2021, arXiv 2006.00719), its Hessian diagonal frozen between two refreshes.

    A refresh estimates the diagonal at the iterate by Hutchinson's method, with the class's ``num_samples`` probes of
    ±1; every step until the next one uses it, as ``step(hessian=…)`` of the class does. It is kept in the per-parameter
    state, ``state[p]["hessian"]``.
    """

    def refresh(self, batch: Any, generator: torch.Generator) -> None:
        """Estimate the Hessian's diagonal on a batch; see `RefreshedBase`."""
        if self._objective is None:
            raise ConfigError("AdaHessian needs the objective: call bind(objective) before refresh()")
        parameters = self._parameters()
        point = flatten(parameters)
        probes = rademacher(self.num_samples, point, generator)
        diagonal = hutchinson_diagonal(self._objective.loss_on(batch), point, probes).detach()
        if not diagonal.isfinite().all():
            raise NonFiniteError("the Hessian's diagonal has NaN or infinite entries; the optimizer is unchanged")
        for parameter, piece in zip(parameters, split(diagonal, parameters), strict=True):
            self.state[parameter]["hessian"] = spatial_average(piece.to(parameter.dtype)).clone()

    def reset(self) -> None:
        """Make the diagonal 1."""
        for parameter in self._parameters():
            self.state[parameter]["hessian"] = torch.ones_like(parameter)

    def step(self, closure: Any = None, hessian: list[Tensor] | None = None) -> Any:
        """One step with the diagonal of the last refresh, or ``hessian``: a tensor ``[*shape]`` for each parameter.

        Raises:
            ConfigError: there is neither.
        """
        if hessian is None:
            parameters = self._parameters()
            if any("hessian" not in self.state.get(p, {}) for p in parameters):
                raise ConfigError("AdaHessian needs a Hessian's diagonal: call refresh(batch, generator) before a step")
            hessian = [self.state[p]["hessian"] for p in parameters]
        return super().step(closure, hessian=hessian)

    def _parameters(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]


class SAM(_NeedsLoss, pytorch_optimizer.SAM):
    """Sharpness-aware minimization (Foret et al., 2021, arXiv 2010.01412), its second gradient given from outside.

    The step is the inner optimizer's, with the gradient at θ + ρ g / ‖g‖. That gradient is

    - with ``step(closure)`` and one point: the closure's;
    - with one point and ``tell``: the true one on the batch of the last `refresh`;
    - with several points: the posterior mean, for estimated and true g alike; while there is no posterior, g itself.
    """

    _batch: Any = None

    def refresh(self, batch: Any, generator: torch.Generator) -> None:
        """Keep the batch for the gradient at the perturbed point; see `RefreshedBase`."""
        self._batch = batch

    def reset(self) -> None:
        """Drop the batch."""
        self._batch = None

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step with a closure, which is called twice: here and at the perturbed point.

        The class that this extends calls it at the perturbed point only.

        Returns:
            The loss here.

        Raises:
            ConfigError: there is no closure.
        """
        if closure is None:
            raise ConfigError("SAM needs a second gradient: call step(closure), or use OptEx with several points")
        with torch.enable_grad():
            loss = closure()
        self.step_asking(closure)
        return loss

    def step_asking(self, put_gradient: Callable[[], Any]) -> None:
        """One step from the gradients in ``.grad``; see `AskingBase`."""
        super().step(put_gradient)

    def gradient(self, point: Tensor) -> Tensor:
        """The gradient at a point ``[d]`` on the batch of the last refresh; see `AskingBase`."""
        if self._objective is None or self._batch is None:
            raise ConfigError("SAM with one point needs a second gradient: call step(closure), or bind() and refresh()")
        gradient: Tensor = grad(self._objective.loss_on(self._batch))(point)
        return gradient
