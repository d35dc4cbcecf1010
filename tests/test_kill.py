"""SIGKILL at random moments: the run that is resumed each time ends like one that nothing disturbed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from optex_rl.cli import main

from .killed_runs import FLAGS
from .test_resume import assert_same_runs

PROGRAM = Path(__file__).with_name("killed_runs.py")


def killed_equals_undisturbed(tmp_path: Path, kills: int, seed: int, iterations: int) -> None:
    where = ["--iterations", str(iterations), "--logdir", str(tmp_path), "--run-name", "whole"]
    started = time.perf_counter()
    assert main(["train", *FLAGS, *where]) == 0
    most_seconds = (time.perf_counter() - started) / kills  # on average half of the run is over at the last kill
    numbers = [str(n) for n in (kills, seed, iterations, most_seconds)]
    arguments = [sys.executable, str(PROGRAM), str(tmp_path), *numbers]
    paths = os.pathsep.join([str(PROGRAM.parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(arguments, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert_same_runs(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked children")
def test_a_few_kills(tmp_path: Path) -> None:
    killed_equals_undisturbed(tmp_path, kills=3, seed=1, iterations=120)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked children")
def test_thirty_kills(tmp_path: Path) -> None:
    killed_equals_undisturbed(tmp_path, kills=30, seed=0, iterations=1000)
