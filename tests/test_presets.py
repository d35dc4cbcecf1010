"""Presets: every entry can be used, what is given wins, what is not known falls back to the defaults."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from optex_rl import ConfigError, TrainConfig
from optex_rl.agents import AGENTS, MlpPolicy
from optex_rl.cli import main
from optex_rl.training import Trainer
from optex_rl.training.config import load_config
from optex_rl.training.presets import tuned_options

CLASSIC = ["CartPole-v1", "Acrobot-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Pendulum-v1"]
MUJOCO = ["InvertedPendulum-v5", "HalfCheetah-v5", "Hopper-v5", "Walker2d-v5"]
TASKS = [*CLASSIC, "LunarLander-v3", "Catch-v0", *MUJOCO]
NOT_OF_A_TASK = {"env", "algo", "seed", "device", "logdir", "run_name", "progress_bar", "eval_freq", "eval_episodes"}


def test_every_task_has_presets_for_all_agents() -> None:
    table = yaml.safe_load(resources.files("optex_rl.training").joinpath("presets.yml").read_text(encoding="utf-8"))
    assert {env: sorted(by_algo) for env, by_algo in table.items()} == {env: sorted(AGENTS) for env in TASKS}


@pytest.mark.parametrize("algo", AGENTS)
@pytest.mark.parametrize("env", TASKS)
def test_every_entry_is_valid(env: str, algo: str) -> None:
    config = TrainConfig.recommended(env, algo)
    assert (config.env, config.algo) == (env, algo)
    tuned = tuned_options(env, algo)
    assert not NOT_OF_A_TASK & tuned.keys()
    assert {name: getattr(config, name) for name in tuned} == tuned
    assert sum(p.numel() for p in Trainer(config).policy.parameters()) > 0


def test_overrides_win() -> None:
    tuned = tuned_options("MountainCar-v0", "a2c")
    config = TrainConfig.recommended("MountainCar-v0", gamma=0.5, normalize_obs=False, seed=7)
    assert (config.gamma, config.normalize_obs, config.seed) == (0.5, False, 7)
    assert config.noise_repeat == tuned["noise_repeat"] > 1


def test_both_names_of_a_native_task_mean_the_same() -> None:
    assert tuned_options("optex_rl/Pendulum-v1", "a2c") == tuned_options("Pendulum-v1", "a2c") != {}


def test_unknown_tasks_have_the_defaults() -> None:
    assert TrainConfig.recommended("FrozenLake-v1") == TrainConfig(env="FrozenLake-v1")
    assert tuned_options("CartPole-v1", "dreamer") == {}


def test_the_table_cannot_be_changed_through_what_it_gives() -> None:
    tuned_options("CartPole-v1", "a2c")["iterations"] = -1
    assert tuned_options("CartPole-v1", "a2c")["iterations"] > 0


def test_unknown_options_and_bad_values_are_refused() -> None:
    with pytest.raises(ConfigError, match="normalize_obs must be bool, got 1"):
        TrainConfig.recommended("Pendulum-v1", normalize_obs=1)
    with pytest.raises(ConfigError, match="TrainConfig has no option momentum"):
        TrainConfig.recommended("CartPole-v1", momentum=0.9)


def test_the_command_line_takes_the_presets_of_the_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Flags win even where they say what the default is; the run folder holds what was resolved."""
    flags = ["--env", "Pendulum-v1", "--gamma", "0.99", "--n-envs", "4", "--n-steps", "32", "--iterations", "2"]
    flags += ["--no-progress-bar", "--eval-episodes", "2", "--logdir", str(tmp_path), "--run-name", "run"]
    assert main(["train", *flags]) == 0
    out = capsys.readouterr().out
    assert "presets: " in out
    assert "normalize_obs=True" in out
    assert "gamma" not in out
    small: dict[str, Any] = {"gamma": 0.99, "n_envs": 4, "n_steps": 32, "iterations": 2, "eval_episodes": 2}
    where: dict[str, Any] = {"progress_bar": False, "logdir": str(tmp_path), "run_name": "run"}
    assert load_config(tmp_path / "run" / "config.yml") == TrainConfig.recommended("Pendulum-v1", **small, **where)


def test_the_command_line_says_that_there_are_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--env", "FrozenLake-v1", "--n-envs", "2", "--n-steps", "8", "--iterations", "1", "--eval-episodes", "2"]
    assert main(["train", *flags, "--no-progress-bar", "--logdir", str(tmp_path), "--eval-freq", "0"]) == 0
    assert "no presets for a2c on FrozenLake-v1: defaults" in capsys.readouterr().out


def test_log_std_init_reaches_the_policy() -> None:
    config = TrainConfig(env="Pendulum-v1", log_std_init=-1.5)
    policy = Trainer(config).policy
    assert isinstance(policy, MlpPolicy)
    distribution = policy.actor(torch.zeros(1, 3))
    assert distribution[0, 1].item() == -1.5


@pytest.mark.parametrize(
    ("parallelism", "given", "expected"), [(2, None, 20), (4, None, 20), (16, None, 48), (4, 7, 7)]
)
def test_the_history_grows_with_the_points(parallelism: int, given: int | None, expected: int) -> None:
    config = TrainConfig(parallelism=parallelism, history_size=given)
    assert config.optex_options().history_size == expected
    assert Trainer(config).optimizer.options.history_size == expected
