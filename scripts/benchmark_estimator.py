"""The cost of OptEx's estimator: time per iteration against reading the history, and memory of the process.

A quadratic whose gradient is nearly free is minimised by Adam within OptEx. The clock runs in the public methods of
`GradientEstimator`, for every caller, but not in the base steps. Medians over iterations with a full history.

The baseline reads the history as often as the algorithm must, each time by one plain sum over a ``[T0, d]`` buffer, in
the same run, in turn with the iterations. Seconds are CPU time on one thread. Every base step needs the distances from
where it starts (one read of the points) and a posterior mean (one read of the gradients), and both wait for the step
before:

    propose    N reads of the points, N − 1 of the gradients (no step leaves the last point)
    insert     1 read of the gradients, for the inner products of all N new ones
    refine     N − 1 reads of the points (the distances from the iterate are known), N of the gradients

That is 4N − 1 reads with the selection ``refine`` and 2N with ``last``.

Memory is the peak resident size of a fresh process minus its peak before the parameters were made, when a few
iterations on eight parameters had loaded the libraries: parameters, Adam's state, points, gradients and history all
count. The limit is the history, 2·T0·d floats, plus 6·d floats per point.
"""

from __future__ import annotations

import argparse
import functools
import inspect
import multiprocessing
import re
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from optex_rl import GradientEstimator, OptEx

FLOAT = 4  # bytes


class Stopwatch:
    """Processor seconds spent in functions that call each other; only the outermost call runs the clock."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.running = False

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, with the clock running while it does."""

        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if self.running:
                return function(*args, **kwargs)
            self.running, start = True, time.process_time()
            try:
                return function(*args, **kwargs)
            finally:
                self.running = False
                self.seconds += time.process_time() - start

        return wrapper


@contextmanager
def stopwatch_on(cls: type) -> Iterator[Stopwatch]:
    """A stopwatch on all public methods of a class, inherited ones too, for the length of the block."""
    watch = Stopwatch()
    own = dict(vars(cls))
    methods = [(name, f) for name, f in inspect.getmembers(cls, inspect.isfunction) if not name.startswith("_")]
    for name, function in methods:
        setattr(cls, name, watch.timed(function))
    try:
        yield watch
    finally:
        for name, _ in methods:
            if name in own:
                setattr(cls, name, own[name])
            else:
                delattr(cls, name)


def reads_needed(selection: str, N: int) -> int:
    """How often an iteration must read a ``[T0, d]`` buffer; the module's docstring counts."""
    return 4 * N - 1 if selection == "refine" else 2 * N


def memory_allowed(d: int, T0: int, N: int) -> int:
    """Bytes: the history and six vectors for each point."""
    return (2 * T0 + 6 * N) * d * FLOAT


class Quadratic:
    """OptEx on ``½ Σ cᵢ θᵢ²`` with ``cᵢ`` between 0.5 and 1.5: a gradient that costs one product."""

    def __init__(self, d: int, T0: int, N: int, selection: str) -> None:
        generator = torch.Generator().manual_seed(0)
        self.curvature = torch.rand(d, generator=generator).add_(0.5)
        parameter = Parameter(torch.randn(d, generator=generator))
        self.optimizer = OptEx(
            [parameter], lr=1e-3, parallelism=N, history_size=T0, selection=selection, horizon="fixed"
        )

    def iterate(self) -> None:
        """One sequential iteration."""
        self.optimizer.tell(self.gradients(self.optimizer.ask()))

    def gradients(self, points: Tensor) -> Tensor:
        """True gradients ``[N, d]``."""
        return points * self.curvature


def time_of(d: int, T0: int, N: int, selection: str, rounds: int) -> tuple[float, float]:
    """Median seconds of the estimator in an iteration, and of one read of a ``[T0, d]`` buffer."""
    problem, buffers = Quadratic(d, T0, N, selection), torch.ones(2, T0, d)
    estimator, read = [], []
    with stopwatch_on(GradientEstimator) as watch:
        for round_number in range(T0 // N + 2 + rounds):
            before = watch.seconds
            problem.iterate()
            start = time.process_time()
            for buffer in buffers:  # two in turn, so that no cache holds them
                buffer.sum()
            if round_number >= T0 // N + 2:
                estimator.append(watch.seconds - before)
                read.append((time.process_time() - start) / 2)
    return statistics.median(estimator), statistics.median(read)


def peak_bytes() -> int:
    """Peak resident size of this process since its program began; getrusage would start from its parent's on Linux."""
    status = Path("/proc/self/status")
    if status.exists():
        return 1024 * int(re.findall(r"VmHWM:\s*(\d+) kB", status.read_text())[0])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def memory_of(d: int, T0: int, N: int, selection: str) -> int:
    """Bytes by which the peak grows from before the parameters are made until the history has been full for a while.

    Meant for a process of its own.
    """
    torch.set_num_threads(1)
    warm_up = Quadratic(8, 4, 2, selection)
    for _ in range(4):  # what is loaded at first use; predictions and their linear algebra begin with the third
        warm_up.iterate()
    before = peak_bytes()
    problem = Quadratic(d, T0, N, selection)
    for _ in range(T0 // N + 4):
        problem.iterate()
    return peak_bytes() - before


def main() -> None:
    """Parse the flags, measure memory and then time, and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dim", type=int, default=1_000_000)
    parser.add_argument("--history-size", type=int, default=20)
    parser.add_argument("--parallelism", type=int, default=4)
    parser.add_argument("--selections", nargs="+", choices=("refine", "last"), default=["refine", "last"])
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    d, T0, N = options.dim, options.history_size, options.parallelism
    spawn = multiprocessing.get_context("spawn")
    memory = []
    for selection in options.selections:
        with ProcessPoolExecutor(1, mp_context=spawn) as fresh:
            memory.append(fresh.submit(memory_of, d, T0, N, selection).result())
    print(f"d = {d:,}, T0 = {T0}, N = {N}, allowed {memory_allowed(d, T0, N) / 1e6:.0f} MB\n")
    print(
        "| selection | estimator, ms | one read, ms | reads needed | ratio | memory, MB | beyond history, d a point |"
    )
    print("|---|---|---|---|---|---|---|")
    for selection, used in zip(options.selections, memory, strict=True):
        estimator, read = time_of(d, T0, N, selection, options.rounds)
        needed = reads_needed(selection, N)
        beyond = (used / FLOAT / d - 2 * T0) / N
        print(
            f"| {selection} | {estimator * 1e3:.1f} | {read * 1e3:.2f} | {needed} | "
            f"{estimator / (needed * read):.2f} | {used / 1e6:.0f} | {beyond:.1f} |"
        )


if __name__ == "__main__":
    main()
