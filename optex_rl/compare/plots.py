"""Plots of a comparison: learning curves against three axes, and performance profiles. Needs the extra ``compare``."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from ..runner.plots import new_figure, save_figure
from .methods import is_sb3
from .results import Entry, normalized_scores
from .statistics import Array, bands, figures_of, performance_profile

AXES: Final = (
    ("iterations", "sequential iterations"),
    ("cpu_time", "processor seconds of training"),
    ("env_steps", "environment steps"),
)
FIGURES: Final = ("cumulative average return", "return")  # a row of panels each, in the order of `figures_of`
# Ten colours, then the same ones dashed and dotted: more methods than colours stay apart.
STYLES: Final = [{"color": f"C{i % 10}", "linestyle": ("-", "--", ":")[i // 10 % 3]} for i in range(30)]


def draw_task(entries: Sequence[Entry], output: Path) -> None:
    """Both figures of the runs against three axes: interquartile means over seeds and their intervals.

    The cumulative average is that of the evaluations, over the sequential iterations so far; at the end it is the area
    of the table. Seconds and steps are means over seeds. A rollout of stable-baselines3 is no iteration of ours: it is
    left out where these are counted, and the other two axes are logarithmic then.

    Args:
        entries: one a method, all of one task.
        output: image file.

    Raises:
        ConfigError: Matplotlib is missing, or cannot write this kind of file.
    """
    figure = new_figure(width=15, height=8)
    panels = figure.subplots(len(FIGURES), len(AXES), sharey="row", sharex="col")
    logarithmic = any(is_sb3(entry.method) for entry in entries)
    for entry, style in zip(entries, itertools.cycle(STYLES)):
        for row, values in zip(panels, figures_of(entry.curves).values(), strict=True):
            draw_method(row, entry, bands(values), style, logarithmic)
    for row, ylabel in zip(panels, FIGURES, strict=True):
        row[0].set(ylabel=ylabel)
        for panel, (column, _) in zip(row, AXES, strict=True):
            panel.axhline(entries[0].threshold, color="black", linestyle=":", linewidth=1)
            panel.set(xscale="log" if logarithmic and column != "iterations" else "linear")
            panel.grid(alpha=0.3)
    for panel, (_, xlabel) in zip(panels[-1], AXES, strict=True):
        panel.set(xlabel=xlabel)
    panels[0][0].set(title=entries[0].env)
    add_legend(figure, panels[-1][-1])
    save_figure(figure, output)


def draw_method(row: Sequence[Any], entry: Entry, values: Array, style: Mapping[str, str], logarithmic: bool) -> None:
    """One method's ``values [3, K]``, middle, low and high, in a row of panels, one for each axis."""
    for panel, (column, _) in zip(row, AXES, strict=True):
        if column == "iterations" and is_sb3(entry.method):
            continue
        x = np.mean([getattr(curve, column) for curve in entry.curves], axis=0)
        shown = x > 0 if logarithmic and column != "iterations" else np.ones(len(x), np.bool_)
        middle, low, high = values[:, shown]
        panel.plot(x[shown], middle, label=f"{entry.method}, {entry.setting}", **style)
        panel.fill_between(x[shown], low, high, color=style["color"], alpha=0.2, linewidth=0)


def add_legend(figure: Any, panel: Any) -> None:
    """One legend for all panels, below them: names with their options are long."""
    figure.legend(*panel.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize="small")


def draw_profiles(methods: Mapping[str, Sequence[Entry]], output: Path) -> None:
    """Share of runs that score τ or better, over all tasks; the score is 0 at the start and 1 at the threshold.

    Args:
        methods: by name, one entry a task.
        output: image file.

    Raises:
        ConfigError: Matplotlib is missing, or cannot write this kind of file.
    """
    figure = new_figure(width=12, height=4)
    panels: Any = figure.subplots(1, 2, sharey=True)
    taus = np.linspace(0.0, 1.2, 121)
    for (name, entries), style in zip(methods.items(), itertools.cycle(STYLES)):
        for panel, strata in zip(panels, zip(*map(normalized_scores, entries), strict=True), strict=True):
            panel.plot(taus, performance_profile(strata, taus), label=name, **style)
    for panel, title in zip(panels, ("mean over the curve", "at the end"), strict=True):
        panel.set(xlabel="normalised return τ", title=title)
        panel.grid(alpha=0.3)
    panels[0].set(ylabel="share of runs with return ≥ τ")
    add_legend(figure, panels[0])
    save_figure(figure, output)
