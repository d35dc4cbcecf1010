"""Resumption through the real command path: bit for bit, whatever cut the run short."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from optex_rl import ResumeWarning, RunFolderError, TrainConfig, resume, train
from optex_rl.cli import main
from optex_rl.common.errors import Interrupted
from optex_rl.common.storage import load_checkpoint
from optex_rl.optimizer.selection import SELECTIONS
from optex_rl.runner.folder import locked
from optex_rl.runner.recorder import Recorder
from optex_rl.runner.signals import SAME_REQUEST
from optex_rl.training import Trainer
from optex_rl.training.config import load_config

from .helpers import read_csv, registered, same
from .own_code import Walk

TINY = ["--n-envs", "2", "--n-steps", "8", "--net-arch", "4", "--parallelism", "2", "--eval-episodes", "2"]
QUIET = ["--history-size", "5", "--eval-freq", "2", "--checkpoint-freq", "1", "--no-progress-bar"]
TIMED = ("wall_time", "fps")


def start(logdir: Path, *flags: str, iterations: int = 4, name: str = "run") -> int:
    """The command train."""
    where = ["--logdir", str(logdir), "--run-name", name, "--iterations", str(iterations)]
    return main(["train", *TINY, *QUIET, *where, *flags])


def rows_of(run_dir: Path) -> list[dict[str, str]]:
    """progress.csv without what differs from run to run."""
    return [{k: v for k, v in row.items() if k not in TIMED} for row in read_csv(run_dir / "progress.csv")]


def state_of(run_dir: Path) -> dict[str, Any]:
    """checkpoint.pt without what differs from run to run."""
    content = load_checkpoint(run_dir / "checkpoint.pt")
    return {k: v for k, v in content.items() if k not in ("wall_time", "iterations")}


def assert_same_runs(a: Path, b: Path) -> None:
    assert rows_of(a) == rows_of(b)
    state, other = state_of(a), state_of(b)
    assert state.keys() == other.keys()
    for name in state:
        assert same(state[name], other[name]), name
    assert same(load_checkpoint(a / "best_model.pt")["policy"], load_checkpoint(b / "best_model.pt")["policy"])


def assert_halves_are_the_whole(tmp_path: Path, *flags: str) -> None:
    """Two iterations, and two more of the run resumed, are a run of four."""
    constant = ("--lr-schedule", "constant", *flags)
    assert start(tmp_path, *constant, name="whole") == 0
    assert start(tmp_path, *constant, iterations=2, name="halves") == 0
    assert main(["train", "--resume", str(tmp_path / "halves"), "--iterations", "4"]) == 0
    assert_same_runs(tmp_path / "whole", tmp_path / "halves")


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, signal.Signals], None]:
    """Makes the process send itself a signal when the row of an iteration, counted from 1, is written."""
    write = Recorder.write

    def arrange(iteration: int, number: signal.Signals = signal.SIGINT) -> None:
        def interrupted(self: Recorder, metrics: dict[str, float]) -> None:
            if self.trainer.iteration == iteration:
                os.kill(os.getpid(), number)
            write(self, metrics)

        monkeypatch.setattr(Recorder, "write", interrupted)

    return arrange


CASES = [("vanilla", "refine"), ("data-parallel", "refine"), ("target", "refine")]
CASES += [("optex", selection) for selection in SELECTIONS]


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
@pytest.mark.parametrize("algo", ["reinforce", "a2c"])
@pytest.mark.parametrize(("method", "selection"), CASES)
@pytest.mark.parametrize(
    ("half", "extra"),
    [
        (2, ""),
        pytest.param(8, "--n-steps 64 --stride 2 --blocks groups", marks=pytest.mark.slow),
        pytest.param(8, "--n-steps 64 --optimizer rmsprop --learning-rate 0.003 --seed 5", marks=pytest.mark.slow),
    ],
)
def test_two_halves_equal_the_whole(
    tmp_path: Path, stop_at: Any, env: str, algo: str, method: str, selection: str, half: int, extra: str
) -> None:
    flags = ["--env", env, "--algo", algo, "--method", method, "--selection", selection, *extra.split()]
    assert start(tmp_path, *flags, iterations=2 * half, name="whole") == 0
    stop_at(half)
    assert start(tmp_path, *flags, iterations=2 * half) == 130
    assert len(rows_of(tmp_path / "run")) == half
    assert main(["train", "--resume", str(tmp_path / "run")]) == 0
    assert_same_runs(tmp_path / "whole", tmp_path / "run")


def test_a_raised_number_of_iterations(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a constant rate the longer run is the run that was long from the start."""
    assert start(tmp_path, "--lr-schedule", "constant", iterations=4, name="whole") == 0
    assert start(tmp_path, "--lr-schedule", "constant", iterations=2) == 0
    capsys.readouterr()
    run_dir = tmp_path / "run"
    assert main(["train", "--resume", str(run_dir)]) == 0
    assert f"{run_dir} is finished: all its 2 iterations are done" in capsys.readouterr().out
    assert main(["train", "--resume", str(run_dir), "--iterations", "1"]) == 1
    assert "iterations can only be raised: the run has 2, got 1" in capsys.readouterr().err
    assert main(["train", "--resume", str(run_dir), "--iterations", "4"]) == 0
    assert "sequential iterations" in capsys.readouterr().out
    assert_same_runs(tmp_path / "whole", run_dir)
    assert load_config(run_dir / "config.yml").iterations == 4


def test_a_linear_schedule_ends_at_the_raised_number(tmp_path: Path) -> None:
    start(tmp_path, "--learning-rate", "0.01", iterations=2)
    resume(tmp_path / "run", iterations=4)
    rates = [float(row["learning_rate"]) for row in rows_of(tmp_path / "run")]
    assert rates == pytest.approx([0.01, 0.005, 0.005, 0.0025])


def test_python_returns_the_new_rows_and_all_iterations(tmp_path: Path, stop_at: Any) -> None:
    stop_at(3)
    start(tmp_path)
    result = resume(str(tmp_path / "run"))
    assert (len(result.rows), result.iterations, result.interrupted, result.signal) == (1, 4, False, None)
    finished = resume(tmp_path / "run")
    assert (finished.rows, finished.iterations, finished.interrupted) == ([], 4, False)
    assert same(result.policy.state_dict(), finished.policy.state_dict())


def test_wall_time_goes_on(tmp_path: Path, stop_at: Any) -> None:
    stop_at(2)
    start(tmp_path)
    time.sleep(0.5)  # not training time
    resume(tmp_path / "run")
    times = [float(row["wall_time"]) for row in read_csv(tmp_path / "run" / "progress.csv")]
    assert times == sorted(times)
    assert times[2] - times[1] < 0.5


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_exit_statuses(tmp_path: Path, stop_at: Any, number: signal.Signals, status: int) -> None:
    before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    stop_at(2, number)
    assert start(tmp_path) == status
    assert [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)] == before
    assert state_of(tmp_path / "run")["iteration"] == 2


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C interrupts, although a process started in the background of a shell ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
def test_a_second_ctrl_c_stops_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start(tmp_path, name="whole")
    iterate = Trainer.iterate

    def twice(self: Trainer, *with_ceiling: bool) -> dict[str, float]:
        if self.iteration == 2:
            os.kill(os.getpid(), signal.SIGINT)
            with pytest.raises(Interrupted):
                self.evaluator(self.optimizer.ask())
            time.sleep(2 * SAME_REQUEST)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)  # interrupted
        return iterate(self, *with_ceiling)

    monkeypatch.setattr(Trainer, "iterate", twice)
    started = time.perf_counter()
    assert start(tmp_path, "--checkpoint-freq", "1") == 130
    assert time.perf_counter() - started < 50
    assert state_of(tmp_path / "run")["iteration"] == 2
    monkeypatch.undo()
    resume(tmp_path / "run")
    assert_same_runs(tmp_path / "whole", tmp_path / "run")


class Killed(BaseException):
    """Stands for the end of the process: nothing catches it."""


def test_death_while_a_checkpoint_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before and after each system call of the write: the run goes on from one of two checkpoints."""
    start(tmp_path, name="whole")
    for number, (owner, name) in enumerate([(os, "fsync"), (Path, "replace"), (Recorder, "save")]):
        for after in (False, True):
            run_dir = tmp_path / f"run{number}{after}"
            with monkeypatch.context() as patch:
                _die(patch, owner, name, after, call=9 if name == "fsync" else 4)
                with pytest.raises(Killed):
                    start(tmp_path, name=run_dir.name)
            assert len(rows_of(run_dir)) < 4
            resume(run_dir)
            assert_same_runs(tmp_path / "whole", run_dir)


def _die(patch: pytest.MonkeyPatch, owner: Any, name: str, after: bool, call: int) -> None:
    """Raise `Killed` at a call of a function, before or after it did its work."""
    original, calls = getattr(owner, name), []

    def deadly(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == call and not after:
            raise Killed
        result = original(*arguments)
        if len(calls) == call:
            raise Killed
        return result

    patch.setattr(owner, name, deadly)


def test_half_a_row_and_a_left_over_temporary_file(tmp_path: Path, stop_at: Any) -> None:
    start(tmp_path, name="whole")
    stop_at(2)
    start(tmp_path)
    run_dir = tmp_path / "run"
    with (run_dir / "progress.csv").open("a") as file:
        file.write("3,96,0.1")
    (run_dir / "checkpoint.pt.tmp").write_bytes(b"half a checkpoint")
    (run_dir / "config.yml.tmp").write_bytes(b"env: Cart")
    resume(run_dir)
    assert_same_runs(tmp_path / "whole", run_dir)


def test_death_before_the_first_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start(tmp_path, name="whole")
    for name in ("log", "checkpoint"):
        run_dir = tmp_path / name
        start(tmp_path, name=name)
        (run_dir / "checkpoint.pt").unlink()
        (run_dir / "best_model.pt").unlink()
        (run_dir / "progress.csv").unlink()
        if name == "checkpoint":
            (run_dir / "progress.csv").write_text("iterat")
        resume(run_dir)
        assert_same_runs(tmp_path / "whole", run_dir)


def test_folders_that_cannot_go_on(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="there is no run folder"):
        resume(tmp_path / "nothing")
    with pytest.raises(RunFolderError, match="there is no run folder"):
        resume("a\0b")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunFolderError, match=r"holds no config\.yml, so no run began in it: remove it"):
        resume(tmp_path / "empty")
    start(tmp_path)
    run_dir = tmp_path / "run"
    (run_dir / "checkpoint.pt").rename(run_dir / "kept")
    with pytest.raises(RunFolderError, match=r"holds progress but no checkpoint\.pt"):
        resume(run_dir)
    (run_dir / "kept").rename(run_dir / "checkpoint.pt")
    lines = (run_dir / "progress.csv").read_bytes().splitlines(keepends=True)
    for damaged in (lines[:3], [*lines[:2], *lines[3:], lines[3]], [b"iteration\r\n", *lines[1:]], []):
        (run_dir / "progress.csv").write_bytes(b"".join(damaged))
        with pytest.raises(RunFolderError, match="does not hold the 4 iterations that the checkpoint knows of"):
            resume(run_dir, iterations=5)


def test_iterations_that_contradict_each_other(tmp_path: Path) -> None:
    start(tmp_path, "--lr-schedule", "constant")
    path = tmp_path / "run" / "config.yml"
    text = path.read_text()
    path.write_text(text.replace("iterations: 4", "iterations: 9"))
    with pytest.raises(RunFolderError, match=r"config\.yml says 9 iterations and .* says 4: give --iterations"):
        resume(tmp_path / "run")
    # config.yml behind the checkpoint: the power went between the two.
    path.write_text(text.replace("iterations: 4", "iterations: 2"))
    assert resume(tmp_path / "run").iterations == 4
    assert resume(tmp_path / "run", iterations=5).iterations == 5
    assert load_config(path).iterations == 5


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("env: CartPole-v1", "env: Acrobot-v1", "is from a run with env 'CartPole-v1', and config.yml .* 'Acrobot-v1'"),
        ("algo: a2c", "algo: reinforce", "is from a run with algo 'a2c', and config.yml beside it says 'reinforce'"),
        ("method: optex", "method: target", "is from a run with method 'optex', and config.yml .* 'target'"),
        ("net_arch:\n- 4", "net_arch:\n- 5", r"is from a run with net_arch \[4\], and config.yml .* says \[5\]"),
        ("activation: tanh", "activation: relu", "is from a run with activation 'tanh', and config.yml .* 'relu'"),
        ("gamma: 0.99", "gamma: 0.98", "is from a run with gamma 0.99, and config.yml beside it says 0.98"),
        ("optimizer: adam", "optimizer: sgd", "is from a run with optimizer 'adam', and config.yml .* 'sgd'"),
    ],
)
def test_a_checkpoint_of_another_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, message: str
) -> None:
    start(tmp_path, iterations=1)
    path = tmp_path / "run" / "config.yml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(RunFolderError, match=message):
        resume(tmp_path / "run", iterations=2)
    shapes = ("gamma", "optimizer")  # what a trained policy does not depend on
    for flags in ([], ["--best"]):
        assert main(["evaluate", str(tmp_path / "run"), *flags]) == (0 if old.startswith(shapes) else 1)
        assert len(capsys.readouterr().err.splitlines()) == (0 if old.startswith(shapes) else 1)


def test_other_flags_beside_resume_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start(tmp_path, iterations=1)
    capsys.readouterr()
    assert main(["train", "--resume", str(tmp_path / "run"), "--seed", "0", "--no-baseline"]) == 2
    error = capsys.readouterr().err
    assert error == "optex-rl: error: --resume takes the options of the run: leave out --seed, --baseline\n"


def test_tensorboard_has_every_iteration_once(tmp_path: Path, stop_at: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with monkeypatch.context() as patch:
        _die(patch, Trainer, "iterate", after=False, call=4)
        with pytest.raises(Killed):
            start(tmp_path, "--checkpoint-freq", "2", iterations=6)  # 3 iterations logged, 2 in the checkpoint
    assert len(rows_of(tmp_path / "run")) == 3
    assert state_of(tmp_path / "run")["iteration"] == 2
    resume(tmp_path / "run")
    events = EventAccumulator(str(tmp_path / "run"))
    events.Reload()
    for tag in ("train/learning_rate", "time/env_steps"):
        assert [event.step for event in events.Scalars(tag)] == [1, 2, 3, 4, 5, 6]
    assert [row["iteration"] for row in rows_of(tmp_path / "run")] == list("123456")


@pytest.mark.skipif(sys.platform == "win32", reason="no flock there")
def test_one_process_at_a_time(tmp_path: Path) -> None:
    start(tmp_path, iterations=1)
    with locked(tmp_path / "run"), pytest.raises(RunFolderError, match="another process is writing to run folder"):
        resume(tmp_path / "run", iterations=2)
    assert resume(tmp_path / "run", iterations=2).iterations == 2


def test_a_moved_folder_goes_on_where_it_is(tmp_path: Path) -> None:
    start(tmp_path, iterations=1)
    shutil.move(tmp_path / "run", tmp_path / "elsewhere")
    assert resume(tmp_path / "elsewhere", iterations=2).run_dir == tmp_path / "elsewhere"
    assert not (tmp_path / "run").exists()


def test_environments_that_keep_their_state_to_themselves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with registered("Walk-v0", Walk):
        start(tmp_path, "--env", "Walk-v0", iterations=2)
        with pytest.warns(ResumeWarning, match="Walk-v0 cannot save its state: all episodes start over"):
            resume(tmp_path / "run", iterations=3)
        capsys.readouterr()
        with warnings.catch_warnings():
            warnings.simplefilter("default")
            assert main(["train", "--resume", str(tmp_path / "run"), "--iterations", "4"]) == 0
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("optex-rl: warning: Walk-v0 cannot save its state")
        assert len(rows_of(tmp_path / "run")) == 4


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a\0b", "run_name must be a plain folder name, got 'a\\x00b'"),
        *((name, f"run_name must be a plain folder name, got {name!r}") for name in ("../outside", "a/b", "..", "")),
        ("x" * 300, "run_name must be a plain folder name of at most 255 bytes, got 300 bytes"),
        ("ü" * 130, "run_name must be a plain folder name of at most 255 bytes, got 260 bytes"),
        ("/etc/run", "run_name must be a plain folder name, got '/etc/run'"),
        ("a\\b", "run_name must be a plain folder name, got 'a\\\\b'"),
        ("a\nb", "run_name must be a plain folder name, got 'a\\nb'"),
        ("\ud800", "run_name must be a plain folder name"),
        ("link", "run_name must be a plain folder name, got 'link', which leads elsewhere"),
        ("dangling", "run_name must be a plain folder name, got 'dangling', which leads elsewhere"),
        ("loop", "run_name must be a plain folder name, got 'loop', which leads elsewhere"),
    ],
)
def test_run_names(tmp_path: Path, name: str, message: str) -> None:
    logdir = tmp_path / "logs"
    logdir.mkdir()
    (logdir / "link").symlink_to(tmp_path, target_is_directory=True)
    (logdir / "dangling").symlink_to(tmp_path / "gone")
    (logdir / "loop").symlink_to(logdir / "loop")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(RunFolderError) as error:
        train(TrainConfig(logdir=str(logdir), run_name=name, progress_bar=False))
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("logdir", ["a\0b", "x" * 300, "file"])
def test_log_directories_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, logdir: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(RunFolderError):
        train(TrainConfig(logdir=logdir, progress_bar=False))


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A limit on the size of files stands for it: writes beyond it fail as they do on a full disk."""
    import resource

    start(tmp_path, name="whole", iterations=12)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    capsys.readouterr()
    for limit in (9_000, 4_000, 2_000):
        run_dir = tmp_path / f"run{limit}"
        start(tmp_path, iterations=12, name=run_dir.name)
        shutil.rmtree(run_dir)
        with monkeypatch.context() as patch:
            _limit_after(patch, 3, limit, limits)
            try:
                status = start(tmp_path, iterations=12, name=run_dir.name)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert status == 1
        (line,) = capsys.readouterr().err.splitlines()  # and no traceback of the thread that writes the events
        assert line.startswith("optex-rl: error: ")
        assert "cannot be written" in line
        assert not list(run_dir.glob("*.tmp"))
        resume(run_dir)
        assert_same_runs(tmp_path / "whole", run_dir)


def _limit_after(patch: pytest.MonkeyPatch, iterations: int, limit: int, limits: tuple[int, int]) -> None:
    """Let no file grow beyond a limit once so many iterations are done."""
    import resource

    iterate = Trainer.iterate

    def limited(self: Trainer, *with_ceiling: bool) -> dict[str, float]:
        if self.iteration == iterations:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
        return iterate(self, *with_ceiling)

    patch.setattr(Trainer, "iterate", limited)
