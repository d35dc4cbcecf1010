"""Curves of vanilla, target, data-parallel and OptEx against sequential iterations: what the benchmarks share.

Axes: ``N`` points, ``d`` parameters.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import Parameter

from optex_rl import ConfigError, NonFiniteError, OptEx


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
        name: for tables and pictures.
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

    def iterate(self, optimizer: OptEx, problem: Problem) -> None:
        """One sequential iteration."""
        for _ in range(self.rounds):
            points = optimizer.ask()
            N = len(points)
            usable = torch.ones(N, dtype=torch.bool)
            usable[: N - 1] = not self.only_last
            losses, gradients = torch.zeros(N), torch.zeros_like(points)
            evaluated = problem.evaluate(points[usable].repeat_interleave(self.samples, 0))
            losses[usable], gradients[usable] = (e.view(-1, self.samples, *e.shape[1:]).mean(1) for e in evaluated)
            optimizer.tell(gradients, losses, usable)


def yardsticks(N: int) -> list[Method]:
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

    def first(self, threshold: float, number: int = 0) -> float:
        """The first recorded iteration at which a figure is at most ``threshold``; infinite if it never is."""
        pairs = zip(self.iterations, self.column(number), strict=True)
        return next((i for i, value in pairs if value <= threshold), math.inf)

    @property
    def pace(self) -> float:
        """Seconds of an iteration."""
        return self.seconds[-1] / max(self.iterations[-1], 1)


def record(method: Method, problem: Problem, iterations: int, *, every: int = 1, **options: Any) -> Curve:
    """Run a method and record its curve; recording is left out of the seconds.

    Args:
        method: how an iteration is spent.
        problem: what is minimised; its parameters are where the run begins.
        iterations: sequential iterations.
        every: iterations between two figures.
        **options: of `OptEx`; those of the method win.

    Returns:
        The curve. After a step to or from numbers that are not finite every figure is infinite.

    Raises:
        ConfigError: an option is outside what is allowed.
    """
    optimizer = OptEx(problem.parameters, **{**options, **method.options}, parallelism=method.parallelism)
    curve = Curve([0], [0.0], [problem.values()])
    seconds, diverged = 0.0, False
    for iteration in range(1, iterations + 1):
        start = time.perf_counter()
        try:
            if not diverged:
                method.iterate(optimizer, problem)
        except NonFiniteError:
            diverged = True
        seconds += time.perf_counter() - start
        if iteration % every == 0 or iteration == iterations:
            curve.iterations.append(iteration)
            curve.seconds.append(seconds)
            values = problem.values()
            curve.values.append((math.inf,) * len(values) if diverged else values)
    return curve


def at_least(least: int) -> Callable[[str], int]:
    """A converter for argparse: whole numbers of at least ``least``."""

    def convert(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"must be a whole number of at least {least}, got {text!r}")
        return int(text)

    return convert


def number(value: float, digits: int = 0) -> str:
    """A number for a table; a dash for one that was not reached."""
    return f"{value:.{digits}f}" if math.isfinite(value) else "–"


def compared(curves: Sequence[Curve], references: Sequence[Curve], column: int = 0) -> str:
    """Three cells: median iterations to the reference's last value, how many times fewer than its own, and how often.

    Args:
        curves: one for each seed.
        references: likewise; each seed is held against its own.
        column: which figure.
    """
    lasts = [reference.column(column)[-1] for reference in references]
    reached = [curve.first(last, column) for curve, last in zip(curves, lasts, strict=True)]
    own = [reference.first(last, column) for reference, last in zip(references, lasts, strict=True)]
    median = statistics.median_high(reached)
    ratio = statistics.median_high(own) / median if 0 < median < math.inf else math.inf
    return f"{number(median)} | {number(ratio, 1)} | {sum(map(math.isfinite, reached))}/{len(curves)}"


class Panel(NamedTuple):
    """One pair of axes: for each line its x values and, for each seed, its y values."""

    title: str
    xlabel: str
    ylabel: str
    lines: Mapping[str, tuple[Sequence[float], Sequence[Sequence[float]]]]


def panel(
    title: str, ylabel: str, lines: Mapping[str, Sequence[Curve]], column: int = 0, *, time: bool = False
) -> Panel:
    """Curves of several methods over sequential iterations, or over the median of the seconds that they took."""
    drawn = {}
    for name, curves in lines.items():
        seconds = [statistics.median(row) for row in zip(*(curve.seconds for curve in curves), strict=True)]
        drawn[name] = (seconds if time else curves[0].iterations, [curve.column(column) for curve in curves])
    return Panel(title, "seconds" if time else "sequential iterations", ylabel, drawn)


def draw(panels: Sequence[Panel], output: Path, columns: int = 3) -> None:
    """Draw medians over seeds, with the range from the least to the greatest, on a logarithmic y axis.

    Raises:
        ConfigError: matplotlib is missing, or cannot write this file.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ConfigError("pictures need matplotlib: pip install 'optex-rl[plot]'") from error
    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(4 * columns, 3 * rows), layout="constrained")
    for axes, (title, xlabel, ylabel, lines) in zip(
        figure.subplots(rows, columns, squeeze=False).flat, panels, strict=False
    ):
        for name, (x, runs) in lines.items():
            ordered = torch.tensor(runs, dtype=torch.float64).sort(0).values
            axes.plot(x, ordered[len(runs) // 2], label=name, linewidth=1.2)
            axes.fill_between(x, ordered[0], ordered[-1], alpha=0.2)
        axes.set(title=title, xlabel=xlabel, ylabel=ylabel, yscale="log")
        axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize="small")
    try:
        figure.savefig(output, dpi=80)
    except (ValueError, OSError) as error:
        raise ConfigError(f"the picture {output} cannot be written: {error}") from error
