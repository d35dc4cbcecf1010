"""The search for a setting: on scores that are known, the best is found, inside its grid, and losers stop early."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable

import pytest

from optex_rl.compare.tuning import MOST_EXTENSIONS, Axis, Search, Setting, halve, rungs, search

RATES = (0.001, 0.002, 0.004, 0.008)


def follow(trials: Search, tried: Counter[Setting]) -> Setting:
    """Note what a search asks for, and give what it finds."""
    while True:
        try:
            settings, count = next(trials)
        except StopIteration as stop:
            found: Setting = stop.value
            return found
        tried |= Counter(dict.fromkeys(settings, count))


def run(axes: list[Axis], needed: Callable[[Setting], float], seeds: int = 5) -> tuple[Setting, Counter[Setting]]:
    """What a search finds where a setting takes ``needed`` iterations with every seed; with how many each was tried."""
    tried: Counter[Setting] = Counter()

    def score(setting: Setting, count: int) -> tuple[float, float]:
        assert tried[setting] >= count, "only what was run has a score"
        return needed(setting), 0.0

    return follow(search(axes, seeds, score), tried), tried


def distance(*best: float) -> Callable[[Setting], float]:
    """A score that is 1 at ``best`` and grows by a factor of two with each doubling or halving away from it."""
    return lambda setting: 2 ** sum(abs(math.log2(a / b)) for a, b in zip(setting, best, strict=True))


@pytest.mark.parametrize(("seeds", "expected"), [(5, [2, 3, 5]), (3, [2, 3]), (2, [2]), (1, [1]), (10, [2, 3, 10])])
def test_rungs(seeds: int, expected: list[int]) -> None:
    assert rungs(seeds) == expected


@pytest.mark.parametrize("best", [0.002, 0.004])
def test_inside_the_grid_it_is_not_extended(best: float) -> None:
    found, tried = run([Axis.make("learning_rate", RATES, 0.001)], distance(best))
    assert found == (best,)
    assert set(tried) == {(rate,) for rate in RATES}
    assert tried[found] == 5


@pytest.mark.parametrize(("best", "last"), [(0.0005, 0.00025), (0.001, 0.0005), (0.008, 0.016), (0.032, 0.064)])
def test_a_best_value_at_the_edge_extends_the_grid(best: float, last: float) -> None:
    found, tried = run([Axis.make("learning_rate", RATES, 0.001)], distance(best))
    assert found == (best,)
    assert (last,) in tried  # one beyond it was tried and lost


def test_an_extension_has_an_end() -> None:
    found, tried = run([Axis.make("learning_rate", RATES, 0.001)], lambda setting: 1 / setting[0])
    assert found == (0.008 * 2**MOST_EXTENSIONS,)
    assert len(tried) == len(RATES) + MOST_EXTENSIONS


def test_the_hopeless_stop_after_two_seeds_and_three_go_on() -> None:
    """Scores 1, 1.2, 1.5 and 1.9 of the four in the running: the last is not in the better three; 2.5 has lost."""
    scores = {0.001: 2.5, 0.002: 1.5, 0.004: 1.0, 0.008: 1.2, 0.016: 1.9}
    _, tried = run([Axis.make("learning_rate", tuple(scores), 0.002)], lambda setting: scores[setting[0]])
    assert {setting[0]: count for setting, count in tried.items()} == {
        0.001: 2,
        0.002: 5,
        0.004: 5,
        0.008: 5,
        0.016: 2,
    }


def test_halving_keeps_the_better_half_of_many() -> None:
    counts: Counter[Setting] = Counter()
    trials = halve([(float(k),) for k in range(1, 11)], 5, lambda setting, _: (1 + setting[0] / 100, 0.0))
    assert follow(trials, counts) == (1.0,)
    assert [counts[(float(k),)] for k in range(1, 11)] == [5, 5, 5, 3, 3, 2, 2, 2, 2, 2]


def test_one_axis_after_the_other_and_the_first_once_more() -> None:
    """With fewer epochs a higher rate is best: found on the second way along the rates."""
    axes = [Axis.make("learning_rate", RATES, 0.002), Axis.make("n_epochs", (5, 10, 20), 10)]

    def needed(setting: Setting) -> float:
        rate, epochs = setting
        return distance(0.04, 5)((rate * epochs, epochs))

    found, tried = run(axes, needed)
    assert found == pytest.approx((0.008, 5))
    assert {(0.004, 2), (0.016, 5)} <= tried.keys()  # 2: beyond the edge of the epochs, rounded
    assert {type(setting[1]) for setting in tried} == {int}


def test_an_axis_with_one_value_is_not_tuned() -> None:
    found, tried = run([Axis.make("learning_rate", (0.1,), 0.3), Axis.make("ent_coef", (0.0,), 0.0)], sum)
    assert (found, tried) == ((0.1, 0.0), Counter())


def test_a_grid_with_zero_in_it_is_not_extended() -> None:
    found, tried = run([Axis.make("ent_coef", (0.0, 0.01), 0.01)], lambda setting: 1 - setting[0])
    assert found == (0.01,)
    assert len(tried) == 2
