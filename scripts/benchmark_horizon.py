"""Fixed and adaptive horizon against data-parallel, over a grid of rates around vanilla's best.

    python -m scripts.benchmark_horizon
    python -m scripts.benchmark_horizon --problems digits --seeds 3 --factors 0.25 8

The aim of ``horizon="auto"`` is to be no worse than a large batch at any rate. Each problem is run at vanilla's
best rate (from docs/paper.md) times each of ``--factors``: digits and clicks as in scripts/benchmark_supervised.py,
Rosenbrock as in scripts/benchmark_synthetic.py with noise 0.1 and d = 10,000. The table has the mean loss over the
iterations, the loss at the end (interquartile means over seeds, 95 % intervals), and the mean number of base steps.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import numpy as np
import torch

from optex_rl import OptEx
from optex_rl.compare.report import spread
from optex_rl.compare.statistics import bands

from .benchmark_supervised import TASKS
from .benchmark_synthetic import FUNCTIONS, Synthetic
from .curves import Method, Problem, baselines, record
from .reports import at_least


class Study(NamedTuple):
    """A problem, and what belongs to it.

    Attributes:
        make: the problem with a seed.
        base: the base optimizer.
        best: vanilla's best rate.
        iterations: of a run.
    """

    make: Callable[[int], Problem]
    base: str
    best: float
    iterations: int


def supervised(name: str, best: float) -> Study:
    """A task of scripts/benchmark_supervised.py with its defaults."""
    task = TASKS[name]
    return Study(
        task.problem(argparse.Namespace(data=None, batch_size=task.batch_size)), task.base, best, task.iterations
    )


STUDIES: Final[dict[str, Callable[[], Study]]] = {
    "digits": lambda: supervised("digits", 0.03),
    "clicks": lambda: supervised("clicks", 0.1),
    "rosenbrock": lambda: Study(lambda seed: Synthetic(FUNCTIONS["rosenbrock"], 10_000, 0.1, seed), "adam", 0.1, 100),
}


class Cell(NamedTuple):
    """What a run gives: the mean of its losses, the last one, and base steps an iteration."""

    area: float
    end: float
    steps: float


def measure(method: Method, study: Study, rate: float, seed: int) -> Cell:
    """One run."""
    problem, steps = study.make(seed), []
    options = {**method.options, "history_size": 20, "parallelism": method.parallelism}
    optimizer = OptEx(problem.parameters, lr=rate, base=study.base, **options)

    def iterate() -> int:
        done = method.iterate(optimizer, problem)
        steps.append(optimizer.statistics.get("steps", 1.0))
        return done

    values = record(iterate, problem, study.iterations).column()
    return Cell(statistics.fmean(values), values[-1], statistics.fmean(steps))


def row(name: str, method: Method, rate: float, cells: Sequence[Cell]) -> str:
    """One line of the Markdown table."""
    columns = [name, f"{rate:.3g}", method.name]
    for values in ([cell.area for cell in cells], [cell.end for cell in cells]):
        middle, low, high = bands(np.array(values)).tolist()
        columns.append(spread(middle, (low, high), 4))
    return f"| {' | '.join(columns)} | {statistics.fmean(cell.steps for cell in cells):.1f} |"


def main() -> None:
    """Parse the flags and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="+", choices=STUDIES, default=list(STUDIES), metavar="PROBLEM")
    parser.add_argument("--factors", nargs="+", type=float, default=[0.25, 0.5, 1.0, 2.0, 4.0, 8.0])
    parser.add_argument("--parallelism", type=at_least(2), default=4, help="N (default: %(default)s)")
    parser.add_argument("--seeds", type=at_least(1), default=10, help="(default: %(default)s)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    N = options.parallelism
    (data_parallel,) = (method for method in baselines(N) if method.samples > 1)
    methods = [data_parallel, *(Method(f"OptEx, {name}", N, options={"horizon": name}) for name in ("fixed", "auto"))]
    print("| problem | rate | method | mean loss (95 %) | loss at the end (95 %) | base steps |")
    print("|---|---|---|---|---|---|")
    for name in options.problems:
        study = STUDIES[name]()
        for rate in (study.best * factor for factor in options.factors):
            for method in methods:
                cells = [measure(method, study, rate, seed) for seed in range(options.seeds)]
                print(row(name, method, rate, cells), flush=True)


if __name__ == "__main__":
    main()
