"""Flags, tables and plots of curves, shared by the benchmarks."""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from optex_rl import ConfigError
from optex_rl.compare.report import figure

from .curves import Curve


def at_least(least: int) -> Callable[[str], int]:
    """A converter for argparse: whole numbers of at least ``least``."""

    def convert(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"must be a whole number of at least {least}, got {text!r}")
        return int(text)

    return convert


def positive(text: str) -> float:
    """A converter for argparse: finite numbers above 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"must be a positive number, got {text!r}")
    return value


Cells = dict[tuple[str, float], list[Curve]]  # by name of the method and learning rate, one curve for each seed


def last_value(curves: Sequence[Curve], column: int = 0) -> float:
    """Median over seeds of a figure after the last iteration."""
    return statistics.median(curve.column(column)[-1] for curve in curves)


def best_rates(cells: Cells) -> dict[str, list[Curve]]:
    """For each method the curves of the learning rate at which it ends lowest."""
    best: dict[str, list[Curve]] = {}
    for (name, _), curves in cells.items():
        if name not in best or last_value(curves) < last_value(best[name]):
            best[name] = curves
    return best


def compared(curves: Sequence[Curve], references: Sequence[Curve]) -> str:
    """Four cells: median iterations to the reference's last value, how many times fewer than its own, seconds, seeds.

    Args:
        curves: one for each seed.
        references: likewise; each seed is held against its own.
    """
    lasts = [reference.column()[-1] for reference in references]
    reached = [curve.first(last) for curve, last in zip(curves, lasts, strict=True)]
    own = statistics.median_high(r.first(last)[0] for r, last in zip(references, lasts, strict=True))
    iterations, seconds = (statistics.median_high(column) for column in zip(*reached, strict=True))
    ratio = own / iterations if 0 < iterations < math.inf else math.inf
    got_there = sum(math.isfinite(i) for i, _ in reached)
    return f"{figure(iterations)} | {figure(ratio, 1)} | {figure(seconds, 1)} | {got_there}/{len(curves)}"


def header(first: str, figures: Sequence[str], reference: str) -> str:
    """The head of the Markdown table."""
    names = [
        first,
        "method",
        "rate",
        *figures,
        f"iterations to {reference}'s",
        "times fewer",
        "s to it",
        "seeds",
        "ms an iteration",
    ]
    return f"| {' | '.join(names)} |\n{'|---' * len(names)}|"


def table(first: str, cells: Cells, reference: str = "vanilla") -> str:
    """Lines of the Markdown table, one for each method and learning rate, after ``first``.

    The reference is a method at its best rate.
    """
    references = best_rates(cells)[reference]
    rows = []
    for (name, rate), curves in cells.items():
        figures = [f"{last_value(curves, column):.3g}" for column in range(len(curves[0].values[0]))]
        pace = statistics.median(curve.pace for curve in curves) * 1e3
        row = [first, name, f"{rate:g}", *figures, compared(curves, references), f"{pace:.1f}"]
        rows.append(f"| {' | '.join(row)} |")
    return "\n".join(rows)


class Panel(NamedTuple):
    """One pair of axes: for each line its x values and, for each seed, its y values."""

    title: str
    xlabel: str
    ylabel: str
    lines: Mapping[str, tuple[Sequence[float], Sequence[np.ndarray]]]


def panel(
    title: str, ylabel: str, lines: Mapping[str, Sequence[Curve]], column: int = 0, *, time: bool = False
) -> Panel:
    """Curves of several methods over sequential iterations or seconds; between what was recorded they are straight."""
    drawn = {}
    for name, curves in lines.items():
        runs = [(curve.seconds if time else curve.iterations, curve.column(column)) for curve in curves]
        grid = sorted({float(x) for xs, _ in runs for x in xs})
        drawn[name] = (grid, [np.interp(grid, xs, ys) for xs, ys in runs])
    return Panel(title, "seconds" if time else "sequential iterations", ylabel, drawn)


def draw(panels: Sequence[Panel], output: Path, columns: int = 3) -> None:
    """Draw medians over seeds, with the range from the least to the greatest, on a logarithmic y axis.

    Raises:
        ConfigError: matplotlib is missing, or cannot write this file.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ConfigError("plots need matplotlib: pip install 'optex-rl[plot]'") from error
    columns = min(columns, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(4 * columns, 3 * rows), layout="constrained")
    for axes, (title, xlabel, ylabel, lines) in zip(
        figure.subplots(rows, columns, squeeze=False).flat, panels, strict=False
    ):
        for name, (x, runs) in lines.items():
            ordered = np.sort(runs, 0)
            axes.plot(x, ordered[len(runs) // 2], label=name, linewidth=1.2)
            axes.fill_between(x, ordered[0], ordered[-1], alpha=0.2)
        axes.set(title=title, xlabel=xlabel, ylabel=ylabel, yscale="log")
        axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize="small")
    try:
        figure.savefig(output, dpi=72)
    except (ValueError, OSError) as error:
        raise ConfigError(f"the plot {output} cannot be written: {error}") from error
