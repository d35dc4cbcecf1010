"""optex-rl tune: what is searched, trials that end early, studies that are stopped and resumed, refusals."""

from __future__ import annotations

import dataclasses
import importlib.util
import math
import os
import signal
import sqlite3
import statistics
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from optex_rl import ConfigError, NumericalError, RunFolderError, TrainConfig, train
from optex_rl.cli import main
from optex_rl.compare import study as module
from optex_rl.compare.objective import Reports
from optex_rl.compare.search_space import read_space, usual_space
from optex_rl.compare.study import Findings, Study, run_once, run_study
from optex_rl.training.config import load_config

from .helpers import read_csv

SMALL: dict[str, Any] = {"n_envs": 2, "n_steps": 16, "iterations": 8, "eval_episodes": 2, "eval_freq": 2}
FLAGS = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
BEST = 0.01


class InterruptError(Exception):
    """A signal came."""


def small_study(folder: Path, **options: Any) -> Study:
    return Study(**{"folder": folder, "config": TrainConfig(**SMALL), "trials": 12, "seeds": 1, **options})


def quadratic(config: TrainConfig) -> Iterator[float]:
    """Four evaluations of a task on which a run is the better the nearer its rate is to `BEST`."""
    for _ in range(4):
        yield -(math.log(config.learning_rate / BEST) ** 2) - config.ent_coef


def search(study: Study, monkeypatch: pytest.MonkeyPatch, run: Callable[[TrainConfig], Iterator[float]]) -> Findings:
    """A study whose runs have the evaluations that ``run`` makes up; it raises InterruptError at a signal."""

    def run_once(config: TrainConfig, reports: Reports) -> int | None:
        try:
            for step, value in enumerate(run(config), 1):
                reports.report(value, step)
                if reports.should_prune():
                    raise optuna.TrialPruned
        except InterruptError:
            return signal.SIGTERM
        return None

    monkeypatch.setattr(module, "run_once", run_once)
    return run_study(study, progress_bar=False)


def trials(folder: Path) -> list[dict[str, str]]:
    return read_csv(folder / "trials.csv")


def tune(folder: Path, *flags: str) -> int:
    return main(["tune", *FLAGS, "--tuning-seeds", "1", "--folder", str(folder), "--no-progress-bar", *flags])


def test_ranges_and_lists_are_read() -> None:
    space = read_space(
        ["learning-rate=1e-4..1e-2", "ent_coef=0..0.1", "n_steps=8..64", "stride=1/2", "baseline=yes/no"]
    )
    assert space == {
        "learning_rate": FloatDistribution(1e-4, 1e-2, log=True),
        "ent_coef": FloatDistribution(0.0, 0.1),
        "n_steps": IntDistribution(8, 64, log=True),
        "stride": CategoricalDistribution((1, 2)),
        "baseline": CategoricalDistribution((True, False)),
    }
    usual = usual_space(TrainConfig(learning_rate=0.02))
    assert usual == {"learning_rate": FloatDistribution(0.002, 0.2, log=True), "ent_coef": FloatDistribution(0, 0.05)}


@pytest.mark.parametrize(
    ("specification", "said"),
    [
        ("lerning_rate=1..2", "'lerning_rate' in .* no option"),
        ("seed=1/2", "'seed' in .* no option"),
        ("learning_rate", "NAME=LOW..HIGH or NAME=A/B/C, got 'learning_rate'"),
        ("learning_rate=2..1", "got 'learning_rate=2..1'"),
        ("learning_rate=1..2..3", "got"),
        ("learning_rate=0.1", "got"),
        ("stride=2/2", "got"),
        ("selection=last..refine", "got"),
        ("baseline=maybe/no", "got"),
        ("n_steps=a/b", "got"),
    ],
)
def test_what_is_no_range_and_no_list_is_refused(specification: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_space([specification])
    with pytest.raises(ConfigError, match="is searched already"):
        read_space(["stride=1/2", "stride=1/3"])


def test_ends_of_ranges_must_be_allowed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="gamma must be a number between 0 and 1, got 2"):
        small_study(tmp_path, space=read_space(["gamma=0.9..2.0"]))
    with pytest.raises(ConfigError, match="eval_freq must be a whole number of at least 1, got 0"):
        small_study(tmp_path, config=TrainConfig(eval_freq=0))
    assert not list(tmp_path.iterdir())


def test_the_best_rate_is_found_and_bad_trials_end_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = search(small_study(tmp_path, trials=25), monkeypatch, quadratic)
    assert abs(math.log(found.values["learning_rate"] / BEST)) < 0.3  # the range is 4.6 wide
    rows = trials(tmp_path)
    assert [int(row["trial"]) for row in rows] == list(range(25))
    assert (float(rows[0]["learning_rate"]), float(rows[0]["ent_coef"])) == (0.003, 0.01)
    assert found.first == pytest.approx(float(rows[0]["mean_return"]))
    assert found.first is not None
    assert found.score == max(float(row["mean_return"]) for row in rows if row["state"] == "complete") >= found.first
    assert found.pruned == sum(row["state"] == "pruned" for row in rows) > 3
    # Values do not change along a run, so what was pruned is worse than half of those that came to their end before.
    for k, row in enumerate(rows):
        before = [float(other["mean_return"]) for other in rows[:k] if other["state"] == "complete"]
        if row["state"] == "pruned":
            assert int(row["evaluations"]) < 4
            assert float(row["mean_return"]) < statistics.median(before)
    best = load_config(tmp_path / "best.yml")
    assert best.learning_rate == found.values["learning_rate"]
    assert (best.n_steps, best.seed) == (16, 0)


def test_the_options_given_come_first_where_they_are_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    search(small_study(tmp_path / "usual", trials=4), monkeypatch, quadratic)
    assert [float(row["learning_rate"]) for row in trials(tmp_path / "usual")] == [0.003, 0.006, 0.012, 0.0015]
    for space, first in {
        "learning_rate=0.005..0.01": {"learning_rate": 0.006},
        "learning_rate=0.012/0.1": {"learning_rate": 0.012},
        "n_steps=16/32": {"n_steps": 16},
        "n_steps=8/32": None,
    }.items():
        study = small_study(tmp_path / space, space=read_space([space]), trials=1)
        assert study.first_values()[:1] == ([] if first is None else [first])
        found = search(study, monkeypatch, quadratic)
        assert (found.first is None) == (space != "n_steps=16/32")
        assert first in (None, found.values)


def test_a_trial_has_every_seed_and_the_value_is_the_mean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = []

    def run(config: TrainConfig) -> Iterator[float]:
        seeds.append(config.seed)
        yield from (float(config.seed % 10), 4.0)

    found = search(small_study(tmp_path, trials=2, seeds=3), monkeypatch, run)
    assert seeds == [1_000_000, 1_000_001, 1_000_002] * 2
    assert found.score == found.first == pytest.approx((0 + 1 + 2 + 3 * 4) / 6)


def climbing(config: TrainConfig) -> Iterator[float]:
    """Eight evaluations of a task whose return grows by one an iteration, sooner where the rate is near to `BEST`."""
    delay = round(2 * abs(math.log(config.learning_rate / BEST))) + config.seed % 10
    yield from (iteration - delay for iteration in range(1, 9))


def test_iterations_to_a_threshold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = TrainConfig(**SMALL, learning_rate=BEST)
    study = small_study(tmp_path, config=given, threshold=2.0, trials=15, seeds=3)
    found = search(study, monkeypatch, climbing)
    # The mean of two returns is 2 from the evaluation with 1.5 on: the second, third and fourth of the three seeds.
    assert found.score == found.first == pytest.approx((2 * 3 * 4) ** (1 / 3))
    rows = trials(tmp_path)
    assert rows[0]["state"] == "complete"
    assert all(float(row["iterations"]) >= found.score for row in rows if row["state"] == "complete")
    assert all(2 < int(row["runs"]) <= 3 for row in rows)
    # A run that never gets there counts as twice its length.
    reports = Reports(optuna.create_study().ask(), threshold=100.0)
    for iteration, value in enumerate(climbing(given), 1):
        reports.report(value, iteration)
    reports.end_run(8)
    assert reports.value == pytest.approx(16)


def test_a_run_ends_once_it_holds_the_threshold(tmp_path: Path) -> None:
    study = small_study(tmp_path, threshold=0.0)
    reports = Reports(optuna.create_study().ask(), study.threshold)
    assert run_once(study.configuration({}), reports) is None
    assert len(reports.returns) == 2  # of four: all returns are positive
    reports.end_run(8)
    assert reports.needed == [2]


def test_a_stopped_study_tries_what_one_that_nothing_stops_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, stopped = small_study(tmp_path / "whole"), small_study(tmp_path / "stopped")
    search(whole, monkeypatch, quadratic)
    seen = 0

    def interrupting(config: TrainConfig) -> Iterator[float]:
        nonlocal seen
        for value in quadratic(config):
            seen += 1
            if seen % 13 == 0:
                raise InterruptError
            yield value

    signals = [search(stopped, monkeypatch, interrupting).signal for _ in range(3)]
    assert signals == [signal.SIGTERM] * 3
    assert search(stopped, monkeypatch, quadratic).signal is None

    def without_numbers(folder: Path) -> list[dict[str, str]]:
        return [{name: value for name, value in row.items() if name != "trial"} for row in trials(folder)]

    assert without_numbers(stopped.folder) == without_numbers(whole.folder)
    assert len(without_numbers(whole.folder)) == 12


def test_numerical_trouble_ends_a_trial_and_not_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(config: TrainConfig) -> Iterator[float]:
        yield 1.0
        if config.learning_rate > BEST:
            raise NumericalError("too long")
        yield 1.0

    found = search(small_study(tmp_path / "one"), monkeypatch, run)
    assert 0 < found.pruned == sum(float(row["learning_rate"]) > BEST for row in trials(tmp_path / "one")) < 12
    high = TrainConfig(**SMALL, learning_rate=1.0)
    with pytest.raises(NumericalError, match="no trial came to its end: search lower learning rates"):
        search(small_study(tmp_path / "none", config=high), monkeypatch, run)


def test_a_run_reports_its_evaluations(tmp_path: Path) -> None:
    study, values = small_study(tmp_path), {"learning_rate": 0.005}
    config = study.configuration(values)
    assert (config.seed, config.learning_rate) == (1_000_000, 0.005)
    rows = train(config).rows
    reports = Reports(optuna.create_study().ask())
    assert run_once(config, reports) is None
    assert reports.returns == [row["eval/mean_reward"] for row in rows if "eval/mean_reward" in row]
    assert len(reports.returns) == 4


def test_a_signal_ends_the_study_and_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(config: TrainConfig, reports: Reports) -> int | None:
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
        return run_once(dataclasses.replace(config, iterations=10**6), reports)

    monkeypatch.setattr(module, "run_once", interrupted)
    assert tune(tmp_path, "--trials", "1") == 130
    assert "the same command goes on" in capsys.readouterr().out
    monkeypatch.undo()
    assert tune(tmp_path, "--trials", "1") == 0
    assert [row["state"] for row in trials(tmp_path)] == ["complete"]


def test_the_command_goes_on_in_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tune(tmp_path, "--trials", "2") == 0
    said = capsys.readouterr().out
    assert "2 of 2 trials, 0 of them ended early" in said
    assert "best: iterations to a return of 475" in said
    first = trials(tmp_path)
    assert tune(tmp_path, "--trials", "3") == 0
    assert trials(tmp_path)[:2] == first
    assert len(trials(tmp_path)) == 3
    assert tune(tmp_path, "--trials", "4", "--learning-rate", "0.1") == 1
    usual = TrainConfig.recommended("CartPole-v1").learning_rate
    assert f"holds a study with learning_rate {usual}, and 0.1 is asked for" in capsys.readouterr().err
    assert (
        tune(tmp_path / "other", "--trials", "1", "--threshold", "none", "--search", "stride=1/2", "baseline=yes/no")
        == 0
    )
    said = capsys.readouterr().out
    assert "best: mean return" in said
    assert "--stride 1 --baseline" in said


def test_what_the_command_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tune(tmp_path, "--trials", "0") == 2
    assert "trials must be a whole number between 1 and 100000, got 0" in capsys.readouterr().err
    for threshold, allowed in {"many": "a number or none, got 'many'", "inf": "a number between"}.items():
        assert tune(tmp_path, "--threshold", threshold) == 2
        assert f"threshold must be {allowed}" in capsys.readouterr().err
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "study.db").write_bytes(b"no database" * 100)
    assert tune(tmp_path / "damaged") == 1
    assert "the study in" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert tune(tmp_path / "file" / "folder") == 1
    assert "cannot be made: Not a directory" in capsys.readouterr().err
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert tune(tmp_path / "without") == 2
    assert "tuning needs Optuna: pip install 'optex-rl[tune]'" in capsys.readouterr().err
    assert not (tmp_path / "without").exists()


def test_a_log_that_is_no_terminal_gets_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    monkeypatch.setattr(module, "run_once", lambda config, reports: reports.report(1.0, 1))
    monkeypatch.setattr("optex_rl.runner.log.LINE_SECONDS", 1e6)
    run_study(small_study(tmp_path / "short", trials=2))
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("optex_rl.runner.log.LINE_SECONDS", 0.0)
    run_study(small_study(tmp_path / "long", trials=2))
    err = capsys.readouterr().err
    assert "\r" not in err
    assert err.splitlines()[-1].startswith("100% 2/2 [")


def test_the_folder_has_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from optex_rl.runner.folder import locked

    with locked(tmp_path), pytest.raises(RunFolderError, match="another process"):
        search(small_study(tmp_path), monkeypatch, quadratic)
    search(small_study(tmp_path, trials=1), monkeypatch, quadratic)
    with closing(sqlite3.connect(tmp_path / "study.db")) as connection:
        assert connection.execute("select study_name from studies").fetchall() == [("optex-rl",)]
