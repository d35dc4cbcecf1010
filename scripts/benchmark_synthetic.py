"""Synthetic functions of many parameters (Shu et al., NeurIPS 2024, arXiv 2402.11427, Fig. 2) and ablations (Fig. 6).

Ackley, Sphere and Rosenbrock in mean form, so that their values do not depend on the number of parameters d. Every seed
has its own starting point, each coordinate uniform on [−2, 2]; all methods begin there. With noise, every evaluated
gradient has independent normal noise added, whose norm is about ``--noise`` times that of the gradient at the start.

For every method and learning rate, medians over seeds: the value after the last iteration, the sequential iterations
to the value where vanilla ended (at that of its rates which ends lowest), how many times fewer than vanilla's own that
is, the CPU seconds it took, how many seeds got there, and the time of an iteration. One thread computes
everything, including the N evaluations: the seconds are those of a machine with one core.

Without noise L-BFGS is run as well; its iterations are evaluations of value and gradient, one after the other. So is
Gauss-Newton where the function is a sum of squares; its iterations are evaluations of residuals and Jacobian.

    python -m scripts.benchmark_synthetic                            # Fig. 2, noise-free
    python -m scripts.benchmark_synthetic --ablation selection       # Fig. 6, on Rosenbrock
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.sparse import diags_array, vstack
from torch import Tensor
from torch.nn import Parameter

from optex_rl import OptExError
from optex_rl.optimizer.estimator.kernels import KERNELS
from optex_rl.optimizer.selection import SELECTIONS

from .baselines import gauss_newton, quasi_newton
from .curves import Method, baselines, optex, run
from .reports import Cells, at_least, best_rates, draw, header, panel, table

START = 2.0  # the start is uniform on [−START, START]
ABLATIONS = ("selection", "history", "parallelism", "sequential", "kernel")


def ackley(x: Tensor) -> Tensor:
    """``−20 exp(−0.2 √(mean xᵢ²)) − exp(mean cos 2πxᵢ) + 20 + e`` of ``x [..., d]``; least, 0, at 0."""
    bowl = -20.0 * torch.exp(-0.2 * x.square().mean(-1).sqrt())
    return bowl - torch.exp(torch.cos(2.0 * math.pi * x).mean(-1)) + 20.0 + math.e


def sphere(x: Tensor) -> Tensor:
    """``mean xᵢ²`` of ``x [..., d]``; least, 0, at 0."""
    return x.square().mean(-1)


def rosenbrock(x: Tensor) -> Tensor:
    """Mean over the d − 1 pairs of ``100 (xᵢ₊₁ − xᵢ²)² + (1 − xᵢ)²``, ``x [..., d]``; least, 0, at 1."""
    ahead, here = x[..., 1:], x[..., :-1]
    return (100.0 * (ahead - here.square()).square() + (1.0 - here).square()).mean(-1)


class SumOfSquares(NamedTuple):
    """A function as a sum of squares.

    Attributes:
        residuals: ``[m]`` at ``x [d]``.
        jacobian: their sparse Jacobian ``[m, d]``.
    """

    residuals: Callable[[Tensor], Tensor]
    jacobian: Callable[[Tensor], Any]


def sphere_jacobian(x: Tensor) -> Any:
    """Of ``x / √d``."""
    return diags_array(np.ones(len(x)) / math.sqrt(len(x)))


def rosenbrock_residuals(x: Tensor) -> Tensor:
    """``10 (xᵢ₊₁ − xᵢ²) / √(d − 1)``, then ``(1 − xᵢ) / √(d − 1)``, ``[2 (d − 1)]``."""
    ahead, here = x[1:], x[:-1]
    return torch.cat([10.0 * (ahead - here.square()), 1.0 - here]) / math.sqrt(len(here))


def rosenbrock_jacobian(x: Tensor) -> Any:
    """Of `rosenbrock_residuals`."""
    pairs = len(x) - 1
    shape = (pairs, len(x))
    curved = diags_array([-20.0 * x[:-1].numpy(), np.full(pairs, 10.0)], offsets=[0, 1], shape=shape)
    straight = diags_array(-np.ones(pairs), shape=shape)
    return vstack([curved, straight], format="csr") / math.sqrt(pairs)


SUMS_OF_SQUARES = {
    "sphere": SumOfSquares(lambda x: x / math.sqrt(len(x)), sphere_jacobian),
    "rosenbrock": SumOfSquares(rosenbrock_residuals, rosenbrock_jacobian),
}
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {"ackley": ackley, "sphere": sphere, "rosenbrock": rosenbrock}


class Synthetic:
    """A function from a random start, with noise on its gradients.

    Args:
        function: one value for each row.
        dim: number of parameters ``d``.
        noise: norm of the noise over the norm of the gradient at the start.
        seed: of the start and the noise.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], dim: int, noise: float, seed: int) -> None:
        self.function = function
        self.generator = torch.Generator().manual_seed(seed)
        start = START * (2.0 * torch.rand(dim, generator=self.generator) - 1.0)
        self.parameters = [Parameter(start)]
        self.noise_scale = 0.0
        self.noise_scale = noise * float(self.evaluate(start[None])[1].norm()) / math.sqrt(dim)

    def evaluate(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Losses ``[N]`` and noisy gradients ``[N, d]``: rows are independent, so one backward pass gives them all."""
        points = points.detach().requires_grad_()
        losses = self.function(points)
        (gradients,) = torch.autograd.grad(losses.sum(), points)
        if self.noise_scale:
            gradients = gradients + self.noise_scale * torch.randn(gradients.shape, generator=self.generator)
        return losses.detach(), gradients

    @torch.no_grad()
    def values(self) -> tuple[float, ...]:
        """The function, free of noise."""
        return (float(self.function(self.parameters[0])),)


def paper(N: int, noise: float) -> list[Method]:
    """The methods of Fig. 2; without noise the mean of N evaluations is vanilla's gradient."""
    methods = [method for method in baselines(N) if noise or method.samples == 1]
    return [*methods, optex(N, "refine"), optex(N, "last")]


def ablation(name: str, N: int) -> list[Method]:
    """Vanilla and the variants of OptEx that an ablation of Fig. 6 compares."""
    last = {"selection": "last"}
    variants = {
        "selection": [optex(N, selection) for selection in SELECTIONS],
        "history": [
            Method(f"T0 = {T0}", N, options={"history_size": T0}) for T0 in (N + 1, 2 * N, 4 * N, 8 * N, 16 * N)
        ],
        "parallelism": [Method(f"N = {n}", n, options={"history_size": 4 * n}) for n in (2, 4, 8, 16)],
        "sequential": [
            Method("all N points evaluated", N, options=last),
            Method("only the last evaluated", N, only_last=True, options=last),
        ],
        "kernel": [Method(kernel, N, options={"kernel": kernel}) for kernel in KERNELS],
    }
    return [Method("vanilla"), *variants[name]]


def runs(name: str, methods: Sequence[Method], options: argparse.Namespace) -> Cells:
    """Every method at every learning rate with every seed, on one function."""

    def start(seed: int) -> Synthetic:
        return Synthetic(FUNCTIONS[name], options.dim, options.noise, seed)

    cells: Cells = {
        (method.name, rate): [
            run(method, start(seed), options.iterations, lr=rate, base=options.base, history_size=options.history_size)
            for seed in range(options.seeds)
        ]
        for method in methods
        for rate in options.learning_rates
    }
    if not options.ablation and not options.noise:  # line searches compare values
        cells |= quasi_newton(start, options.seeds, options.iterations)
        if name in SUMS_OF_SQUARES:
            cells["Gauss-Newton, SciPy", 1.0] = [
                gauss_newton(start(seed), *SUMS_OF_SQUARES[name], options.iterations) for seed in range(options.seeds)
            ]
    return cells


def flags() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--functions", nargs="+", choices=FUNCTIONS, help="default: all, for an ablation rosenbrock")
    parser.add_argument("--ablation", choices=ABLATIONS)
    parser.add_argument("--dim", type=at_least(2), default=100_000)
    parser.add_argument("--parallelism", type=at_least(2), default=5)
    parser.add_argument("--history-size", type=at_least(2), default=20)
    parser.add_argument("--base", default="adam")
    parser.add_argument("--learning-rates", type=float, nargs="+", default=[0.1], help="each method runs at each rate")
    parser.add_argument("--noise", type=float, default=0.0)
    parser.add_argument("--iterations", type=at_least(1), default=100)
    parser.add_argument("--seeds", type=at_least(1), default=5)
    parser.add_argument("--output", type=Path, help="image file")
    return parser


def main() -> None:
    """Parse the flags, run, print a Markdown table and draw the plot."""
    parser = flags()
    options = parser.parse_args()
    torch.set_num_threads(1)
    N, panels = options.parallelism, []
    methods = ablation(options.ablation, N) if options.ablation else paper(N, options.noise)
    print(f"d = {options.dim:,}, N = {N}, {options.base}, noise {options.noise:g}\n")
    print(header("function", ["last value"], "vanilla"))
    try:
        for name in options.functions or (["rosenbrock"] if options.ablation else FUNCTIONS):
            cells = runs(name, methods, options)
            print(table(name, cells), flush=True)
            panels.append(panel(name, "value", best_rates(cells)))
        if options.output:
            draw(panels, options.output)
    except OptExError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
