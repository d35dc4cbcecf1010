"""Starts a training run and kills it, again and again: a program for `test_kill.py`, run as a process of its own.

It holds one thread, so that forking is safe, and has everything imported, so that a child trains after milliseconds.

    python killed_runs.py LOGDIR KILLS SEED ITERATIONS MOST_SECONDS
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
import torch.utils.tensorboard.writer  # imported once, here, and not by every child

from optex_rl.cli import main

FLAGS = ["--n-envs", "2", "--n-steps", "8", "--net-arch", "4", "--parallelism", "2", "--history-size", "5"]
FLAGS += ["--eval-freq", "10", "--eval-episodes", "2", "--checkpoint-freq", "5", "--no-progress-bar"]


def command(logdir: Path, iterations: int) -> list[str]:
    """What starts the run, or goes on with it."""
    run_dir = logdir / "killed"
    if (run_dir / "config.yml").exists():
        return ["train", "--resume", str(run_dir)]
    if run_dir.exists():  # killed before there was anything to go on with
        for path in run_dir.iterdir():
            path.unlink()
        run_dir.rmdir()
    return ["train", *FLAGS, "--iterations", str(iterations), "--logdir", str(logdir), "--run-name", "killed"]


def start(arguments: list[str]) -> int:
    """A child that runs the command; its number."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        with open(os.devnull, "w") as sys.stdout:
            status = main(arguments)
    finally:
        os._exit(status)


def kill_again_and_again(logdir: Path, kills: int, seed: int, iterations: int, most_seconds: float) -> int:
    """Kill children at random moments, then let one finish; returns its status. Every death must have been a kill."""
    moments = random.Random(seed)
    for _ in range(kills):
        child = start(command(logdir, iterations))
        time.sleep(moments.uniform(0.0, most_seconds))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            return 2
    _, status = os.waitpid(start(command(logdir, iterations)), 0)
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    torch.set_num_threads(1)
    where, *numbers, seconds = sys.argv[1:]
    kills, seed, iterations = map(int, numbers)
    sys.exit(kill_again_and_again(Path(where), kills, seed, iterations, float(seconds)))
