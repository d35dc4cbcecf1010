"""The examples of the page on stable-baselines3, and the scripts, run as they stand but for their length."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
from stable_baselines3 import A2C
from stable_baselines3.common.env_util import make_vec_env

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "stable-baselines3.md"
SHORTER = {"100_000": "1_000", "1_280": "50", "60 * 128 * 32": "2 * 128 * 32", "(50_000)": "(1_040)"}


def test_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) == 5
    names: dict[str, Any] = {}
    for block in blocks:
        for long, short in SHORTER.items():
            block = block.replace(long, short)
        exec(block, names)
    assert len(list(tmp_path.glob("checkpoints/*.zip"))) == 2
    assert {path.name for path in tmp_path.glob("cartpole*")} == {
        "cartpole.zip",
        "cartpole-dqn.zip",
        "cartpole-dqn-buffer.pkl",
    }
    assert "Eval num_timesteps=400" in capsys.readouterr().out
    # rl_zoo3's configuration: it makes the environments, the rest are the algorithm's arguments.
    options = names["hyperparams"]["CartPole-v1"]
    envs = make_vec_env("CartPole-v1", options.pop("n_envs"))
    options.pop("n_timesteps")
    A2C(env=envs, **options).learn(1_024)


@pytest.mark.parametrize(
    ("script", "arguments", "said"),
    [
        ("sb3_drop_in.py", ["--total-timesteps", "2048"], "the history went along"),
        ("sb3_parallel.py", ["--rollouts", "2"], "return of the iterate"),
        ("benchmark_sb3_ppo.py", ["--batch-sizes", "8", "--parallelism", "2", "--repeats", "2"], "| 8 | 2 |"),
        ("benchmark_sb3_off_policy.py", ["--steps", "5", "--warm-up", "60"], "| TD3 | "),
        ("benchmark_sb3.py", ["--seeds", "1", "--rollouts", "2", "--n-steps", "8"], "| OptExA2C, rate × 4 |"),
    ],
)
def test_scripts_run(
    script: str,
    arguments: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    runpy.run_path(str(ROOT / "scripts" / script), run_name="__main__")
    assert said in capsys.readouterr().out
