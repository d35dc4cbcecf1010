"""Tuning of a method: successive halving along one option after the other, on grids that are extended where needed.

Nothing is run here: the generators yield the trials that they need, and read the scores once these are done.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Final, NamedTuple, TypeAlias

Setting: TypeAlias = tuple[float, ...]  # one value an axis
Trials: TypeAlias = tuple[list[Setting], int]  # settings, and with how many seeds each is wanted
Search: TypeAlias = Generator[Trials, None, Setting]
Score: TypeAlias = Callable[[Setting, int], tuple[float, float]]  # of a setting, over a number of seeds; less is better

HOPELESS: Final = 2.0  # times the best one's iterations: a setting that takes more is dropped
MOST_EXTENSIONS: Final = 3  # values added to one end of a grid


class Axis(NamedTuple):
    """An option to be tuned.

    Attributes:
        name: of the option.
        start: its value while others are tuned before it.
        values: the grid to begin with, ascending.
        whole: whether the option is a whole number.
    """

    name: str
    start: float
    values: tuple[float, ...]
    whole: bool = False

    @classmethod
    def make(cls, name: str, values: Sequence[float], usual: float | None) -> Axis:
        """The axis of an option, which starts at the value nearest to its ``usual`` one, or in the middle without."""
        grid = tuple(sorted(set(values)))
        start = grid[len(grid) // 2] if usual is None else min(grid, key=lambda value: abs(value - usual))
        return cls(name, start, grid, all(type(value) is int for value in grid))

    @property
    def is_named(self) -> bool:
        """Whether the option is part of a setting's name: the learning rate always, others if there is a choice."""
        return self.name == "learning_rate" or len(self.values) > 1

    def beyond(self, value: float) -> float | None:
        """The value that the grid, a geometric one, has next to its end ``value``; None in its middle."""
        values = self.values
        if len(values) < 2 or values[0] <= 0 or values[0] < value < values[-1]:
            return None
        added = value * values[0] / values[1] if value == values[0] else value * values[-1] / values[-2]
        return self._rounded(added)

    def neighbours(self, value: float) -> Axis:
        """The axis around a value: it, and one to each side."""
        low, high = value * self.values[0] / self.values[1], value * self.values[-1] / self.values[-2]
        return self._replace(values=tuple(sorted({self._rounded(low), value, self._rounded(high)})))

    def _rounded(self, value: float) -> float:
        return max(1, round(value)) if self.whole else float(f"{value:.6g}")  # 3e-3 · 4 is 0.012, not 0.0120…01


def rungs(seeds: int) -> list[int]:
    """How many seeds the remaining settings have had after each round."""
    return sorted({min(count, seeds) for count in (2, 3, seeds)})


def search(axes: Sequence[Axis], seeds: int, score: Score) -> Search:
    """The best setting: one axis after the other, the first once more around its value if there are others.

    An axis on which the best value lies at an end is extended there, until it does not or `MOST_EXTENSIONS` are tried.

    Args:
        axes: what may be tuned; one with a single value is not.
        seeds: with how many the best one has been tried in the end.
        score: called only for trials that were yielded before.
    """
    best = tuple(axis.start for axis in axes)
    tuned = [number for number, axis in enumerate(axes) if len(axis.values) > 1]
    for number in tuned:
        best = yield from _along(axes[number], number, best, seeds, score)
    if len(tuned) > 1:
        first = tuned[0]
        best = yield from _along(axes[first].neighbours(best[first]), first, best, seeds, score)
    return best


def _along(axis: Axis, number: int, best: Setting, seeds: int, score: Score) -> Search:
    """The best setting on one axis, the other values being those of ``best``."""

    def at(value: float) -> Setting:
        return (*best[:number], value, *best[number + 1 :])

    best = yield from halve([at(value) for value in axis.values], seeds, score)
    for _ in range(MOST_EXTENSIONS):
        added = axis.beyond(best[number])
        if added is None or added in axis.values:
            break
        axis = axis._replace(values=tuple(sorted({*axis.values, added})))
        best = yield from halve([best, at(added)], seeds, score)
    return best


def halve(settings: Sequence[Setting], seeds: int, score: Score) -> Search:
    """Successive halving (Jamieson and Talwalkar, 2016, arXiv 1502.07943): the better half gets more seeds.

    Here at least three remain, if there are that many and none is `HOPELESS`.
    """
    running = list(settings)
    for count in rungs(seeds):
        yield running, count
        scores = {setting: score(setting, count) for setting in running}
        ranked = sorted(running, key=scores.__getitem__)
        limit = HOPELESS * scores[ranked[0]][0]
        running = [s for s in ranked[: max(3, (len(ranked) + 1) // 2)] if scores[s][0] <= limit]
    return running[0]
