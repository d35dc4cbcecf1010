"""The training loop: exact identities, learning in seconds, interruption, numerical faults."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from gymnasium.spaces import Box, Discrete
from torch.nn.utils import parameters_to_vector

from optex_rl import TrainConfig, train
from optex_rl.common.storage import load_checkpoint
from optex_rl.runner.log import COLUMNS
from optex_rl.training import Trainer
from optex_rl.training.config import load_config

from .helpers import read_csv, same
from .own_code import Net


def config(**options: Any) -> TrainConfig:
    """A run of seconds that writes nothing."""
    values: dict[str, Any] = {
        "n_envs": 4,
        "n_steps": 32,
        "iterations": 4,
        "net_arch": (16, 16),
        "progress_bar": False,
        "eval_freq": 0,
        "logdir": None,
    }
    return TrainConfig(**values | options)


def without_times(rows: list[dict[str, float]]) -> list[dict[str, float]]:
    """Metrics without what differs from run to run, and without NaNs, which differ from themselves."""
    timed = ("time/wall_time", "time/fps")
    return [{k: v for k, v in row.items() if k not in timed and not math.isnan(v)} for row in rows]


def test_seeds_matter() -> None:
    a, b = (train(config(seed=seed)) for seed in (0, 1))
    assert without_times(a.rows) != without_times(b.rows)


@pytest.mark.parametrize(
    ("method", "steps"),
    [("vanilla", 4 * 32), ("data-parallel", 3 * 4 * 32), ("target", 3 * 4 * 32), ("optex", 3 * 4 * 32)],
)
def test_samples_per_iteration(method: str, steps: int) -> None:
    result = train(config(method=method, parallelism=3))
    assert [row["time/env_steps"] for row in result.rows] == [steps * i for i in (1, 2, 3, 4)]


def test_vanilla_is_the_base_optimizer_in_a_plain_loop() -> None:
    """Bit for bit: the loop adds nothing to `torch.optim.Adam` on the same gradients."""
    options = config(method="vanilla", lr_schedule="linear", iterations=5, max_grad_norm=None)
    trainer = Trainer(options)
    adam = torch.optim.Adam(trainer.policy.parameters(), lr=options.learning_rate, fused=True)
    parameters = list(trainer.policy.parameters())
    for iteration in range(5):
        adam.param_groups[0]["lr"] = options.learning_rate * (1 - iteration / 5)
        (gradient,) = trainer.evaluator(parameters_to_vector(parameters).detach()[None]).gradients
        pieces = gradient.split([p.numel() for p in parameters])
        for parameter, piece in zip(parameters, pieces, strict=True):
            parameter.grad = piece.view_as(parameter)
        adam.step()
    trained = train(options).policy.parameters()
    assert all(torch.equal(p, q) for p, q in zip(parameters, trained, strict=True))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"normalize_obs": True, "normalize_reward": True},
        {"n_critic_updates": 2},
        {"algo": "ppo", "n_epochs": 2},
    ],
)
def test_target_is_vanilla_with_fewer_reports(options: dict[str, Any]) -> None:
    """N true steps per iteration: 2 iterations of 3 steps end where 6 iterations of vanilla do.

    Each step updates the statistics, fits the critic and makes the epochs.
    """
    target = train(config(method="target", parallelism=3, iterations=2, lr_schedule="constant", **options))
    vanilla = train(config(method="vanilla", iterations=6, lr_schedule="constant", **options))
    assert same(target.policy.state_dict(), vanilla.policy.state_dict())
    for name in ("rollout/episodes", "time/env_steps"):
        assert target.rows[-1][name] == vanilla.rows[-1][name]


@pytest.mark.parametrize(("algo", "least"), [("a2c", 80.0), ("reinforce", 60.0)])
def test_optex_learns_cartpole(algo: str, least: float) -> None:
    """A random policy gets about 22; 30 iterations take about a second."""
    result = train(config(algo=algo, n_envs=8, n_steps=128, iterations=30, net_arch=(64, 64)))
    assert result.rows[-1]["rollout/ep_rew_mean"] > least


def test_continuous_actions_and_blocks_run() -> None:
    result = train(config(env="Pendulum-v1", blocks="groups", n_steps=210))
    assert {"optex/cosine", "optex/cosine/critic", "optex/cosine/all"} <= result.rows[-1].keys()
    assert "optex/noise/critic" in result.rows[-1]
    assert all(p.isfinite().all() for p in result.policy.parameters())


def test_a_module_of_the_users_own_trains() -> None:
    """Actor and critic share their first layer, which no fast path knows."""
    torch.manual_seed(0)
    own = Net(Box(-1, 1, (4,)), Discrete(2), width=16)
    result = train(config(n_envs=8, n_steps=128, iterations=20, learning_rate=1e-2, vf_coef=0.05), own)
    assert result.policy is own
    assert result.rows[-1]["rollout/ep_rew_mean"] > 50


def test_run_folder(tmp_path: Path) -> None:
    options = config(logdir=str(tmp_path), run_name="one", eval_freq=2, eval_episodes=5)
    result = train(options)
    run_dir = tmp_path / "one"
    assert result.run_dir == run_dir
    names = {path.name.split(".tfevents")[0] for path in run_dir.iterdir()}
    assert {"config.yml", "command.txt", "progress.csv", "checkpoint.pt", "best_model.pt"} <= names
    assert "events.out" in names
    assert load_config(run_dir / "config.yml") == options
    rows = read_csv(run_dir / "progress.csv")
    extra = ["horizon", "cosine/all", "cosine/critic", "ceiling/all", "ceiling/critic"]
    assert list(rows[0]) == ["iteration", *COLUMNS, *extra]
    assert [row["iteration"] for row in rows] == ["1", "2", "3", "4"]
    assert float(rows[-1]["cumulative_average_reward"]) == result.rows[-1]["rollout/cumulative_average_reward"]
    assert [row["eval_return"] != "" for row in rows] == [False, True, False, True]
    best = load_checkpoint(run_dir / "best_model.pt")
    assert best["return"] == max(row["eval/mean_reward"] for row in result.rows if "eval/mean_reward" in row)


def test_default_run_names_do_not_collide(tmp_path: Path) -> None:
    options = config(logdir=str(tmp_path), iterations=1)
    names = [str(train(options).run_dir) for _ in range(2)]
    assert names == [str(tmp_path / "CartPole-v1_a2c_optex_0"), str(tmp_path / "CartPole-v1_a2c_optex_0_2")]


def test_steps_per_second_leave_evaluations_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def evaluate(trainer: Trainer) -> float:
        time.sleep(0.5)
        return 0.0

    monkeypatch.setattr(Trainer, "evaluate", evaluate)
    result = train(config(logdir=None, iterations=3, eval_freq=1))
    last = result.rows[-1]
    assert last["time/wall_time"] > 1.5
    assert last["time/env_steps"] / last["time/fps"] < last["time/wall_time"] - 1.4
