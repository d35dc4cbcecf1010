"""Statistics of learning curves over seeds and tasks: pure functions. Needs the extra ``compare``.

Axes: ``S`` seeds, ``K`` evaluations of a run.

A run *reaches* a threshold at its first evaluation whose mean with the next one is at least the threshold; the last
evaluation stands alone. So one lucky evaluation does not count, unless the run ends with it.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from ..common.errors import ConfigError
from ..runner.callbacks import held as held
from ..runner.callbacks import reached_at as reached_at

try:
    from scipy.integrate import cumulative_trapezoid, trapezoid
    from scipy.stats import bootstrap, trim_mean
except ModuleNotFoundError as error:
    raise ConfigError("comparisons need SciPy and Matplotlib: pip install 'optex-rl[compare]'") from error

Array = npt.NDArray[np.float64]


class Curve(NamedTuple):
    """The evaluations of one run, each ``K`` long.

    Attributes:
        iterations: sequential iterations done before the evaluation; the first is 0.
        env_steps: environment steps taken by then, over all points.
        wall_time: seconds of training by then; evaluations and set-up are not counted.
        cpu_time: processor seconds of training by then, likewise; other programs on the machine hardly change them.
        returns: mean undiscounted return of the iterate's most likely actions.
    """

    iterations: tuple[int, ...]
    env_steps: tuple[int, ...]
    wall_time: tuple[float, ...]
    cpu_time: tuple[float, ...]
    returns: tuple[float, ...]


@dataclass(frozen=True)
class Summary:
    """The runs of one method with one setting on one task, over seeds; intervals are ``(low, high)`` at 95 %.

    Attributes:
        runs: how many.
        reached: how many of them reach the threshold.
        iterations, seconds, cpu_seconds, env_steps: medians of what it took to reach it; infinite if half of the runs
            never do.
        area, area_interval: interquartile mean of the mean return over the whole curve, see `area`.
        final, final_interval: interquartile mean of the last returns.
        late: the lowest interquartile mean in the last quarter, as a share of the way from the start to the threshold.
    """

    runs: int
    reached: int
    iterations: float
    seconds: float
    cpu_seconds: float
    env_steps: float
    area: float
    area_interval: tuple[float, float]
    final: float
    final_interval: tuple[float, float]
    late: float


def interquartile_mean(values: Any, axis: int = 0) -> Any:
    """Mean of the middle half of ``values [S, …]`` along ``axis`` (Agarwal et al., 2021, arXiv 2108.13264)."""
    return trim_mean(values, 0.25, axis=axis)


def stratified_interval(
    strata: Sequence[Any], rng: np.random.Generator, *, method: str = "percentile", confidence: float = 0.95
) -> tuple[Any, Any]:
    """Bootstrap interval of the interquartile mean of all runs, resampled within each stratum (task).

    Args:
        strata: for each task the values of its runs, ``[S, …]`` with the same trailing axes.
        rng: draws the resamples.
        method: ``"percentile"`` or ``"BCa"``; the latter is undefined where all runs but one agree.
        confidence: what the interval covers.

    Returns:
        Low and high, of the trailing shape; NaN where a task has fewer than two runs.
    """
    samples = [np.asarray(values, dtype=np.float64) for values in strata]
    if min(map(len, samples)) < 2:
        nothing = np.full(samples[0].shape[1:], np.nan)[()]
        return nothing, nothing

    def pooled(*resamples: Array, axis: int) -> Any:
        return interquartile_mean(np.concatenate(resamples, axis=axis), axis=axis)

    low, high = bootstrap(samples, pooled, confidence_level=confidence, method=method, rng=rng).confidence_interval
    return low, high


def area(curve: Curve) -> float:
    """Mean return over the sequential iterations of a run: the area under its ``curve``, divided by its length."""
    return float(trapezoid(curve.returns, curve.iterations)) / curve.iterations[-1]


def cumulative_average(curve: Curve) -> Array:
    """Mean return over the iterations so far at each evaluation of a ``curve``, ``[K]``; at the last one the `area`."""
    areas = cumulative_trapezoid(curve.returns, curve.iterations, initial=0.0)
    return np.concatenate([curve.returns[:1], areas[1:] / np.asarray(curve.iterations[1:])])


def figures_of(curves: Sequence[Curve]) -> dict[str, Array]:
    """What is drawn of ``curves``, each ``[S, K]``: the `cumulative_average` of the return, and the return."""
    averages = np.array([cumulative_average(curve) for curve in curves])
    return {"cumulative_average_return": averages, "return": stack_returns(curves)}


def bands(values: Array) -> Array:
    """Interquartile mean of ``values [S, K]`` over seeds, and its 95 % interval: ``[3, K]``, the same at every call."""
    return np.stack([interquartile_mean(values), *stratified_interval([values], np.random.default_rng(0))])


def tuning_score(curves: Sequence[Curve], threshold: float) -> tuple[float, float]:
    """The score by which settings are ordered, the least first: iterations to the ``threshold``, over all ``curves``.

    The geometric mean of the `iterations_needed` by each run. Of five runs one that fails makes a setting that takes 6
    iterations count as 10 where 80 are the penalty, neither 6, as a median would have it, nor 21, as a mean. Settings
    that never get there are ordered by their areas.
    """
    needed = [iterations_needed(c.iterations, c.returns, threshold, c.iterations[-1]) for c in curves]
    return statistics.geometric_mean(needed), -statistics.fmean(map(area, curves))


def iterations_needed(iterations: Sequence[int], returns: Sequence[float], threshold: float, length: int) -> int:
    """Iterations that a run takes to the ``threshold``, at least 1; twice its ``length`` if it never gets there.

    (Penalised average runtime: Hutter et al., 2009, JAIR 36.) ``iterations`` and ``returns`` are those of its
    evaluations, ``[K]``.
    """
    k = reached_at(returns, threshold)
    return 2 * length if k is None else max(1, iterations[k])


def median(values: Sequence[float]) -> float:
    """Median of ``values``, infinite where a run never gets there; of an even number the upper one: none is made up."""
    return statistics.median_high(values)


def normalize(returns: Any, start: float, threshold: float) -> Any:
    """``returns`` as a share of the way from the ``start`` (0) to the ``threshold`` (1)."""
    return (np.asarray(returns, dtype=np.float64) - start) / (threshold - start)


def performance_profile(strata: Sequence[Any], taus: Any) -> Array:
    """Share of runs whose normalised score is at least τ, for each of ``taus``; all tasks weigh the same.

    (Dolan and Moré, 2002; for runs as here: Agarwal et al., 2021, arXiv 2108.13264, equation 2.)

    Args:
        strata: for each task the scores of its runs, ``[S]``.
        taus: ``[n]``.
    """
    shares = [(np.asarray(scores)[:, None] >= np.asarray(taus)).mean(0) for scores in strata]
    return np.asarray(np.mean(shares, axis=0), dtype=np.float64)


def stack_returns(curves: Sequence[Curve]) -> Array:
    """The returns of ``curves`` with the same evaluations, ``[S, K]``."""
    return np.array([curve.returns for curve in curves], dtype=np.float64)


def summarize(curves: Sequence[Curve], threshold: float, start: float, rng: np.random.Generator) -> Summary:
    """Figures of runs that differ only in their seed.

    Args:
        curves: at least one, all evaluated at the same iterations.
        threshold: the return to reach.
        start: mean return before training, the zero of ``late``.
        rng: draws the bootstrap's resamples.
    """
    returns, areas = stack_returns(curves), [area(curve) for curve in curves]
    hits = [(curve, reached_at(curve.returns, threshold)) for curve in curves]
    taken = {
        name: median([math.inf if k is None else getattr(curve, name)[k] for curve, k in hits])
        for name in ("iterations", "wall_time", "cpu_time", "env_steps")
    }
    last_quarter = np.array(curves[0].iterations) >= 0.75 * curves[0].iterations[-1]
    middle: Array = interquartile_mean(returns)
    return Summary(
        runs=len(curves),
        reached=sum(k is not None for _, k in hits),
        iterations=taken["iterations"],
        seconds=taken["wall_time"],
        cpu_seconds=taken["cpu_time"],
        env_steps=taken["env_steps"],
        area=float(interquartile_mean(areas)),
        area_interval=stratified_interval([areas], rng),
        final=float(middle[-1]),
        final_interval=stratified_interval([returns[:, -1]], rng),
        late=float(normalize(middle[last_quarter].min(), start, threshold)),
    )


Point: TypeAlias = tuple[int, int, float, float, float]  # one evaluation, in the order of `Curve`


def hold_last(points: Sequence[Point], last: tuple[int, float, float, float], iterations: int, every: int) -> Curve:
    """The curve of a run that was stopped after ``points``: later evaluations are as the ``last``.

    Args:
        points: the evaluations made, in the order of `Curve`.
        last: the entries after the first of those that are left.
        iterations: of a whole run.
        every: iterations from one evaluation to the next.
    """
    ahead = range(points[-1][0] + 1, iterations + 1)
    held = [(i, *last) for i in ahead if i % every == 0 or i == iterations]
    return Curve(*zip(*points, *held, strict=True))


def is_held(points: Sequence[Point], until: float | None) -> bool:
    """Whether a run with the evaluations ``points``, returns last in each, holds the return ``until`` and may stop."""
    return until is not None and held([point[-1] for point in points], until)
