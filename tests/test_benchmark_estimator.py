"""The clock, the count of reads and the table of scripts/benchmark_estimator.py."""

from __future__ import annotations

import sys
import time

import pytest
import torch

from optex_rl import GradientEstimator
from scripts.benchmark_estimator import Quadratic, main, memory_allowed, reads_needed, stopwatch_on


def work() -> None:
    """A hundredth of a second of the processor."""
    end = time.process_time() + 0.01
    while time.process_time() < end:
        pass


class Slow:
    """Two public methods, one of which calls the other, and a private one."""

    def outer(self) -> None:
        self.inner()
        self.inner()

    def inner(self) -> None:
        work()

    def _private(self) -> None:
        work()


def test_the_clock_counts_nested_calls_once_and_is_taken_off() -> None:
    outer = Slow.outer
    slow = Slow()
    with stopwatch_on(Slow) as watch:
        start = time.process_time()
        slow.outer()
        wall = time.process_time() - start
        slow._private()
    slow.inner()
    assert 0.02 <= watch.seconds <= wall
    assert Slow.outer is outer


def test_the_clock_runs_in_inherited_methods_of_this_class_only() -> None:
    class Heir(Slow):
        """Inherits both."""

    with stopwatch_on(Heir) as watch:
        Heir().inner()
        assert "inner" in vars(Heir)
        seconds = watch.seconds
        Slow().inner()
    assert seconds == watch.seconds >= 0.01
    assert not {"inner", "outer"} & vars(Heir).keys()


def test_reads_of_a_refined_iteration_by_hand() -> None:
    # N = 2: two rows of distances and one mean to propose; one pass to insert; from the iterate a mean whose distances
    # are known, then a row of distances and a mean.
    assert reads_needed("refine", 2) == (2 + 1) + 1 + (1 + 2)
    assert reads_needed("last", 2) == (2 + 1) + 1


def test_memory_allowed_at_the_size_of_the_benchmark() -> None:
    assert memory_allowed(1_000_000, 20, 4) == 4 * (40_000_000 + 24_000_000)


def test_the_quadratic_is_what_its_gradient_says() -> None:
    problem = Quadratic(5, 4, 2, "refine")
    points = torch.randn(3, 5, dtype=torch.float64).requires_grad_()
    (expected,) = torch.autograd.grad((0.5 * problem.curvature * points.square()).sum(), points)
    assert torch.allclose(problem.gradients(points), expected)


def test_the_clock_runs_in_the_estimator_of_an_iteration() -> None:
    problem = Quadratic(1000, 4, 2, "refine")
    with stopwatch_on(GradientEstimator) as watch:
        problem.iterate()
        first = watch.seconds
        problem.iterate()
    assert 0 < first < watch.seconds


def test_main_prints_the_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["", "--dim", "100000", "--rounds", "2", "--selections", "last"])
    main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "d = 100,000, T0 = 20, N = 4, allowed 26 MB"
    selection, _, _, reads, _, memory, _ = lines[-1].split(" | ")
    assert (selection, reads) == ("| last", "8")
    assert float(memory) >= 16  # the history alone
