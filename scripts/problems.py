"""Modules as problems for `curves.run`: classification with batches, and a differential equation.

Axes: ``N`` points, ``d`` parameters, ``P`` collocation points.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from .datasets import Split

Call = Callable[..., Tensor]


class ModuleProblem(ABC):
    """The parameters of a module are what is optimised; one evaluation after the other.

    Args:
        model: the module, at its initial parameters.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.names = [name for name, _ in model.named_parameters()]
        self.parameters = list(model.parameters())

    @abstractmethod
    def loss(self, call: Call) -> Tensor:
        """The loss, on a new batch if there are batches, where ``call`` evaluates the model."""

    @abstractmethod
    def values(self) -> tuple[float, ...]:
        """Loss and error that the curve shows."""

    def call_at(self, point: Tensor) -> Call:
        """The model with the parameters of ``point [d]``, as a function of them too."""
        parts = torch.split(point, [p.numel() for p in self.parameters])
        tensors = {n: part.view_as(p) for n, part, p in zip(self.names, parts, self.parameters, strict=True)}
        return lambda *inputs: functional_call(self.model, tensors, inputs)

    def loss_at(self, point: Tensor) -> Tensor:
        """The loss with the parameters of ``point [d]``, as a function of it."""
        return self.loss(self.call_at(point))

    def evaluate(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Losses ``[N]`` and gradients ``[N, d]``."""
        losses, gradients = [], []
        for point in points:
            leaf = point.detach().requires_grad_()
            loss = self.loss_at(leaf)
            gradients.append(torch.autograd.grad(loss, leaf)[0])
            losses.append(loss.detach())
        return torch.stack(losses), torch.stack(gradients)


class Classification(ModuleProblem):
    """Cross-entropy on batches.

    Args:
        model: gives logits ``[..., classes]``.
        draw: a new batch.
        train: examples that the curve's loss is measured on.
        held_out: examples that its error is measured on.
    """

    def __init__(self, model: nn.Module, draw: Callable[[], Split], train: Split, held_out: Split) -> None:
        super().__init__(model)
        self.draw, self.train, self.held_out = draw, train, held_out

    def loss(self, call: Call) -> Tensor:
        """Mean cross-entropy of a new batch."""
        batch = self.draw()
        return cross_entropy(call(*batch.inputs).flatten(0, -2), batch.targets.flatten())

    @torch.no_grad()
    def values(self) -> tuple[float, ...]:
        """Mean cross-entropy of the examples to train on, share of wrong classes among those held out."""
        loss = cross_entropy(self.model(*self.train.inputs).flatten(0, -2), self.train.targets.flatten())
        wrong = self.model(*self.held_out.inputs).argmax(-1) != self.held_out.targets
        return float(loss), float(wrong.double().mean())


class Poisson(ModuleProblem):
    """``u″ = −4π² sin 2πx`` on [0, 1] with ``u(0) = u(1) = 0``, whose solution is ``sin 2πx``.

    The loss is that of a physics-informed network (Raissi et al., 2019): the mean square of the residual at P evenly
    spaced points, in units of 4π², plus ``weight`` times the squares at the boundary. There are no batches.

    Args:
        model: from ``[P, 1]`` to ``[P, 1]``, in double precision.
        points: P.
        weight: of the boundary.
    """

    def __init__(self, model: nn.Module, points: int = 64, weight: float = 10.0) -> None:
        super().__init__(model)
        self.x = torch.linspace(0.0, 1.0, points, dtype=torch.float64)[:, None]
        self.weight = weight

    def residuals(self, call: Call) -> Tensor:
        """Of equation and boundary, ``[P + 2]``; the sum of their squares is the loss."""
        x = self.x.clone().requires_grad_()
        u = call(x)
        (slope,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        (curvature,) = torch.autograd.grad(slope.sum(), x, create_graph=True)
        inside = curvature / (4.0 * math.pi**2) + torch.sin(2.0 * math.pi * self.x)
        return torch.cat([inside / math.sqrt(len(x)), math.sqrt(self.weight) * u[[0, -1]]])[:, 0]

    def loss(self, call: Call) -> Tensor:
        """Equation and boundary."""
        return self.residuals(call).square().sum()

    def jacobian_at(self, point: Tensor) -> Tensor:
        """Of the residuals, ``[P + 2, d]`` at ``point [d]``, all rows by one batched backward pass."""
        leaf = point.detach().requires_grad_()
        residuals = self.residuals(self.call_at(leaf))
        directions = torch.eye(len(residuals), dtype=residuals.dtype)
        return torch.autograd.grad(residuals, leaf, directions, is_grads_batched=True)[0]

    def values(self) -> tuple[float, ...]:
        """The loss, and the error ``‖u − sin 2πx‖ / ‖sin 2πx‖`` at the points."""
        solution = torch.sin(2.0 * math.pi * self.x)
        with torch.no_grad():
            error = torch.linalg.vector_norm(self.model(self.x) - solution) / torch.linalg.vector_norm(solution)
        return float(self.loss(self.model).detach()), float(error)
