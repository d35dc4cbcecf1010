"""The benchmark of DQN: what an iteration of each method is, what is noted, and that an interrupted one goes on."""

from __future__ import annotations

import argparse
import dataclasses
import math
import re
import sys
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch

from optex_rl import ConfigError, NonFiniteError
from optex_rl.compare.jobs import FIRST_TUNING_SEED
from scripts import benchmark_figure3, dqn_runs
from scripts.benchmark_figure3 import METHODS, Cell, finished, first, measure, table_row
from scripts.dqn_runs import Follow, Job, Row, make_model, train

JOB = Job("LunarLander-v3", "vanilla", 6.3e-4, 0, parallelism=2, steps=80, every=16)
DOCS = Path(__file__).parents[1] / "docs"
PAGE = (DOCS / "paper.md").read_text(encoding="utf-8").split("### rl_zoo3's settings")[1].split("\n### ")[0]
KEPT = {"CartPole-v1", "Acrobot-v1", "LunarLander-v3", "60000"}  # of MountainCar's rows only those of 60,000 steps
COMMANDS = [flags for flags in map(str.split, re.findall(r"benchmark_figure3 (--env .*)", PAGE)) if KEPT & set(flags)]


@pytest.mark.parametrize("method", METHODS)
def test_all_methods_make_the_same_iterations_for_each_step(method: str) -> None:
    """Half of rl_zoo3's four after every 4 steps, as N is 2; those after the step that is noted come too late."""
    kept = train(dataclasses.replace(JOB, method=method))
    assert [row[:2] for row in kept["rows"]] == [(2 * (n // 4 - 1), n) for n in range(16, 81, 16)]
    assert kept["fault"] == ""


@pytest.mark.parametrize("method", METHODS)
def test_minibatches_of_an_iteration(method: str) -> None:
    model = make_model(dataclasses.replace(JOB, method=method))
    buffer: Any = model.replay_buffer
    sizes: list[int] = []
    sample = buffer.sample

    def sampled(size: int, env: Any = None) -> Any:
        sizes.append(size)
        return sample(size, env)

    buffer.sample = sampled
    model.learn(4)
    assert sum(sizes) == 2 * 128 * (1 if method in ("vanilla", "extrapolate") else 2)
    assert len(sizes) == (4 if method == "target" else 2)


def test_the_target_is_the_algorithm_of_rl_zoo3() -> None:
    """Its gradient steps, which N must divide; a setting of -1 is one for each environment step."""
    for env, steps in (("CartPole-v1", 128), ("MountainCar-v0", 8), ("LunarLander-v3", 4)):
        assert make_model(dataclasses.replace(JOB, env=env, method="target")).gradient_steps == steps
    with pytest.raises(ConfigError, match="--parallelism must divide the 4 gradient steps of LunarLander-v3, got 3"):
        make_model(dataclasses.replace(JOB, parallelism=3))


def test_means_of_the_returns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all episodes so far, and of the last hundred: more than two hundred end within 5,000 steps."""
    job = dataclasses.replace(JOB, env="CartPole-v1", steps=5_000, every=2_500)
    follow = Follow(job)
    lengths: list[tuple[int, float]] = []
    model = make_model(job)
    model.learning_starts = 10_000
    env: Any = model.env
    step = env.step

    def stepped(actions: Any) -> Any:
        result = step(actions)
        lengths.extend((model.num_timesteps + 1, info["episode"]["r"]) for info in result[3] if "episode" in info)
        return result

    monkeypatch.setattr(env, "step", stepped)
    model.learn(5_000, follow)
    for row in follow.rows:
        returns = [r for n, r in lengths if n <= row.env_steps]
        assert len(returns) > 100
        assert row.cumulative == pytest.approx(sum(returns) / len(returns))
        assert row.last == pytest.approx(sum(returns[-100:]) / 100)


def test_a_run_that_a_fault_stops_keeps_its_last_means(monkeypatch: pytest.MonkeyPatch) -> None:
    def make_failing(job: Job) -> Any:
        model: Any = make_model(job)
        learner, calls = model.train, []

        def failing(**sizes: int) -> None:
            calls.append(sizes)
            if len(calls) == 9:
                raise NonFiniteError("the gradient is NaN")
            learner(**sizes)

        model.train = failing
        return model

    monkeypatch.setattr(dqn_runs, "make_model", make_failing)
    kept = train(JOB)
    assert kept["fault"] == "the gradient is NaN"
    rows = kept["rows"]
    assert [row.env_steps for row in rows] == [16, 32, 48, 64, 80]
    assert [row.iterations for row in rows] == [6, 14, 21, 28, 35]  # 14 in 32 steps go on at their pace
    assert len({(row.seconds, row.cumulative, row.last) for row in rows[1:]}) == 1


def rows(*cumulative: float) -> list[Row]:
    return [Row(10 * i, 100 * i, float(i), value, 2 * value) for i, value in enumerate(cumulative, 1)]


def test_a_row_of_the_table() -> None:
    cells = {
        "vanilla": Cell(1e-3, [rows(10, 20, 30), rows(10, 30, 40)]),
        "target": Cell(1e-4, [rows(20, 60, 70), rows(20, 60, 80)]),
        "last": Cell(3e-4, [rows(20, 30, 50), rows(20, 50, 60)]),
    }
    columns = [column.strip() for column in table_row("Task", "last", cells).strip("|").split("|")]
    assert columns[:3] == ["Task", "OptEx, last", "0.0003"]
    assert columns[3].startswith("55.0 (50.0 … 60.0)")
    # 55 of 35 … 75; both seeds are there after 20 iterations and 2 seconds; 100 ms an iteration.
    assert columns[5:] == ["0.50", "20", "2", "2/2", "100.0"]
    assert table_row("Task", "vanilla", cells).split("|")[6:9] == [" 0.00 ", " 30 ", " 3 "]
    assert first(rows(math.nan, 1, 2), 3) is None
    worse = cells | {"target": Cell(1e-4, [rows(5, 6, 7), rows(5, 6, 8)])}
    for method in worse:  # no way to a target that ends below vanilla
        assert table_row("Task", method, worse).split("|")[6] == " – "


@pytest.mark.filterwarnings("ignore:The BCa confidence interval:scipy.stats.DegenerateDataWarning")
def test_a_row_of_runs_that_end_before_the_first_iteration() -> None:
    runs = [[Row(0, 100, 1.0, math.nan, math.nan)]] * 2
    columns = table_row("Task", "vanilla", {"vanilla": Cell(1e-3, runs)}).strip("| ").split(" | ")
    assert columns == ["Task", "vanilla", "0.001", "– (– … –)", "– (– … –)", "–", "–", "–", "0/2", "–"]


def test_each_method_has_the_best_rate_of_its_own_search(capsys: pytest.CaptureFixture[str]) -> None:
    tried = set[tuple[str, float, int]]()

    def run_all(jobs: Iterable[Job]) -> Iterable[list[Row]]:
        for job in jobs:
            tried.add((job.method, job.rate, job.seed))
            yield rows(-abs(math.log(job.rate / best[job.method])))

    best = {"vanilla": 0.0023, "target": 0.0023 * 3**-1}
    flags: dict[str, Any] = {"env": ["CartPole-v1"], "methods": list(best), "tuning_seeds": 2, "seeds": 3}
    flags |= {"rate": None, "one_rate": False, "powers": [-1, 1], "parallelism": 4, "steps": None, "every": 1000}
    cells = measure(run_all, argparse.Namespace(**flags))["CartPole-v1"]
    assert {method: cell.rate for method, cell in cells.items()} == best
    assert {len(cell.runs) for cell in cells.values()} == {3}
    assert ("target", 0.0023 * 3**-2, FIRST_TUNING_SEED) in tried  # beyond the best
    assert capsys.readouterr().out.count("| CartPole-v1 | vanilla | ") == 3
    tried.clear()
    cells = measure(run_all, argparse.Namespace(**flags | {"powers": [-3, 0]}))["CartPole-v1"]
    assert {method: cell.rate for method, cell in cells.items()} == best
    for method, highest in (("vanilla", 1), ("target", 0)):  # one more where the best is the last
        rates = {rate for name, rate, _ in tried if name == method}
        assert rates == {0.0023 * 3.0**power for power in range(-3, highest + 1)}


class InOneProcess:
    """In place of the processes, so that nothing is imported anew, and what is patched stays so."""

    def __init__(self, *_: Any, **__: Any) -> None:
        self.map = map

    def __enter__(self) -> InOneProcess:
        return self

    def __exit__(self, *_: Any) -> None: ...


def test_an_interrupted_benchmark_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(benchmark_figure3, "ProcessPoolExecutor", InOneProcess)
    folder, plot = tmp_path / "runs", tmp_path / "figure.png"
    flags = ["--env", "LunarLander-v3", "--methods", "vanilla", "refine", "--tuning-seeds", "1", "--every", "128"]
    flags += ["--steps", "128", "--folder", str(folder), "--output", str(plot)]

    def run(*more: str) -> int:
        monkeypatch.setattr(sys, "argv", ["benchmark_figure3", *flags, *more])
        return benchmark_figure3.main()

    assert run("--seeds", "1") == 0
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert run("--seeds", "2") == 0
    after = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert len(after) == len(before) + 2
    assert all(after[path] == time for path, time in before.items())
    out = capsys.readouterr().out
    assert out.count("| LunarLander-v3 | OptEx, refine | 0.00063 | ") >= 2  # among the rates of both searches
    lines = [line for line in out.splitlines() if line.startswith("| LunarLander-v3 | OptEx, refine | ")]
    assert sum(" … " in line for line in lines) == 2
    assert plot.exists()
    assert run("--seeds", "2", "--one-rate") == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| LunarLander-v3 |")]
    assert len(rows) == 2  # the table, and no search before it
    assert all("| 0.00063 |" in row for row in rows)
    assert run("--seeds", "1", "--rate", "0.00189") == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| LunarLander-v3 |")]
    assert len(rows) == 2
    assert all("| 0.0019 |" in row for row in rows)
    assert run("--seeds", "2", "--parallelism", "2") == 1
    assert "is of a run with other options" in capsys.readouterr().err
    assert torch.get_num_threads() == 1


def test_a_run_of_fewer_steps_is_the_beginning_of_one_of_more(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short, long = (dataclasses.replace(JOB, every=150, steps=steps) for steps in (350, 600))

    def without_seconds(rows: list[Row]) -> list[Row]:
        return [row._replace(seconds=0.0) for row in rows]

    first_rows = finished(tmp_path, short)
    all_rows = finished(tmp_path, long)  # in the place of the short one, which goes no further
    assert [row.env_steps for row in all_rows] == [150, 300, 450, 600]
    assert not any(math.isnan(row.cumulative) for row in all_rows)  # NaN would not equal itself
    assert without_seconds(finished(tmp_path, short)) == without_seconds(first_rows) == without_seconds(all_rows[:2])
    assert finished(tmp_path, long) == all_rows
    assert capsys.readouterr().err.count(short.file_name) == 2  # the runs that were made
    rounded = dataclasses.replace(long, rate=math.nextafter(long.rate, 1))
    assert finished(tmp_path, rounded) == all_rows
    with pytest.raises(ConfigError, match="is of a run with other options"):
        finished(tmp_path, dataclasses.replace(long, rate=long.rate * 1.0001))  # the same file name


@pytest.fixture(scope="module")
def kept_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the runs that docs/paper.md publishes."""
    folder = tmp_path_factory.mktemp("kept")
    with tarfile.open(DOCS / "figures" / "figure3-runs.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    return folder / "figure3"


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: "_".join(command[1:4]))
def test_published_rows_are_those_of_the_kept_runs(
    command: list[str], kept_runs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each command of the page prints rows of its tables, and means of its searches, without training anything."""

    def refuse(job: Job) -> None:
        raise AssertionError(f"{job.file_name} is not in the archive")

    monkeypatch.setattr(benchmark_figure3, "ProcessPoolExecutor", InOneProcess)
    monkeypatch.setattr(benchmark_figure3, "train", refuse)
    flags = command[: command.index("--output")] if "--output" in command else command
    monkeypatch.setattr(sys, "argv", ["benchmark_figure3", *flags, "--folder", str(kept_runs)])
    assert benchmark_figure3.main() == 0
    published = [line.replace("−", "-").replace("**", "") for line in PAGE.splitlines()]
    search, table = [part.splitlines()[2:] for part in capsys.readouterr().out.split("\n\n")[1:]]
    assert table
    assert [row for row in table if row not in published] == []
    for _, method, _, mean in (row.strip("| ").split(" | ") for row in search):
        assert any(line.startswith(f"| {method} |") and f" {mean} |" in line for line in published)


def test_powers_ascend(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark_figure3", "--powers", "1", "-1"])
    with pytest.raises(SystemExit, match="2"):
        benchmark_figure3.main()
    assert "--powers must be the lower one first, got 1 -1" in capsys.readouterr().err


@pytest.mark.parametrize("rate", ["0", "-1", "inf", "nan", "fast"])
def test_a_rate_is_a_positive_number(
    rate: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark_figure3", f"--rate={rate}"])
    with pytest.raises(SystemExit, match="2"):
        benchmark_figure3.main()
    assert f"argument --rate: must be a positive number, got '{rate}'" in capsys.readouterr().err
