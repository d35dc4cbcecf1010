"""Speed-up over vanilla as N grows, from a folder of `optex-rl compare`, against √N and N: a table and a plot.

The comparison must have the method ``vanilla`` and methods ``optex:parallelism=N``, evaluated in every iteration:

    optex-rl compare --env CartPole-v1 Acrobot-v1 --eval-freq 1 --folder parallelism \
        --methods vanilla optex:parallelism=2 optex:parallelism=4 optex:parallelism=8 optex:parallelism=16
    python scripts/plot_parallelism.py parallelism --output parallelism.png

The speed-up is the ratio of two medians, the sequential iterations to the threshold of vanilla and of OptEx, each at
the rate chosen by its tuning runs.
"""

from __future__ import annotations

import argparse
import csv
import math
import re
import sys
from collections import defaultdict
from pathlib import Path

from optex_rl.common.errors import ConfigError, OptExError
from optex_rl.runner.plots import new_figure, save_figure


def read_iterations(folder: Path) -> dict[str, dict[int, float]]:
    """Median iterations to the threshold, task by task, for each N; vanilla has N = 1.

    Raises:
        ConfigError: the folder has no summary, or no task with vanilla and OptEx.
    """
    tasks: dict[str, dict[int, float]] = defaultdict(dict)
    try:
        with (folder / "summary.csv").open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                match = re.fullmatch(r"optex:parallelism=(\d+)", row["method"])
                if row["chosen"] == "1" and (match or row["method"] == "vanilla"):
                    tasks[row["env"]][int(match[1]) if match else 1] = float(row["iterations"])
    except (OSError, KeyError, ValueError) as error:
        raise ConfigError(f"{folder} has no summary.csv of optex-rl compare: {error}") from error
    complete = {env: dict(sorted(found.items())) for env, found in tasks.items() if 1 in found and len(found) > 1}
    if not complete:
        raise ConfigError(f"{folder} compares no task by vanilla and optex:parallelism=N")
    return complete


def speedups(iterations: dict[int, float]) -> dict[int, float]:
    """Vanilla's iterations over those with N points; 0 where the threshold is not reached, NaN if vanilla fails."""
    vanilla = iterations[1]
    return {N: vanilla / needed if math.isfinite(vanilla) else math.nan for N, needed in iterations.items()}


def draw(tasks: dict[str, dict[int, float]], output: Path) -> None:
    """The speed-ups against N, both axes logarithmic."""
    figure = new_figure(width=5.5, height=4)
    panel = figure.subplots()
    most = max(max(iterations) for iterations in tasks.values())
    for label, exponent, style in (("N", 1.0, ":"), ("√N", 0.5, "--")):
        panel.plot([1, most], [1, most**exponent], color="gray", linestyle=style, label=label)
    for env, iterations in tasks.items():
        reached = {N: ratio for N, ratio in speedups(iterations).items() if ratio > 0}
        panel.plot(list(reached), list(reached.values()), marker="o", label=env)
    panel.set(xscale="log", yscale="log", xlabel="N", ylabel="times fewer sequential iterations")
    panel.set_xticks(sorted({N for iterations in tasks.values() for N in iterations}))
    panel.get_xaxis().set_major_formatter("{x:.0f}")
    panel.get_xaxis().set_minor_formatter("")
    panel.grid(alpha=0.3)
    panel.legend(fontsize="small")
    save_figure(figure, output)


def main() -> int:
    """Parse the flags, print the table, draw the plot; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of the comparison")
    parser.add_argument(
        "--output", type=Path, default=Path("parallelism.png"), help="image file (default: %(default)s)"
    )
    options = parser.parse_args()
    try:
        tasks = read_iterations(options.folder)
        draw(tasks, options.output)
    except OptExError as error:
        print(error, file=sys.stderr)
        return 2
    print("| task | N | iterations | times fewer | √N |\n|---|---|---|---|---|")
    for env, iterations in tasks.items():
        for N, ratio in speedups(iterations).items():
            needed = f"{iterations[N]:.0f}" if math.isfinite(iterations[N]) else "–"
            print(f"| {env} | {N} | {needed} | {ratio:.1f} | {math.sqrt(N):.1f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
