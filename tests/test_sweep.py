"""optex-rl compare: methods, budgets, runs that are kept, interruptions, reports."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from optex_rl import ConfigError, RunFolderError, TrainConfig
from optex_rl.cli import main
from optex_rl.compare.jobs import FIRST_TUNING_SEED, Job, Run, follow, is_done, run_job, threshold_of
from optex_rl.compare.methods import METHODS, method_options
from optex_rl.compare.report import make_tables
from optex_rl.compare.results import best_setting, gather, gather_trials, read_runs
from optex_rl.compare.statistics import Curve
from optex_rl.compare.sweep import Sweep, expected_seconds, run_sweep

from .helpers import expect_refusal, read_csv

SMALL: dict[str, Any] = {"n_envs": 2, "n_steps": 16, "iterations": 3, "eval_episodes": 2, "eval_freq": 2}
FLAGS = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
TWO_METHODS = ["--methods", "vanilla", "optex:stride=2", "--learning-rates", "1", "2", "--seeds", "2"]
COMMAND = [*TWO_METHODS, "--tuning-seeds", "1", *FLAGS]


def small_sweep(folder: Path, **options: Any) -> Sweep:
    return Sweep(**{"folder": folder, "envs": ["CartPole-v1"], "overrides": SMALL, **options})


def compare(folder: Path, *flags: str) -> int:
    return main(["compare", *COMMAND, "--folder", str(folder), "--no-progress-bar", *flags])


def job(method: str = "vanilla", seed: int = 0, **options: Any) -> Job:
    config = TrainConfig(**{**SMALL, "logdir": None, "progress_bar": False, "method": method, **options})
    return Job.make(method, f"lr {config.learning_rate:g}", config, seed)


def run(setting: str, seed: int, *returns: float, env: str = "CartPole-v1", method: str = "optex") -> Run:
    K = len(returns)
    seconds = tuple(map(float, range(K)))
    curve = Curve(tuple(range(K)), tuple(range(K)), seconds, seconds, returns)
    return Run(env, method, setting, seed, {}, curve, [])


def without_times(folder: Path) -> dict[str, Any]:
    contents = {path.name: json.loads(path.read_text()) for path in folder.glob("*.json")}
    for content in contents.values():
        del content["curve"]["wall_time"], content["curve"]["cpu_time"]
    return contents


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small comparison by one worker, from its command to its end."""
    folder = tmp_path_factory.mktemp("comparison")
    assert compare(folder, "--workers", "1") == 0
    return folder


@pytest.mark.parametrize("method", METHODS)
def test_methods_make_a_configuration(method: str, tmp_path: Path) -> None:
    tuned = TrainConfig.recommended("CartPole-v1", METHODS[method].get("algo", "a2c")).learning_rate
    sweep = small_sweep(tmp_path)
    config, (rates, entropy) = sweep.base("CartPole-v1", method), sweep.axes("CartPole-v1", method)
    assert isinstance(config, TrainConfig)
    assert rates.values == tuple(factor * tuned for factor in (0.5, 1, 2, 4))
    assert (rates.start, entropy.values) == (tuned, (config.ent_coef,))
    assert {name: getattr(config, name) for name in METHODS[method]} == METHODS[method]
    assert {name: getattr(config, name) for name in SMALL} == SMALL


def test_the_base_is_the_tuned_setting_of_each_task(tmp_path: Path) -> None:
    tuned, one = (
        TrainConfig.recommended("Pendulum-v1", "a2c"),
        small_sweep(tmp_path, overrides={}, learning_rates=[0.5]),
    )
    config = one.job("Pendulum-v1", "target", (0.002, 0.0), seed=3).config
    assert isinstance(config, TrainConfig)
    assert [axis.values for axis in one.axes("Pendulum-v1", "target")] == [(tuned.learning_rate / 2,), (0.0,)]
    assert (config.learning_rate, config.seed, config.gamma) == (0.002, 3, tuned.gamma)
    assert (config.iterations, config.method) == (tuned.iterations, "target")


def test_a_method_may_have_options_of_its_own(tmp_path: Path) -> None:
    given, tuned = method_options("optex:stride=2,lengthscale=median,noise=0.5,normalize-obs=yes,max_grad_norm=none")
    options = {"stride": 2, "lengthscale": "median", "noise": 0.5, "normalize_obs": True, "max_grad_norm": None}
    assert given == {"method": "optex", **options}
    assert tuned == {}
    axes = small_sweep(tmp_path, learning_rates=[2]).axes("CartPole-v1", "vanilla:learning_rate=0.1")
    assert axes[0].values == (0.2,)


def test_of_several_numbers_tuning_chooses_one(tmp_path: Path) -> None:
    method = "ppo:n_epochs=20/5/10,clip_range=0.1/0.2"
    rates, entropy, epochs, clip = small_sweep(tmp_path, overrides={}).axes("CartPole-v1", method)
    assert (epochs.values, epochs.start, epochs.whole) == ((5, 10, 20), 10, True)
    assert (clip.values, clip.start, clip.whole) == ((0.1, 0.2), 0.2, False)
    *_, divergence = small_sweep(tmp_path, overrides={}).axes("CartPole-v1", "trpo:target_kl=0.01/0.02/0.05")
    assert (divergence.values, divergence.start) == ((0.01, 0.02, 0.05), 0.02)  # the options have none to start at
    job = small_sweep(tmp_path).job("CartPole-v1", method, (0.001, entropy.start, 5, 0.1), seed=0)
    assert job.setting == "lr 0.001, n_epochs 5, clip_range 0.1"
    assert isinstance(job.config, TrainConfig)
    assert (job.config.n_epochs, job.config.clip_range, rates.whole) == (5, 0.1, False)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("magic", "methods must be among vanilla, .*, got 'magic'"),
        ("optex:stride", "must be NAME:option=value,… with options those of train, got 'stride'"),
        ("optex:wings=2", "got 'wings=2'"),
        ("optex:seed=2", "got 'seed=2'"),
        ("sb3-ppo:stride=2", "with options evaluations, steps, got 'stride=2'"),
        ("optex:stride=two", "stride in method 'optex:stride=two' cannot be 'two'"),
        ("ppo:n_epochs=0/5", "n_epochs in method 'ppo:n_epochs=0/5' cannot be tuned: that takes numbers above 0"),
        ("optex:kernel=rbf/matern52", "kernel in method .* cannot be tuned"),
        ("sb3-ppo:steps=5/10", "steps in method .* cannot be tuned"),
        ("optex:normalize_obs=1", "normalize_obs in method 'optex:normalize_obs=1' must be yes or no, got '1'"),
    ],
)
def test_methods_that_are_none(method: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        method_options(method)


def test_tuning_and_final_seeds_are_disjoint(tmp_path: Path) -> None:
    first = next(small_sweep(tmp_path, seeds=5).batches("CartPole-v1", "optex"))
    assert [job.config.seed for job in first] == [FIRST_TUNING_SEED] * 4 + [FIRST_TUNING_SEED + 1] * 4
    *_, last = small_sweep(tmp_path, seeds=5, learning_rates=[1.0]).batches("CartPole-v1", "optex")
    assert [job.config.seed for job in last] == list(range(5))


def test_one_setting_needs_no_tuning(tmp_path: Path) -> None:
    for method in ("optex", "sb3-a2c"):
        assert len(list(small_sweep(tmp_path, learning_rates=[1.0]).batches("CartPole-v1", method))) == 1


def test_every_run_has_a_file_of_its_own(tmp_path: Path) -> None:
    both = small_sweep(tmp_path, ent_coefs=[0.0, 0.01], methods=[*METHODS, "optex:stride=2"])
    jobs = [
        both.job("CartPole-v1", method, (rate, ent_coef), seed)
        for method in both.methods
        for rate in (0.001, 0.01)
        for ent_coef in (0.0, 0.01)
        for seed in range(3)
    ]
    assert len({job.file_name for job in jobs}) == len(jobs)
    assert not any(set(job.file_name) & set("/\\:* ") for job in jobs)


def test_the_setting_with_the_fewest_iterations_is_chosen() -> None:
    runs = [run("a", 0, 0, 0, 500, 500), run("b", 0, 0, 490, 490, 490), run("c", 0, 500, 500, 500, 500)]
    runs += [run("a", 1, 0, 0, 500, 500), run("b", 1, 0, 490, 490, 490)]
    assert best_setting(runs, 475.0) == "b"  # a ends higher; c stopped being tried
    trials = gather_trials([r._replace(seed=FIRST_TUNING_SEED + r.seed) for r in runs], {})
    assert [(t.setting, t.seeds, round(t.score, 6)) for t in trials] == [("a", 2, 2.0), ("b", 2, 1.0), ("c", 1, 1.0)]
    assert [t.setting for t in trials if t.chosen] == ["b"]


def test_tuning_runs_choose_and_final_runs_are_reported() -> None:
    tuning = [run("a", FIRST_TUNING_SEED, 0, 5, 9), run("b", FIRST_TUNING_SEED, 0, 3, 9)]  # by their areas
    entries = gather([*tuning, run("a", 0, 10, 20, 30), run("b", 0, 10, 90, 90)], {})
    assert [(e.setting, e.chosen, len(e.curves), e.start) for e in entries] == [("a", True, 1, 10), ("b", False, 1, 10)]
    finals_only = gather([run("a", 0, 10, 20, 30), run("b", 0, 10, 90, 90)], {})
    assert [entry.chosen for entry in finals_only] == [False, True]


def test_a_task_without_threshold_needs_one() -> None:
    runs = [run("a", 0, 1, 2, env="Ant-v5")]
    for refused in (lambda: gather(runs, {}), lambda: threshold_of("Ant-v5", {"Other-v0": 1.0})):
        with pytest.raises(ConfigError, match="there is no threshold for Ant-v5: give --threshold"):
            refused()
    assert gather(runs, {"Ant-v5": 5.0})[0].threshold == 5.0


def test_a_tie_has_one_choice_in_both_tables() -> None:
    """It is that of the lower rate, although "lr 0.01" comes before "lr 0.002" among the names of files."""
    rates = {"lr 0.01": 0.01, "lr 0.002": 0.002}
    tuning = [
        run(name, FIRST_TUNING_SEED, 10, 90, 90)._replace(options={"learning_rate": rate})
        for name, rate in rates.items()
    ]
    finals = [one._replace(seed=0) for one in tuning]
    for order in (tuning, tuning[::-1]):
        trials, entries = gather_trials(order, {}), gather([*order, *finals], {})
        assert [trial.setting for trial in trials if trial.chosen] == ["lr 0.002"]
        assert [entry.setting for entry in entries if entry.chosen] == ["lr 0.002"]


def test_a_run_stops_once_it_holds_its_threshold(monkeypatch: pytest.MonkeyPatch) -> None:
    """80 after the second iteration alone would not do; with the 120 after the third it does, and the rest is held."""
    returns = iter([0.0, 10.0, 80.0, 120.0])
    monkeypatch.setattr("optex_rl.compare.jobs.Trainer.evaluate", lambda self: next(returns))
    curve = follow(job(iterations=7, eval_freq=1).config, until=100.0)
    assert curve.iterations == tuple(range(8))
    assert curve.returns == (0.0, 10.0, 80.0, 120.0, 120.0, 120.0, 120.0, 120.0)
    assert curve.env_steps[3:] == (3 * 32,) * 5
    assert len(set(curve.wall_time[3:])) == len(set(curve.cpu_time[3:])) == 1


def test_a_run_that_stops_is_another_run(tmp_path: Path) -> None:
    run_job(job(), tmp_path)
    with pytest.raises(RunFolderError, match=r"was made with until None, and 100\.0 is asked for"):
        is_done(job()._replace(until=100.0), tmp_path)


def test_what_is_left_takes_as_long_as_its_like() -> None:
    """Known: 10 s of its own kind; 4 s of the method on another task; 7 s, the mean of all, where neither is."""
    taken = {("A", "ppo"): [9.0, 11.0], ("B", "optex"): [4.0, 4.0]}
    assert expected_seconds({("A", "ppo"): 3}, taken) == 30.0
    assert expected_seconds({("A", "optex"): 2}, taken) == 8.0
    assert expected_seconds({("A", "target"): 1, ("A", "ppo"): 0}, taken) == 7.0
    assert expected_seconds({("A", "target"): 1}, {}) == 0.0


def test_a_curve_has_both_ends_and_training_time_only() -> None:
    curve = follow(job(method="target").config)
    assert curve.iterations == (0, 2, 3)
    assert curve.env_steps == (0, 2 * 4 * 32, 3 * 4 * 32)
    assert curve.wall_time[0] == 0.0
    assert list(curve.wall_time) == sorted(set(curve.wall_time))


def test_the_clock_stands_still_during_evaluations(monkeypatch: pytest.MonkeyPatch) -> None:
    from optex_rl.training import Trainer

    def evaluate(trainer: Trainer) -> float:
        time.sleep(0.2)
        return 1.0

    monkeypatch.setattr(Trainer, "evaluate", evaluate)
    monkeypatch.setattr(Trainer, "iterate", lambda trainer: setattr(trainer, "iteration", trainer.iteration + 1))
    assert follow(job().config).wall_time[-1] < 0.1


def test_a_run_that_breaks_down_keeps_its_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from optex_rl import NonFiniteError
    from optex_rl.training import Trainer

    iterate = Trainer.iterate

    def breaks_down(trainer: Trainer) -> dict[str, float]:
        if trainer.iteration == 3:
            raise NonFiniteError("all is lost")
        return iterate(trainer)

    monkeypatch.setattr(Trainer, "iterate", breaks_down)
    broken = job(iterations=7)
    run_job(broken, tmp_path)
    (saved,) = read_runs(tmp_path)
    assert saved.curve.iterations == (0, 2, 4, 6, 7)
    assert len(set(saved.curve.returns[2:])) == 1
    assert saved.curve.env_steps[2:] == (96, 96, 96)
    assert saved.warnings == ["stopped in iteration 4: all is lost"]


def test_a_file_tells_what_it_is(tmp_path: Path) -> None:
    done = job()
    assert not is_done(done, tmp_path)
    run_job(done, tmp_path)
    assert is_done(done, tmp_path)
    assert not is_done(job(seed=1), tmp_path)
    (saved,) = read_runs(tmp_path)
    assert (saved.env, saved.method, saved.setting, saved.seed) == ("CartPole-v1", "vanilla", "lr 0.003", 0)
    assert saved.curve.returns == follow(done.config).returns
    with pytest.raises(RunFolderError, match=r"was made with n_steps 16, and 32 is asked for"):
        is_done(job(n_steps=32), tmp_path)
    with pytest.raises(RunFolderError, match=r"was made with iterations 3, and 4 is asked for"):
        is_done(job(iterations=4), tmp_path)


@pytest.mark.parametrize("damage", ["", "[]", '{"env": 1}', '{"curve": {"iterations": [0]}}'])
def test_damaged_files_are_refused(tmp_path: Path, damage: str) -> None:
    (tmp_path / "some.json").write_text(damage)
    with pytest.raises(RunFolderError, match="cannot be read as a run of a comparison"):
        read_runs(tmp_path)


def test_what_a_comparison_leaves(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = read_runs(finished)
    assert len([run for run in runs if not run.tuning]) == 2 * 2  # methods × seeds
    trials = [row for row in read_csv(finished / "tuning.csv") if row["chosen"] == "True"]
    assert [trial["method"] for trial in trials] == ["vanilla", "optex:stride=2"]
    assert {trial["setting"] for trial in trials} == {run.setting for run in runs if not run.tuning}
    rows = read_csv(finished / "curves.csv")
    assert len(rows) == len(runs) * 3
    first = runs[0]
    assert [float(row["return"]) for row in rows[:3]] == list(first.curve.returns)
    assert [(row["method"], row["runs"], row["chosen"]) for row in read_csv(finished / "summary.csv")] == [
        ("vanilla", "2", "1"),
        ("optex:stride=2", "2", "1"),
    ]
    table = (finished / "table.md").read_text()
    assert table.count("\n| vanilla | lr ") == table.count("\n| optex:stride=2 | lr ") == 1
    assert "first evaluation whose mean with the next one is at least the threshold" in table
    for plot in ("CartPole-v1.png", "profiles.png"):
        assert (finished / plot).read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()
    assert main(["compare", "--report-only", "--folder", str(finished)]) == 0
    assert table in capsys.readouterr().out


def test_tensorboard_overlays_the_methods(finished: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = finished / "tensorboard" / "CartPole-v1"
    assert sorted(path.name for path in folder.iterdir()) == ["optex_stride=2", "vanilla"]
    events = EventAccumulator(str(folder / "vanilla"))
    events.Reload()
    finals = [r for r in read_runs(finished) if r.method == "vanilla" and not r.tuning]
    means = [sum(values) / 2 for values in zip(*(r.curve.returns for r in finals), strict=True)]
    points = events.Scalars("comparison/return")
    assert [point.step for point in points] == [0, 2, 3]
    assert [point.value for point in points] == pytest.approx(means)


def test_tables_of_several_tasks(tmp_path: Path) -> None:
    """The table over all tasks has the methods that ran on all of them, at their chosen settings, normalised."""
    runs = [run("a", seed, 0, 475, env="CartPole-v1", method="optex") for seed in range(4)]
    runs += [run("a", seed, -500, -300, env="Acrobot-v1", method="optex") for seed in range(4)]
    runs += [run("b", seed, -500, -500, env="Acrobot-v1", method="optex") for seed in range(4)]
    runs += [run("a", 0, -500, -100, env="Acrobot-v1", method="vanilla")]
    table = make_tables(gather(runs, {}))
    assert table.index("**CartPole-v1, threshold 475") < table.index("**Acrobot-v1, threshold -100")
    overall = table[table.index("**All tasks**") :]
    # CartPole goes all the way, 0 to 1; Acrobot half of it; the mean over the curve is half of the end.
    assert "| optex | 0.38 (0.38 … 0.38) | 0.75 (0.75 … 0.75) |" in overall
    assert "vanilla" not in overall
    assert "| vanilla | a * | 1 | 0 | 1.0 | 1.0 | 1/1 | -300 (– … –) | -100 (– … –) | 100 |" in table
    assert "| optex | a * | – | – | – | – | 0/4 | -400 (-400 … -400) | -300 (-300 … -300) | 50 |" in table


def test_thresholds_are_given_task_by_task(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copied = shutil.copytree(finished, tmp_path / "copy")
    assert main(["compare", "--report-only", "--folder", str(copied), "--threshold", "1"]) == 0
    assert "**CartPole-v1, threshold 1, 3 iterations" in capsys.readouterr().out


def test_two_workers_give_what_one_gives(finished: Path, tmp_path: Path) -> None:
    assert compare(tmp_path, "--workers", "2") == 0
    assert without_times(tmp_path) == without_times(finished)


def test_what_is_done_is_not_done_again(finished: Path, tmp_path: Path) -> None:
    """Two of the files are removed; a second start makes these two only, and the same."""
    for path in finished.glob("*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    gone = sorted(tmp_path.glob("*optex*"))[1:3]
    for path in gone:
        path.unlink()
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")}
    assert compare(tmp_path) == 0
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in before} == before
    assert without_times(tmp_path) == without_times(finished)


def started(folder: Path, done: int = 2) -> subprocess.Popen[str]:
    """A process in a group of its own with hundreds of runs before it, once its folder is there and some are done."""
    flags = ["--methods", "vanilla", "--learning-rates", "1", "--seeds", "500", *FLAGS, "--workers", "1"]
    code = "import sys; from optex_rl.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "compare", *flags, "--folder", str(folder)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, start_new_session=True, **pipes)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (folder.exists() and len(list(folder.glob("*.json"))) >= done):
        time.sleep(0.05)
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_signal_keeps_what_is_finished(tmp_path: Path, number: signal.Signals) -> None:
    with started(tmp_path) as process:
        process.send_signal(number)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 128 + number, err
    assert "Traceback" not in err
    assert f"optex-rl: {number.name}: stopping; another one ends it at once\n" in err
    assert "stopped: the same command does what is missing" in out
    done = len(read_runs(tmp_path))
    assert 2 <= done < 500
    assert f"| 0/{done} |" in out  # nothing is solved in three iterations
    time.sleep(1.0)
    assert len(read_runs(tmp_path)) == done  # no worker goes on


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
@pytest.mark.parametrize("runs", [2, pytest.param(0, marks=pytest.mark.slow)])
def test_a_signal_to_the_process_group_is_a_stop(tmp_path: Path, number: signal.Signals, runs: int) -> None:
    """The workers die of it as well, some while they still import; GNU timeout signals the group and its child."""
    folder = tmp_path / "comparison"
    with started(folder, runs) as process:
        time.sleep(0.5 if runs == 0 else 0.0)
        process.send_signal(number)
        os.killpg(process.pid, number)
        out, err = process.communicate(timeout=120)
    assert process.returncode == 128 + number, err
    assert "Traceback" not in err
    assert "error" not in err
    assert ("stopped: the same command does what is missing" if runs else "stopped before a run was finished") in out


def test_a_log_that_is_no_terminal_has_no_line_for_each_look_at_the_workers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The workers take longer to begin than it takes to look at them, twice a second."""
    options = {"methods": ["vanilla"], "learning_rates": [1.0], "seeds": 2, "workers": 1}
    monkeypatch.setattr("optex_rl.runner.log.LINE_SECONDS", 1e6)
    run_sweep(small_sweep(tmp_path / "short", **options))
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("optex_rl.runner.log.LINE_SECONDS", 0.0)
    run_sweep(small_sweep(tmp_path / "long", **options))
    lines = capsys.readouterr().err.splitlines()
    assert 2 <= len(lines) <= 4  # one for the beginning, each run and the end
    assert ", ends about " in lines[-1]


def test_a_stop_waits_for_the_thread_of_the_pool(tmp_path: Path) -> None:
    """A thread left behind closes the pool's pipe while the interpreter, at its end, writes to it."""

    def interrupt_after_a_run() -> None:
        while not list(tmp_path.glob("*.json")):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    interrupt = threading.Thread(target=interrupt_after_a_run, daemon=True)
    interrupt.start()
    methods = {"methods": ["vanilla"], "learning_rates": [1.0], "seeds": 500, "workers": 1, "progress_bar": False}
    assert run_sweep(small_sweep(tmp_path, **methods)).requested
    interrupt.join()
    assert not [thread for thread in threading.enumerate() if "concurrent.futures" in type(thread).__module__]


def test_a_worker_that_dies_alone_is_an_error(tmp_path: Path) -> None:
    with started(tmp_path, done=1) as process:
        for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
            if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text():
                os.kill(int(child), signal.SIGKILL)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "optex-rl: error: a worker process died" in err


@pytest.mark.slow
def test_workers_end_with_a_killed_parent(tmp_path: Path) -> None:
    """Their parent is gone; each ends by itself, and finished files are whole."""
    with started(tmp_path) as process:
        process.kill()
    time.sleep(2.0)
    done = len(read_runs(tmp_path))
    time.sleep(2.0)
    assert 2 <= len(read_runs(tmp_path)) == done < 500


def test_other_options_need_another_folder(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare(finished, "--gamma", "0.5") != 0
    err = capsys.readouterr().err
    assert err.startswith("optex-rl: error: ")
    assert "was made with gamma 0.99, and 0.5 is asked for" in err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--seeds", "0"], "seeds must be a whole number between 1 and 10000, got 0"),
        (["--learning-rates", "0"], "learning_rates must be factors above 0"),
        (["--methods", "magic"], "methods must be among"),
        (["--methods", "optex", "optex"], "methods must be given, each once, got optex, optex"),
        (["--methods", "optex:" + ",".join(["stride=2"] * 40)], "more options than fit into the name of a file"),
        (["--env", "NoSuch-v0"], "NoSuch"),
        (["--eval-freq", "0"], "eval_freq must be a whole number of at least 1, got 0"),
        (["--threshold", "1", "2"], "--threshold needs one number for each of the 1 tasks, got 2"),
        (["--gamma", "7"], "gamma"),
        (["--optimizer", "sgd"], "learning_rate must be given with the optimizer 'sgd'"),
        (["--methods", "optex:optimizer=sgd"], "learning_rate must be given with the optimizer 'sgd'"),
        (["--report-only"], "holds no finished run"),
    ],
)
def test_bad_input_is_one_sentence(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = 1 if "--report-only" in flags else 2
    expect_refusal(["compare", *flags, "--folder", str(tmp_path / "comparison")], message, capsys, status)
