"""Episode statistics against hand-worked figures."""

from __future__ import annotations

import math

from optex_rl.logs import EpisodeStatistics
from optex_rl.rollout import Episode


def test_figures_worked_by_hand() -> None:
    statistics = EpisodeStatistics()
    assert math.isnan(statistics.cumulative_average_reward)
    assert math.isnan(statistics.ep_rew_mean)
    statistics.add([Episode(0, 1000.0, 10)] * 50)
    statistics.add([Episode(1, float(k), 2 * k) for k in range(1, 101)])
    # All 150 episodes: (50 · 1000 + 5050) / 150 = 367; the window of 100 holds only the last ones: 5050 / 100 = 50.5.
    assert statistics.cumulative_average_reward == 367.0
    assert statistics.ep_rew_mean == 50.5
    assert statistics.ep_len_mean == 101.0


def test_saved_figures_go_on() -> None:
    statistics, other = EpisodeStatistics(), EpisodeStatistics()
    statistics.add([Episode(0, float(k), k) for k in range(130)])
    other.load_state_dict(statistics.state_dict())
    for each in (statistics, other):
        each.add([Episode(0, 7.0, 3)])
    assert statistics.metrics() == other.metrics()
