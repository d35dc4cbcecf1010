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


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked children")
@pytest.mark.parametrize(
    ("kills", "seed", "iterations"), [(3, 1, 120), pytest.param(30, 0, 1000, marks=pytest.mark.slow)]
)
def test_killed_equals_undisturbed(tmp_path: Path, kills: int, seed: int, iterations: int) -> None:
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
