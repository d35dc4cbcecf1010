"""Output that nobody reads any more: the program ends quietly, with the status that SIGPIPE gives."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from optex_rl.cli.pipes import CLOSED_PIPE, until_pipes_close
from optex_rl.runner.log import RunLog

PROGRAM = [sys.executable, "-m", "optex_rl"]


def test_a_reader_of_the_help_that_goes() -> None:
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([*PROGRAM, "train", "--help"], **pipes) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert process.returncode in (0, CLOSED_PIPE)  # argparse passes over what it cannot write at once


def test_a_sentence_that_nobody_reads() -> None:
    with subprocess.Popen([*PROGRAM, "train", "--lr", "1"], stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        process.stderr.close()
    assert process.returncode == CLOSED_PIPE


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_short_output_that_nobody_reads(tmp_path: Path, unbuffered: str) -> None:
    """It is in a buffer until the end, or where Python has none, the first line fails."""
    flags = ["--n-envs", "2", "--n-steps", "16", "--iterations", "1", "--no-progress-bar", "--logdir", str(tmp_path)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    with subprocess.Popen([*PROGRAM, "train", *flags], env=environment, **pipes) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert process.returncode == CLOSED_PIPE
    assert len(list(tmp_path.glob("*/checkpoint.pt"))) == (0 if unbuffered else 1)


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_behind_the_output(tmp_path: Path, unbuffered: str) -> None:
    log = RunLog(tmp_path)
    log.write(1, {"rollout/cumulative_average_reward": 1.0, "rollout/ep_rew_mean": 1.0})
    log.close()
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "w") as full:
        command = [*PROGRAM, "plot", str(tmp_path)]
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=environment)
    said = "optex-rl: error: standard output cannot be written: No space left on device\n"
    assert (ended.returncode, ended.stderr) == (1, said)


def test_no_output_at_all() -> None:
    closed = ["sh", "-c", 'exec "$@" >&-', "sh", *PROGRAM, "plot", "nowhere"]
    ended = subprocess.run(closed, stderr=subprocess.PIPE, text=True)
    assert (ended.returncode, ended.stderr) == (1, "optex-rl: error: there is no run folder 'nowhere'\n")


def test_the_error_of_another_pipe_is_an_error() -> None:
    def worker_died() -> int:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        until_pipes_close(worker_died)
