"""Statistics of learning curves: hand-worked numbers, and SciPy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import bootstrap, trim_mean

from optex_rl.compare.statistics import (
    Curve,
    area,
    held,
    interquartile_mean,
    median,
    normalize,
    performance_profile,
    reached_at,
    stratified_interval,
    summarize,
    tuning_score,
)


def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def curve(*returns: float, every: int = 10) -> Curve:
    """A curve evaluated every so many iterations, 100 steps and half a second an iteration."""
    iterations = tuple(range(0, every * len(returns), every))
    seconds = tuple(0.5 * i for i in iterations)
    return Curve(iterations, tuple(100 * i for i in iterations), seconds, tuple(0.4 * i for i in iterations), returns)


def test_interquartile_mean_drops_a_quarter_at_each_end() -> None:
    assert interquartile_mean([900.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, -900.0]) == 3.5


@pytest.mark.parametrize(
    ("returns", "expected"),
    [
        ((10, 20, 30), None),
        ((10, 100, 100, 100), 1),
        ((10, 110, 90, 80, 120, 130), 1),  # (110 + 90) / 2 is 100
        ((10, 110, 80, 70, 120, 130), 4),  # one lucky evaluation does not count
        ((10, 80, 120, 130), 1),  # the mean with the next one decides
        ((10, 20, 100), 2),  # the last one stands alone
        ((10, 20, 99), None),
        ((100, 100, 0), 0),
    ],
)
def test_reached_at(returns: tuple[float, ...], expected: int | None) -> None:
    assert reached_at(returns, 100.0) == expected


@pytest.mark.parametrize(("returns", "expected"), [((10, 100), False), ((10, 110, 90), True), ((100, 10, 20), False)])
def test_a_run_holds_what_two_evaluations_have(returns: tuple[float, ...], expected: bool) -> None:
    assert held(returns, 100.0) == expected


def test_tuning_neither_hides_a_failing_seed_nor_is_upset_by_it() -> None:
    """At 2, 2, 2, 2 and never within 8 iterations: ⁵√(2⁴ · 16) = 3.03; better than always 4, worse than always 3."""
    sometimes = [curve(0, 100, 100, 100, 100, every=2) for _ in range(4)] + [curve(0, 0, 0, 0, 0, every=2)]
    score, _ = tuning_score(sometimes, 100.0)
    assert score == pytest.approx(256**0.2)
    slow, quick = (tuning_score([curve(*[0.0] * k, 100, 100, 100, every=1)] * 5, 100.0)[0] for k in (4, 3))
    assert (quick, slow) == pytest.approx((3.0, 4.0))


def test_settings_that_never_get_there_are_ordered_by_area() -> None:
    worse, better = (tuning_score([curve(0, value, value)], 100.0) for value in (10, 20))
    assert worse[0] == better[0]
    assert better < worse
    assert tuning_score([curve(100, 100)], 100.0)[0] == 1.0  # there before the first iteration: no division by zero


def test_area_is_the_mean_over_the_iterations() -> None:
    nothing = 0.0, 0.0, 0.0, 0.0
    uneven = Curve((0, 2, 4, 5), (0, 0, 0, 0), nothing, nothing, (0.0, 10.0, 10.0, 20.0))
    assert area(uneven) == pytest.approx((2 * 5 + 2 * 10 + 1 * 15) / 5)


def test_median_of_an_even_number_is_the_upper_one() -> None:
    assert median([3.0, math.inf, 1.0]) == 3.0
    assert median([1.0, 2.0, 3.0, 4.0]) == 3.0
    assert median([1.0, 2.0, math.inf, math.inf]) == math.inf


@pytest.mark.parametrize("method", ["percentile", "BCa"])
def test_the_interval_of_one_task_is_scipys(method: str) -> None:
    values = np.random.default_rng(0).normal(size=12)

    def middle(x: Any, axis: int) -> Any:
        return trim_mean(x, 0.25, axis=axis)

    expected = bootstrap((values,), middle, method=method, rng=rng()).confidence_interval
    assert stratified_interval([values], rng(), method=method) == tuple(expected)


def test_resampling_stays_within_the_tasks() -> None:
    """Runs of a task agree, tasks do not: resampled within tasks nothing varies, resampled across them it would."""
    assert stratified_interval([[1.0] * 6, [5.0] * 6], rng()) == (3.0, 3.0)


def test_the_interval_covers_what_naive_resampling_gives() -> None:
    tasks = [np.random.default_rng(1).normal(size=10), np.random.default_rng(2).normal(3.0, size=8)]
    draws = rng()
    means = [interquartile_mean(np.concatenate([draws.choice(task, len(task)) for task in tasks])) for _ in range(4000)]
    low, high = stratified_interval(tasks, rng())
    assert (low, high) == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.05)


def test_one_run_has_no_interval() -> None:
    low, high = stratified_interval([np.zeros((1, 3))], rng())
    assert np.isnan(low).all()
    assert low.shape == high.shape == (3,)


def test_performance_profile_weighs_tasks_alike() -> None:
    profile = performance_profile([[0.0, 1.0], [0.5, 0.5, 0.5, 1.5]], [0.0, 0.5, 1.0, 2.0])
    assert profile.tolist() == [1.0, 0.75, 0.375, 0.0]


def test_normalize_where_returns_are_negative() -> None:
    assert normalize([-500.0, -300.0, -100.0, -80.0], -500.0, -100.0).tolist() == [0.0, 0.5, 1.0, 1.05]


def test_summary() -> None:
    curves = [curve(0, 100, 100, 100, 80), curve(0, 50, 100, 100, 90), curve(0, 0, 50, 50, 60)]
    summary = summarize(curves, 100.0, 0.0, rng())
    assert (summary.runs, summary.reached) == (3, 2)
    assert (summary.iterations, summary.env_steps, summary.seconds, summary.cpu_seconds) == (20, 2000, 10.0, 8.0)
    assert summary.final == pytest.approx((80 + 90 + 60) / 3)
    assert summary.area == pytest.approx((85 + 73.75 + 32.5) / 3)
    low, high = summary.area_interval
    assert low < summary.area < high
    # The last quarter are iterations 30 and 40, whose means are 83.3 and 76.7.
    assert summary.late == pytest.approx((80 + 90 + 60) / 300)


def test_a_summary_of_runs_that_mostly_fail() -> None:
    summary = summarize([curve(0, 100, 100), curve(0, 1, 1), curve(0, 2, 2)], 100.0, 0.0, rng())
    assert summary.reached == 1
    assert (summary.iterations, summary.seconds, summary.env_steps) == (math.inf, math.inf, math.inf)
