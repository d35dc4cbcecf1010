"""Signals at any step of the environments: acknowledged, heeded there, and without a trace in the resumed run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from optex_rl import RunFolderError, resume
from optex_rl.cli import main
from optex_rl.common.storage import load_checkpoint, save_checkpoint
from optex_rl.envs import NativeVectorEnv
from optex_rl.runner.signals import stop_on_interrupt

from .test_resume import assert_same_runs, rows_of, start

# Of 4 iterations with 8 steps, or twice as many in target, and an evaluation after the second and the last.
STEPS = {"vanilla": (1, 12, 20, 33, 37, 45, 53, 61), "optex": (5, 17, 30, 44), "target": (1, 12, 20, 30, 40, 70)}


def interrupted_at(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """A Ctrl-C during one step of the environments, counted from 1, whatever they are stepped for."""
    step, count = NativeVectorEnv.step, [0]

    def counted(self: NativeVectorEnv, actions: Any) -> Any:
        count[0] += 1
        if count[0] == number:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, actions)

    monkeypatch.setattr(NativeVectorEnv, "step", counted)


@pytest.mark.parametrize("method", STEPS)
def test_a_run_that_is_stopped_at_any_step_resumes_exactly(
    tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--method", method, "--lr-schedule", "constant"]
    assert start(tmp_path, *flags, name="whole") == 0
    pending = 0
    for number in STEPS[method]:
        name = f"stopped{number}"
        with monkeypatch.context() as patch:
            interrupted_at(patch, number)
            assert start(tmp_path, *flags, name=name) == 130
        assert f"resume with  optex-rl train --resume {tmp_path / name}" in capsys.readouterr().out
        content = load_checkpoint(tmp_path / name / "checkpoint.pt")
        pending += content["pending"] is not None
        assert len(rows_of(tmp_path / name)) == content["iteration"] - (content["pending"] is not None)
        assert main(["train", "--resume", str(tmp_path / name)]) == 0
        assert_same_runs(tmp_path / "whole", tmp_path / name)
    assert pending > 0  # evaluations were among what was stopped


def test_the_last_evaluation_is_made_up_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        interrupted_at(patch, 9)
        assert start(tmp_path, iterations=1) == 130
    assert rows_of(tmp_path / "run") == []
    assert resume(tmp_path / "run").rows[-1]["eval/mean_reward"] > 0
    assert resume(tmp_path / "run").rows == []


@pytest.mark.parametrize("pending", [1.0, {}, ["time/env_steps"]])
def test_metrics_that_are_none_are_refused(tmp_path: Path, pending: object) -> None:
    start(tmp_path, iterations=1)
    path = tmp_path / "run" / "checkpoint.pt"
    save_checkpoint(path, load_checkpoint(path) | {"pending": pending})
    with pytest.raises(RunFolderError, match="pending must be the metrics of an iteration, or None"):
        resume(tmp_path / "run", iterations=2)


def test_a_signal_that_comes_twice_at_once_is_one(capfd: pytest.CaptureFixture[str]) -> None:
    with stop_on_interrupt() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.number == signal.SIGTERM
    assert capfd.readouterr().err == "optex-rl: SIGTERM: stopping; another one ends it at once\n"


@pytest.mark.parametrize(
    "flags", [["--n-steps", "100000"], ["--n-steps", "2", "--eval-freq", "1"]], ids=["collection", "evaluation"]
)
def test_a_signal_is_acknowledged_at_once_and_heeded_at_the_next_step(tmp_path: Path, flags: list[str]) -> None:
    """Alone the rollout would take an hour, and the evaluation a day."""
    command = [sys.executable, "-m", "optex_rl", "train", "--env", "slow_tasks:Slow-v0", "--n-envs", "1", *flags]
    command += ["--method", "vanilla", "--eval-episodes", "1", "--no-progress-bar"]
    command += ["--logdir", str(tmp_path), "--run-name", "run"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        checkpoint, deadline = tmp_path / "run" / "checkpoint.pt", time.monotonic() + 120
        while not checkpoint.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(1.0)  # it is in the middle of it by then
        signalled = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        first = process.stderr.readline()
        acknowledged = time.monotonic() - signalled
        try:
            process.wait(timeout=60)
        finally:
            process.kill()
    assert acknowledged < 2.0
    assert first == "optex-rl: SIGTERM: stopping; another one ends it at once\n"
    assert process.returncode == 143
    content = load_checkpoint(checkpoint)
    assert (content["iteration"], content["pending"] is None) == ((0, True) if "100000" in flags else (1, False))
