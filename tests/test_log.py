"""Episode statistics against hand-worked figures; the columns of progress.csv."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from optex_rl import RunFolderError
from optex_rl.runner.log import COLUMNS, RunLog
from optex_rl.training.rollouts.episodes import Episode, EpisodeStatistics

from .helpers import read_csv


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


def test_whatever_is_reported_gets_a_column(tmp_path: Path) -> None:
    log = RunLog(tmp_path)
    log.write(1, {"train/learning_rate": 0.5, "eval/mean_reward": 3.0})
    log.write(2, {"train/approx_kl": 0.1, "optex/cosine/actor": math.nan})
    log.write(3, {"train/learning_rate": 0.25, "train/approx_kl": 0.2})
    log.close()
    rows = read_csv(tmp_path / "progress.csv")
    assert list(rows[0]) == ["iteration", *COLUMNS, "approx_kl"]
    assert [row["iteration"] for row in rows] == ["1", "2", "3"]
    assert [(row["learning_rate"], row["approx_kl"], row["eval_return"]) for row in rows] == [
        ("0.5", "", "3.0"),
        ("", "0.1", ""),
        ("0.25", "0.2", ""),
    ]


def test_a_log_of_a_version_with_fewer_metrics_goes_on(tmp_path: Path) -> None:
    (tmp_path / "progress.csv").write_bytes(b"iteration,env_steps\r\n1,10\r\n2,20\r\n3,3")
    log = RunLog(tmp_path, iteration=1)
    log.write(2, {"time/env_steps": 21, "train/learning_rate": 0.5})
    log.close()
    assert read_csv(tmp_path / "progress.csv") == [
        {"iteration": "1", "env_steps": "10", "learning_rate": ""},
        {"iteration": "2", "env_steps": "21", "learning_rate": "0.5"},
    ]


@pytest.mark.parametrize("content", [b"", b"iteration", b"iteration,a\r\n1,2", b"iteration,a\r\n2,2\r\n"])
def test_a_log_that_lacks_an_iteration_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "progress.csv").write_bytes(content)
    with pytest.raises(RunFolderError, match="does not hold the 1 iterations that the checkpoint knows of"):
        RunLog(tmp_path, iteration=1)
    with pytest.raises(RunFolderError, match="does not hold the -7 iterations"):
        RunLog(tmp_path, iteration=-7)
    assert (tmp_path / "progress.csv").read_bytes() == content
