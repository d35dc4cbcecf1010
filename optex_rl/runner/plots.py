"""Plots of learning curves, drawn from the progress.csv of run folders. Needs the extra ``plot``."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..common.errors import ConfigError, RunFolderError
from ..common.storage import read_regular

CURVES = (("cumulative_average_reward", "cumulative average reward"), ("ep_rew_mean", "mean return, last 100 episodes"))


def read_progress(run_dir: Path, column: str) -> list[tuple[float, ...]]:
    """The iterations of a run's progress.csv and a column of it; rows in which that is empty are left out.

    Raises:
        RunFolderError: the file is missing or does not hold a run's progress.
    """
    path = run_dir / "progress.csv"
    data = read_regular(path, "the progress of a run")
    try:
        reader = csv.DictReader(io.StringIO(data.decode(), newline=""))
        rows = [(row["iteration"], row[column]) for row in reader]
        return list(zip(*(map(float, row) for row in rows if all(row)), strict=True))
    except (KeyError, ValueError, TypeError, csv.Error) as error:
        raise RunFolderError(f"{path} cannot be read as the progress of a run") from error


def plot(run_dirs: str | Path | Sequence[str | Path], output: str | Path | None = None) -> Path:
    """Draw cumulative average reward and mean return of runs against sequential iterations; returns the image file.

    Args:
        run_dirs: a run folder, or several, whose names are the legend.
        output: its ending decides the format; by default learning_curve.png in the first folder.

    Raises:
        ConfigError: no folder is given, matplotlib is missing, or cannot write this kind of file.
        RunFolderError: a run folder has no progress to draw.
    """
    folders = [Path(path) for path in ([run_dirs] if isinstance(run_dirs, (str, Path)) else run_dirs)]
    if not folders:
        raise ConfigError("plot needs at least one run folder, got none")
    output = folders[0] / "learning_curve.png" if output is None else Path(output)
    figure = new_figure(width=10, height=4)
    for axes, (column, label) in zip(figure.subplots(1, len(CURVES)), CURVES, strict=True):
        for run_dir in folders:
            data = read_progress(run_dir, column)
            if not data:
                raise RunFolderError(f"{run_dir} has no finished episode to draw")
            axes.plot(*data, label=run_dir.resolve().name)
        axes.set(xlabel="sequential iterations", ylabel=label)
        axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize="small")
    save_figure(figure, output)
    return output


def new_figure(*, width: float, height: float) -> Any:
    """An empty Matplotlib figure, in inches.

    Raises:
        ConfigError: Matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise ConfigError("plots need matplotlib: pip install 'optex-rl[plot]'") from error
    return Figure(figsize=(width, height), layout="constrained")


def save_figure(figure: Any, output: Path) -> None:
    """Write a figure; the ending of the name decides the format.

    Raises:
        ConfigError: Matplotlib cannot write this kind of file.
    """
    try:
        figure.savefig(output, dpi=120)
    except (ValueError, OSError) as error:
        raise ConfigError(f"the plot {output} cannot be written: {error}") from error
