"""Callbacks: when they are called, how they stop a run, what comes in the box; and a log that is no terminal."""

from __future__ import annotations

import importlib
import logging
import math
import signal
import struct
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
import torch
import tqdm.auto

from optex_rl import (
    BaseCallback,
    ConfigError,
    LoggerCallback,
    NumericalError,
    OptunaPruningCallback,
    StopTrainingOnRewardThreshold,
    TrainConfig,
    WandbCallback,
    load,
    resume,
    train,
)
from optex_rl.compare import jobs, statistics
from optex_rl.runner import callbacks as module
from optex_rl.runner import log
from optex_rl.runner.callbacks import Run, held
from optex_rl.training import Trainer

from .helpers import read_csv, same

SMALL: dict[str, Any] = {
    "n_envs": 2,
    "n_steps": 16,
    "parallelism": 2,
    "iterations": 5,
    "net_arch": (8,),
    "eval_episodes": 2,
    "eval_freq": 2,
    "progress_bar": False,
    "lr_schedule": "constant",
    "logdir": None,
}


def config(**options: Any) -> TrainConfig:
    return TrainConfig(**SMALL | options)


class Diary(BaseCallback):
    """Notes what it is called with; stops the run where it is told to."""

    def __init__(self, stop: tuple[str, int] | None = None) -> None:
        self.stop, self.calls = stop, list[tuple[str, int]]()

    def note(self, hook: str, run: Run) -> bool:
        self.calls.append((hook, run.iteration))
        return (hook, run.iteration) != self.stop

    def on_training_start(self, run: Run) -> None:
        self.note("start", run)

    def on_evaluation(self, run: Run) -> bool:
        assert not math.isnan(run.metrics["eval/mean_reward"])
        return self.note("evaluation", run)

    def on_step(self, run: Run) -> bool:
        assert run.env_steps == run.metrics["time/env_steps"] == 64 * run.iteration
        assert run.metrics["time/wall_time"] > 0
        return self.note("step", run)

    def on_training_end(self, run: Run) -> None:
        self.note("end", run)


def test_hooks_are_called_in_order() -> None:
    diary = Diary()
    result = train(config(), callbacks=[diary])
    steps = [("step", 1), ("evaluation", 2), ("step", 2), ("step", 3), ("evaluation", 4), ("step", 4)]
    assert diary.calls == [("start", 0), *steps, ("evaluation", 5), ("step", 5), ("end", 5)]
    assert (result.interrupted, result.stopped_by) == (False, None)


@pytest.mark.parametrize("hook", ["step", "evaluation"])
def test_a_callback_stops_the_run_which_is_saved_and_goes_on_exactly(hook: str, tmp_path: Path) -> None:
    diary, second = Diary((hook, 2)), Diary()
    result = train(config(logdir=str(tmp_path), run_name="run"), callbacks=[diary, second])
    assert (result.iterations, result.interrupted, result.stopped_by, len(result.rows)) == (2, False, "Diary", 2)
    assert diary.calls[-1] == second.calls[-1] == ("end", 2)
    assert load(tmp_path / "run").iteration == 2
    again = resume(tmp_path / "run", callbacks=[third := Diary()])
    assert (again.iterations, again.stopped_by, third.calls[0]) == (5, None, ("start", 2))
    whole = train(config())
    assert same(whole.policy.state_dict(), again.policy.state_dict())


def test_a_stop_at_the_last_iteration_is_none() -> None:
    assert train(config(), callbacks=[Diary(("step", 5))]).stopped_by is None


class Answer(BaseCallback):
    """Answers what it is told to."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer

    def on_step(self, run: Run) -> Any:
        return self.answer


@pytest.mark.parametrize("answer", [False, np.float64(3) < 2, torch.tensor(3) < 2])
def test_false_is_that_of_numpy_and_torch_too(answer: Any) -> None:
    """As comparisons of their numbers give it; in the first iteration, whichever callback answers so."""
    first, last = Diary(), Diary()
    result = train(config(), callbacks=[first, Answer(answer), last])
    assert (result.iterations, result.stopped_by) == (1, "Answer")
    assert first.calls == last.calls == [("start", 0), ("step", 1), ("end", 1)]
    assert train(config(), callbacks=[Answer(None), Answer(not answer)]).iterations == 5


class Failing(BaseCallback):
    """Fails in one of the hooks, or sends two signals."""

    def __init__(self, hook: str) -> None:
        def fail(run: Run) -> None:
            if hook != "signals":
                raise ZeroDivisionError("a mistake of the user")
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

        setattr(self, "on_step" if hook == "signals" else hook, fail)


@pytest.mark.parametrize("hook", ["on_training_start", "on_step", "on_evaluation", "on_training_end"])
def test_whatever_has_begun_comes_to_its_end_after_a_failure(hook: str) -> None:
    """Such as a run of W&B, which the next run would go on with."""
    first, last = Diary(), Diary()
    with pytest.raises(ZeroDivisionError):
        train(config(), callbacks=[first, Failing(hook), last])
    end = ("end", {"on_training_start": 0, "on_step": 1, "on_evaluation": 2, "on_training_end": 5}[hook])
    assert first.calls[-1] == end
    assert last.calls[-1:] == ([] if hook == "on_training_start" else [end])


def test_the_end_of_a_run_that_breaks_down_and_of_one_that_two_signals_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("optex_rl.runner.signals.SAME_REQUEST", -1.0)
    diary = Diary()
    with pytest.raises(KeyboardInterrupt):
        train(config(), callbacks=[diary, Failing("signals")])
    assert diary.calls == [("start", 0), ("step", 1)]  # nothing is waited for

    def break_down(trainer: Trainer, *with_ceiling: bool) -> dict[str, float]:
        raise NumericalError("all is lost")

    monkeypatch.setattr(Trainer, "iterate", break_down)
    diary = Diary()
    with pytest.raises(NumericalError):
        train(config(), callbacks=[diary])
    assert diary.calls == [("start", 0), ("end", 0)]


class Added(BaseCallback):
    """Logs a figure of its own, and fails."""

    def __init__(self, fails_at: int) -> None:
        self.fails_at = fails_at

    def on_step(self, run: Run) -> None:
        run.metrics["own/doubled"] = 2.0 * run.iteration
        if run.iteration == self.fails_at:
            raise ZeroDivisionError("a mistake of the user")


def test_metrics_of_ones_own_are_logged_and_a_failure_loses_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        train(config(logdir=str(tmp_path), run_name="run"), callbacks=[Added(3)])
    assert load(tmp_path / "run").iteration == 3
    resume(tmp_path / "run", callbacks=[Added(0)])
    rows = read_csv(tmp_path / "run" / "progress.csv")
    assert [row["doubled"] for row in rows] == ["2.0", "4.0", "6.0", "8.0", "10.0"]


@pytest.mark.parametrize("wrong", [Diary, 3, lambda run: False])
def test_what_is_no_callback_is_refused_before_the_run(wrong: Any, tmp_path: Path) -> None:
    message = r"callbacks must be instances of optex_rl\.BaseCallback, got"
    with pytest.raises(ConfigError, match=message):
        train(config(logdir=str(tmp_path)), callbacks=[wrong])
    with pytest.raises(ConfigError, match=message):
        resume(tmp_path, callbacks=[wrong])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", [Diary(), None, iter([Diary()])])
def test_callbacks_that_are_no_list_are_refused(wrong: Any) -> None:
    with pytest.raises(ConfigError, match=r"callbacks must be a list of optex_rl\.BaseCallback, got (<|None)"):
        train(config(), callbacks=wrong)


@pytest.mark.parametrize("wrong", ["475", None, math.nan])
def test_a_return_to_stop_at_is_a_number(wrong: Any) -> None:
    with pytest.raises(ConfigError, match=f"reward_threshold must be a number between .*, got {wrong!r}"):
        StopTrainingOnRewardThreshold(wrong)


def evaluations(monkeypatch: pytest.MonkeyPatch, *returns: float) -> None:
    """Evaluations that give these returns, one after the other."""
    given = iter(returns)
    monkeypatch.setattr("optex_rl.training.trainer.Trainer.evaluate", lambda _: next(given))


@pytest.mark.parametrize(("is_held", "iterations"), [(False, 2), (True, 5)])
def test_stopping_at_a_return(is_held: bool, iterations: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """9 and 4 are at least 8 once, and in the mean of two only later: (9 + 4) / 2 < 8 <= (4 + 12) / 2."""
    evaluations(monkeypatch, 1, 9, 4, 12, 0, 0)
    stop = StopTrainingOnRewardThreshold(8, held=is_held)
    result = train(config(eval_freq=1, iterations=6), callbacks=[stop])
    assert (result.iterations, result.stopped_by) == (4 if is_held else iterations, "StopTrainingOnRewardThreshold")
    evaluations(monkeypatch, *[math.nan] * 6)
    assert train(config(eval_freq=1, iterations=6), callbacks=[stop]).iterations == 6
    with pytest.raises(ConfigError, match="needs evaluations: eval_freq must be at least 1, got 0"):
        train(config(eval_freq=0), callbacks=[stop])


def test_a_comparison_stops_its_runs_by_the_same_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    assert statistics.held is held is module.held
    returns = [1.0, 9.0, 4.0, 12.0, 0.0, 0.0]
    evaluations(monkeypatch, 0.0, *returns)
    curve = jobs.follow_trainer(Trainer(config(eval_freq=1, iterations=6)), until=8.0)
    evaluations(monkeypatch, *returns)
    stopped = train(config(eval_freq=1, iterations=6), callbacks=[StopTrainingOnRewardThreshold(8, held=True)])
    assert curve.returns[: stopped.iterations + 1] == (0.0, *returns[: stopped.iterations])
    assert set(curve.returns[stopped.iterations :]) == {returns[stopped.iterations - 1]}  # kept to the end


def test_a_logger_of_ones_own() -> None:
    seen: list[tuple[int, Mapping[str, float]]] = []
    result = train(config(), callbacks=[LoggerCallback(lambda iteration, metrics: seen.append((iteration, metrics)))])
    assert [iteration for iteration, _ in seen] == [1, 2, 3, 4, 5]
    known = [{tag: value for tag, value in row.items() if not math.isnan(value)} for row in result.rows]
    assert [metrics for _, metrics in seen] == known
    assert "eval/mean_reward" in seen[1][1]


def records(folder: Path) -> Iterator[bytes]:
    """The records of an offline run of W&B: a log as of LevelDB, in blocks of 32 KiB, after seven bytes of its own."""
    (path,) = folder.rglob("*.wandb")
    data, place, whole = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        left = 2**15 - place % 2**15
        if left < 7:  # too little for a header: padding
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a record in one piece, or its last piece
            yield whole
            whole = b""


def history(folder: Path) -> list[dict[str, float]]:
    """What an offline run of W&B was given, step by step."""
    wandb_internal: Any = importlib.import_module("wandb.proto.wandb_internal_pb2")
    parsed = (wandb_internal.Record.FromString(record) for record in records(folder))
    steps = [record.history.item for record in parsed if record.WhichOneof("record_type") == "history"]
    return [{item.key or "/".join(item.nested_key): float(item.value_json) for item in items} for items in steps]


def test_weights_and_biases_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")
    settings = wandb.Settings(silent=True)
    own = WandbCallback(project="optex", mode="offline", dir=str(tmp_path), settings=settings)
    result = train(config(), callbacks=[own])
    assert wandb.run is None
    wandb.teardown()  # ends the process that writes the file
    rows = history(tmp_path)
    assert [row["_step"] for row in rows] == [1, 2, 3, 4, 5]
    for row, metrics in zip(rows, result.rows, strict=True):
        for tag, value in metrics.items():
            assert math.isnan(value) or row[tag] == pytest.approx(value)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"pip install 'optex-rl\[wandb\]'"):
        train(config(), callbacks=[own])


def test_an_open_run_of_weights_and_biases_is_used_and_left_open(tmp_path: Path) -> None:
    wandb = pytest.importorskip("wandb")
    with wandb.init(project="optex", mode="offline", dir=str(tmp_path), settings=wandb.Settings(silent=True)) as run:
        train(config(iterations=1), callbacks=[WandbCallback()])
        assert wandb.run is run
        assert run.config["n_steps"] == 16


@pytest.mark.parametrize(("threshold", "pruned"), [(1e9, True), (-1e9, False)])
def test_optuna_prunes(threshold: float, pruned: bool, tmp_path: Path) -> None:
    """A pruner that stops whatever is below a threshold, from the second evaluation on."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    pruner = optuna.pruners.ThresholdPruner(lower=threshold, n_warmup_steps=3)
    study, diary = optuna.create_study(direction="maximize", pruner=pruner), Diary()

    def objective(trial: optuna.Trial) -> float:
        rate = trial.suggest_float("learning_rate", 1e-4, 1e-2, log=True)
        options = {"logdir": str(tmp_path), "run_name": "run", "learning_rate": rate}
        result = train(config(**options), callbacks=[OptunaPruningCallback(trial), diary])
        return result.rows[-1]["eval/mean_reward"]

    study.optimize(objective, n_trials=1)
    (trial,) = study.trials
    assert trial.state == (optuna.trial.TrialState.PRUNED if pruned else optuna.trial.TrialState.COMPLETE)
    assert list(trial.intermediate_values) == ([2, 4] if pruned else [2, 4, 5])
    assert load(tmp_path / "run").iteration == (4 if pruned else 5)
    assert diary.calls[-1] == ("end", 4 if pruned else 5)


def test_a_log_that_is_no_terminal_gets_lines(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    train(config(progress_bar=True))
    assert capsys.readouterr().err == ""  # a run of less than LINE_SECONDS has none
    monkeypatch.setattr(log, "LINE_SECONDS", 0.0)
    train(config(progress_bar=True))
    err = capsys.readouterr().err
    lines = err.splitlines()
    assert "\r" not in err
    assert len(lines) >= 5
    assert lines[-1].startswith("100% 5/5 [")
    assert all("% " in line and ", return " in line and line.endswith("steps/s]") for line in lines[1:])


def test_what_has_no_end_yet_gets_lines_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "LINE_SECONDS", 0.0)
    with log.progress_bar(True, unit="run", bar_format="{bar}", dynamic_ncols=True) as bar:  # as of a comparison
        bar.set_postfix_str("ends about 17:05")
        bar.update()
        bar.total = 2
        bar.update()
    lines = capsys.readouterr().err.splitlines()
    assert (lines[0][:6], lines[-1][:8]) == ("0% 0/?", "100% 2/2")
    assert ", ends about 17:05]" in lines[-1]


def test_a_program_that_keeps_a_log_has_them_there(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log, "LINE_SECONDS", 0.0)
    with caplog.at_level(logging.INFO, logger="optex_rl"):
        train(config(progress_bar=True), callbacks=[Diary(("step", 3))])
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")
    assert {record.name for record in caplog.records} == {"optex_rl"}
    messages = [record.getMessage() for record in caplog.records]
    assert any(message.startswith("60% 3/5 [") for message in messages)
    assert any(message.startswith("iteration 2: evaluation return ") for message in messages)
    assert "iteration 3: stopped by Diary" in messages


def test_a_terminal_gets_a_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    train(config(progress_bar=True))
    err = capsys.readouterr().err
    assert "\r" in err
    assert "5/5" in err
    assert type(log.progress_bar(False)) is tqdm.auto.tqdm
