"""Curves of vanilla, target, data-parallel and OptEx against sequential iterations, shared by the benchmarks.

Axes: ``N`` points, ``d`` parameters.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import Parameter

from optex_rl import NonFiniteError, OptEx


class Problem(Protocol):
    """What is minimised."""

    parameters: list[Parameter]

    def evaluate(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Losses ``[N]`` and gradients ``[N, d]`` at ``points [N, d]``, each with noise or a batch of its own."""

    def values(self) -> tuple[float, ...]:
        """What a curve shows, at the parameters as they are; smaller is better."""


@dataclass(frozen=True)
class Method:
    """A way to spend a sequential iteration.

    Attributes:
        name: for tables and plots.
        parallelism: points that OptEx evaluates at once; with 1 it is its base.
        rounds: iterations of the optimizer, one after the other, that make one sequential iteration.
        samples: evaluations whose mean is the gradient at a point.
        only_last: evaluate only the last of the N points.
        options: further options of `OptEx`.
    """

    name: str
    parallelism: int = 1
    rounds: int = 1
    samples: int = 1
    only_last: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)

    def iterate(self, optimizer: OptEx, problem: Problem) -> int:
        """One sequential iteration; returns how many that is."""
        for _ in range(self.rounds):
            points = optimizer.ask()
            N = len(points)
            usable = torch.ones(N, dtype=torch.bool)
            usable[: N - 1] = not self.only_last
            losses, gradients = points.new_zeros(N), torch.zeros_like(points)
            evaluated = problem.evaluate(points[usable].repeat_interleave(self.samples, 0))
            losses[usable], gradients[usable] = (e.view(-1, self.samples, *e.shape[1:]).mean(1) for e in evaluated)
            optimizer.tell(gradients, losses, usable)
        return 1


def baselines(N: int) -> list[Method]:
    """Vanilla: one evaluation, one step. Target: N true steps. Data-parallel: one step with N evaluations."""
    return [Method("vanilla"), Method("target", rounds=N), Method("data-parallel", samples=N)]


def optex(N: int, selection: str, **options: Any) -> Method:
    """OptEx with N points and a selection."""
    return Method(f"OptEx, {selection}", N, options={"selection": selection, **options})


@dataclass
class Curve:
    """One run: figures at some sequential iterations, the first of them 0, and the seconds it had taken by then."""

    iterations: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    values: list[tuple[float, ...]] = field(default_factory=list)

    def column(self, number: int = 0) -> list[float]:
        """One of the figures over the run."""
        return [row[number] for row in self.values]

    def first(self, threshold: float) -> tuple[float, float]:
        """Iterations and seconds after which the first figure was at most ``threshold``; infinite if it never was."""
        rows = zip(self.iterations, self.seconds, self.column(), strict=True)
        return next(((i, seconds) for i, seconds, value in rows if value <= threshold), (math.inf, math.inf))

    @property
    def pace(self) -> float:
        """Seconds of an iteration."""
        return self.seconds[-1] / max(self.iterations[-1], 1)


def record(iterate: Callable[[], int], problem: Problem, iterations: int, every: int = 1) -> Curve:
    """Drive any optimizer and record its curve; recording is left out of the seconds.

    Seconds are the processor's: with one thread the wall time on a core that nothing else uses.

    Args:
        iterate: takes the optimizer forward and returns how many sequential iterations that was.
        problem: what is minimised; its parameters are where the run begins.
        iterations: after so many it ends.
        every: iterations between two figures.

    Returns:
        The curve. After a step to or from numbers that are not finite every figure is infinite.
    """
    curve = Curve([0], [0.0], [problem.values()])
    diverged = (math.inf,) * len(curve.values[0])
    iteration, seconds, finite = 0, 0.0, True
    while iteration < iterations:
        start = time.process_time()
        try:
            iteration += iterate() if finite else every
        except NonFiniteError:
            iteration, finite = iteration + 1, False
        seconds += time.process_time() - start
        if iteration - curve.iterations[-1] >= every or iteration >= iterations:
            curve.iterations.append(iteration)
            curve.seconds.append(seconds)
            curve.values.append(problem.values() if finite else diverged)
    return curve


def run(method: Method, problem: Problem, iterations: int, *, every: int = 1, **options: Any) -> Curve:
    """The curve of a method, see `record`.

    Args:
        method: how an iteration is spent.
        problem: what is minimised.
        iterations: sequential iterations.
        every: iterations between two figures.
        **options: of `OptEx`; those of the method win. The horizon is fixed, as in the paper.

    Raises:
        ConfigError: an option is outside what is allowed.
    """
    options = {"horizon": "fixed", **options, **method.options, "parallelism": method.parallelism}
    optimizer = OptEx(problem.parameters, **options)
    return record(lambda: method.iterate(optimizer, problem), problem, iterations, every)
