"""The check of our copy of rl_zoo3's settings: it reads their spelling, and names what differs."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from optex_rl.common.storage import packaged_table
from optex_rl.compare.rl_zoo3 import TABLE
from scripts import check_rl_zoo3


def as_rl_zoo3_writes(algo: str) -> dict[str, Any]:
    """Our settings of an algorithm by task, in the spelling of rl_zoo3's files."""
    tasks = {}
    for env, algorithms in packaged_table(*TABLE).items():
        options = dict(algorithms.get(algo, {}))
        if "policy_kwargs" in options:
            arguments = ", ".join(f"{name}={value!r}" for name, value in options["policy_kwargs"].items())
            options["policy_kwargs"] = f"dict({arguments})"
        if str(options.get("learning_rate")).startswith("lin_"):
            options["learning_rate"] = f"lin_{float(options['learning_rate'].removeprefix('lin_')):e}"
        tasks[env] = {"policy": "MlpPolicy", **options}
    return tasks


def check(path: Path, algorithms: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> int:
    """Exit status for a wheel at ``path`` with settings by algorithm and task."""
    with zipfile.ZipFile(path, "w") as wheel:
        for algo, tasks in algorithms.items():
            wheel.writestr(f"rl_zoo3/hyperparams/{algo}.yml", yaml.safe_dump(tasks))
    monkeypatch.setattr(sys, "argv", ["check_rl_zoo3", str(path)])
    return check_rl_zoo3.main()


@pytest.mark.parametrize(
    ("option", "value", "line"),
    [
        (None, None, ", 0 differences"),
        ("target_update_interval", 5000, "MountainCar-v0 dqn target_update_interval: 600 here, 5000 there"),
        ("n_envs", 8, "MountainCar-v0 dqn n_envs: None here, 8 there"),
        ("policy", "CnnPolicy", "MountainCar-v0 dqn policy: MlpPolicy here, CnnPolicy there"),
    ],
)
def test_differences_to_a_release_are_named(
    option: str | None,
    value: Any,
    line: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    algorithms = {algo: as_rl_zoo3_writes(algo) for algo in ("a2c", "ppo", "dqn")}
    if option is not None:
        algorithms["dqn"]["MountainCar-v0"][option] = value
    assert check(tmp_path / "rl_zoo3.whl", algorithms, monkeypatch) == (option is not None)
    out = capsys.readouterr().out
    assert line in out
    assert out.count("\n") == (1 if option is None else 2)


def test_a_release_without_an_algorithm_differs_in_all_of_its_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(tmp_path / "rl_zoo3.whl", {algo: as_rl_zoo3_writes(algo) for algo in ("ppo", "dqn")}, monkeypatch) == 1
    *lines, _ = capsys.readouterr().out.splitlines()
    assert "MountainCar-v0 a2c policy: MlpPolicy here, None there" in lines
    assert len(lines) == sum(len(algorithms.get("a2c", {})) + 1 for algorithms in packaged_table(*TABLE).values())
