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
    with zipfile.ZipFile(tmp_path / "rl_zoo3.whl", "w") as wheel:
        for algo in ("a2c", "ppo", "dqn"):
            tasks = as_rl_zoo3_writes(algo)
            if option is not None and algo == "dqn":
                tasks["MountainCar-v0"][option] = value
            wheel.writestr(f"rl_zoo3/hyperparams/{algo}.yml", yaml.safe_dump(tasks))
    monkeypatch.setattr(sys, "argv", ["check_rl_zoo3", str(tmp_path / "rl_zoo3.whl")])
    assert check_rl_zoo3.main() == (option is not None)
    out = capsys.readouterr().out
    assert line in out
    assert out.count("\n") == (1 if option is None else 2)
