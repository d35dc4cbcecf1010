"""Baseline optimizers on the same problems: L-BFGS and Gauss-Newton, which are no bases of OptEx, and AdaHessian."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.optimize import least_squares, minimize
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from optex_rl.bases import make_base
from optex_rl.common.linear_algebra import rademacher

from .curves import Curve, Problem, record
from .problems import ModuleProblem
from .reports import Cells


def hutchinson(gradient: Tensor, point: Tensor, z: Tensor) -> Tensor:
    """``z ⊙ Hz [d]``, whose mean over random signs ``z [d]`` is the diagonal of the Hessian (Bekas et al., 2007).

    From the gradient's own graph, where `optex_rl.common.linear_algebra.hutchinson_diagonal` would evaluate the loss
    once more.

    Args:
        gradient: at ``point``, with its graph (``create_graph=True``), ``[d]``.
        point: ``[d]``.
        z: ``[d]``.
    """
    (product,) = torch.autograd.grad(gradient, point, z)
    return z * product


def adahessian(problem: ModuleProblem, lr: float, seed: int) -> Callable[[], int]:
    """Steps of AdaHessian (Yao et al., 2021, arXiv 2006.00719): a gradient and one Hessian-vector product each.

    Its base optimizer, except that gradient and diagonal share one graph and one batch.
    """
    optimizer: Any = make_base("adahessian", problem.parameters, lr)
    generator = torch.Generator().manual_seed(seed)
    sizes = [p.numel() for p in problem.parameters]

    def iterate() -> int:
        point = parameters_to_vector(problem.parameters).detach().requires_grad_()
        (gradient,) = torch.autograd.grad(problem.loss_at(point), point, create_graph=True)
        diagonal = hutchinson(gradient, point, rademacher(1, point, generator)[0])
        parts = zip(
            problem.parameters, torch.split(gradient.detach(), sizes), torch.split(diagonal, sizes), strict=True
        )
        hessian = []
        for parameter, slope, curvature in parts:
            parameter.grad = slope.view_as(parameter).clone()
            hessian.append(curvature.view_as(parameter))
        optimizer.step(hessian=hessian)
        return 1

    return iterate


def lbfgs(problem: Problem, evaluations: int) -> Callable[[], int]:
    """Torch's L-BFGS with a strong Wolfe line search; an iteration is an evaluation of loss and gradient.

    Args:
        problem: without noise: line searches compare losses.
        evaluations: about how many one call makes, one after the other.
    """
    optimizer: Any = torch.optim.LBFGS(
        problem.parameters,
        max_iter=evaluations,
        max_eval=evaluations,
        tolerance_grad=0.0,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )

    def iterate() -> int:
        count = 0

        def closure() -> float:
            nonlocal count
            count += 1
            losses, gradients = problem.evaluate(parameters_to_vector(problem.parameters)[None])
            parts = torch.split(gradients[0], [p.numel() for p in problem.parameters])
            for parameter, part in zip(problem.parameters, parts, strict=True):
                parameter.grad = part.view_as(parameter)
            return float(losses[0])

        optimizer.step(closure)
        return count

    return iterate


class Recorder:
    """The curve of an algorithm of SciPy's, which keeps its loop to itself; recording is left out of the seconds.

    Attributes:
        curve: what was recorded, over the evaluations.
        evaluations: how many there were, to be counted by the caller.
    """

    def __init__(self, problem: Problem) -> None:
        self.curve = Curve([0], [0.0], [problem.values()])
        self.evaluations = 0
        self._problem, self._paused, self._start = problem, 0.0, time.process_time()

    def start(self) -> Any:
        """The parameters ``[d]`` as an array in double precision."""
        return parameters_to_vector(self._problem.parameters).detach().numpy().astype(np.float64)

    def tensor(self, x: Any) -> Tensor:
        """An array ``[d]`` as the parameters are."""
        return torch.from_numpy(x).to(self._problem.parameters[0])

    def record(self, x: Any) -> None:
        """Move the parameters to the array ``x [d]`` and add what the problem says of them."""
        now = time.process_time()
        vector_to_parameters(self.tensor(x), self._problem.parameters)
        self.curve.iterations.append(self.evaluations)
        self.curve.seconds.append(now - self._start - self._paused)
        self.curve.values.append(self._problem.values())
        self._paused += time.process_time() - now


def lbfgsb(problem: Problem, evaluations: int) -> Curve:
    """The curve of SciPy's L-BFGS-B, without bounds, counted in evaluations of loss and gradient.

    Args:
        problem: without noise.
        evaluations: after about so many it ends.
    """
    recorder = Recorder(problem)

    def function(x: Any) -> tuple[float, Any]:
        recorder.evaluations += 1
        losses, gradients = problem.evaluate(recorder.tensor(x)[None])
        return float(losses[0]), gradients[0].numpy().astype(np.float64)

    limits = {"maxfun": evaluations, "maxiter": evaluations, "ftol": 0.0, "gtol": 0.0}
    start = recorder.start()
    minimize(function, start, jac=True, method="L-BFGS-B", callback=recorder.record, options=limits)
    return recorder.curve


def gauss_newton(
    problem: Problem, residuals: Callable[[Tensor], Tensor], jacobian: Callable[[Tensor], Any], evaluations: int
) -> Curve:
    """The curve of SciPy's Gauss-Newton steps within a trust region (Branch, Coleman & Li, 1999, without bounds).

    Counted in evaluations of the residuals; where a step was good, their Jacobian is evaluated too.

    Args:
        problem: whose loss is the sum of the squared residuals.
        residuals: ``[m]`` at a point ``[d]``, both in double precision.
        jacobian: ``[m, d]`` likewise, as an array or a sparse array of SciPy.
        evaluations: after so many it ends.
    """
    recorder = Recorder(problem)

    def function(x: Any) -> Any:
        recorder.evaluations += 1
        return residuals(torch.from_numpy(x)).detach().numpy()

    def slopes(x: Any) -> Any:
        if recorder.evaluations > 1:  # after a good step, that is
            recorder.record(x)
        return jacobian(torch.from_numpy(x))

    tolerances = {"ftol": None, "xtol": 1e-15, "gtol": 1e-15}  # SciPy takes no smaller ones
    least_squares(function, recorder.start(), slopes, max_nfev=evaluations, **tolerances)
    return recorder.curve


def quasi_newton(make: Callable[[int], Problem], seeds: int, evaluations: int) -> Cells:
    """The curves of both L-BFGS on a problem without noise, one for each seed.

    Args:
        make: the problem of a seed.
        seeds: how many.
        evaluations: after about so many a run ends.
    """

    def by_torch(problem: Problem) -> Curve:
        return record(lbfgs(problem, 10), problem, evaluations)

    return {
        ("L-BFGS, torch", 1.0): [by_torch(make(seed)) for seed in range(seeds)],
        ("L-BFGS-B, SciPy", 1.0): [lbfgsb(make(seed), evaluations) for seed in range(seeds)],
    }
