"""NaN and infinite numbers in training: named, saved, survived up to a limit."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box

from optex_rl import NonFiniteError, NotPositiveDefiniteError, TrainConfig, train
from optex_rl.common.errors import NumericalWarning
from optex_rl.common.storage import load_checkpoint
from optex_rl.envs import NATIVE, CartPole
from optex_rl.optimizer.estimator import gp, kernels
from optex_rl.training import Trainer
from optex_rl.training.config import METHODS
from optex_rl.training.faults import MOST_FILES
from optex_rl.training.rollouts.evaluator import FusedEvaluator, find_faults

from .helpers import registered

OPTIONS: dict[str, Any] = {
    "n_envs": 3,
    "n_steps": 16,
    "iterations": 4,
    "net_arch": (4,),
    "parallelism": 3,
    "progress_bar": False,
    "eval_freq": 0,
    "run_name": "run",
}


def config(tmp_path: Path, **options: Any) -> TrainConfig:
    return TrainConfig(**OPTIONS | {"logdir": str(tmp_path)} | options)


def corrupt_evaluations(monkeypatch: pytest.MonkeyPatch, bad: dict[int, list[int]], part: str = "gradients") -> None:
    """Make the gradients or losses of some points NaN at some evaluations, counted from 1."""
    evaluate = FusedEvaluator.__call__
    calls: list[int] = []

    def corrupted(self: FusedEvaluator, points: torch.Tensor) -> Any:
        calls.append(1)
        evaluation = evaluate(self, points)
        rows = bad.get(len(calls), [])
        (evaluation.gradients if part == "gradients" else evaluation.losses.total)[rows] = math.nan
        return evaluation

    monkeypatch.setattr(FusedEvaluator, "__call__", corrupted)


def test_reasons_worked_by_hand() -> None:
    gradients, losses = torch.ones(4, 5), torch.ones(4)
    gradients[1, 2:] = math.nan
    losses[1], losses[2] = math.inf, math.nan
    broken = np.zeros(8, np.bool_)
    broken[[6, 7]] = True  # both environments of point 3
    assert find_faults(gradients, losses, broken) == {
        1: "its loss, inf and 3 of 5 entries of its gradient",
        2: "its loss, nan",
        3: "observations or rewards of its environments 0, 1",
    }
    assert find_faults(torch.ones(2, 5), torch.ones(2), np.zeros(8, np.bool_)) == {}


@pytest.mark.parametrize("selection", ["refine", "last", "loss", "grad_norm"])
@pytest.mark.parametrize("part", ["gradients", "losses"])
def test_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, selection: str, part: str) -> None:
    corrupt_evaluations(monkeypatch, {1: [2], 3: [0, 1]}, part)
    result = train(config(tmp_path, selection=selection))
    assert [row["train/dropped_points"] for row in result.rows] == [1, 0, 2, 0]
    assert [row["optex/history"] for row in result.rows] == [2, 5, 6, 9]
    assert not any(math.isnan(row["train/policy_loss"]) for row in result.rows)
    assert result.run_dir is not None
    first = load_checkpoint(result.run_dir / "faults_1.pt")
    assert first["points"].tolist() == [2]
    assert first["iteration"] == 1
    assert first["message"].startswith("iteration 1: not finite: point 2: ")
    assert first["parameters"].shape == first["gradients"].shape == (1, first["parameters"].shape[1])
    assert first["batch"]["obs"].shape == (1, 16, 3, 4)
    assert load_checkpoint(result.run_dir / "faults_3.pt")["points"].tolist() == [0, 1]
    assert load_checkpoint(result.run_dir / "checkpoint.pt")["faults"]["dropped"] == 3


@pytest.mark.parametrize("method", METHODS)
def test_without_a_usable_point_the_iteration_is_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    corrupt_evaluations(monkeypatch, {2: [0, 1, 2][: 3 if method == "optex" else 1]})
    result = train(config(tmp_path, method=method))
    assert len(result.rows) == 4
    steps = [row["time/env_steps"] for row in result.rows]
    once = 16 * 3 * (1 if method == "vanilla" else 3)
    if method == "target":  # the bad one is one of the N evaluations of the first iteration
        assert steps == [once + 48, 2 * once + 48, 3 * once + 48, 4 * once + 48]
    else:  # repeated with new samples, which count
        assert steps == [once, 3 * once, 4 * once, 5 * once]
    assert all(p.isfinite().all() for p in result.policy.parameters())


@pytest.mark.parametrize(("limit", "attempts"), [(0, 1), (3, 4), (TrainConfig().max_bad_iterations, 11)])
def test_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, attempts: int) -> None:
    """Good attempts in between start the count anew; the run stops with its state saved and nothing moved."""
    bad = {k: [0, 1, 2] for k in range(3, 20)}
    whole = train(config(tmp_path, logdir=None, iterations=2, lr_schedule="constant"))
    corrupt_evaluations(monkeypatch, bad if limit == 0 else {1: [0]} | bad)
    with pytest.raises(NonFiniteError) as error:
        train(config(tmp_path, max_bad_iterations=limit, lr_schedule="constant", iterations=9))
    message = str(error.value)
    assert message.startswith("iteration 3: not finite: point 0: ")
    assert (f"number {attempts} in a row" in message) == (limit > 0)
    assert "faults_*.pt" in message
    saved = load_checkpoint(tmp_path / "run" / "checkpoint.pt")
    assert saved["iteration"] == 2
    assert saved["env_steps"] == (2 + attempts) * 16 * 3 * 3
    if limit == 0:
        assert all(torch.equal(value, saved["policy"][name]) for name, value in whole.policy.state_dict().items())


def test_files_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corrupt_evaluations(monkeypatch, {k: [1] for k in range(1, 30)} | {2: [0, 1, 2], 3: [0, 1, 2]})
    train(config(tmp_path, iterations=8, max_bad_iterations=100))
    names = sorted(path.name for path in (tmp_path / "run").glob("faults_*"))
    assert len(names) == MOST_FILES
    assert names == ["faults_1.pt", "faults_2.pt", "faults_2_2.pt", "faults_2_3.pt", "faults_3.pt"]


class Broken(CartPole):
    """Sub-environment 4 (point 1, environment 1 of 3) once gives a reward or an observation that is not finite."""

    part, value, when = "reward", math.nan, 20

    def step(self, actions: Any) -> Any:
        self._calls = getattr(self, "_calls", 0) + 1
        if self._calls == self.when and self.part == "state":
            self.state[4] = self.value
        obs, rewards, terminated, truncated, infos = super().step(actions)
        if self._calls == self.when and self.part == "reward":
            rewards[4] = self.value
            self._returns[4] += self.value
        return obs, rewards, terminated, truncated, infos


@pytest.mark.parametrize(
    ("part", "value"), [("reward", math.nan), ("reward", math.inf), ("reward", -math.inf), ("state", math.nan)]
)
def test_a_native_environment_that_breaks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, value: float
) -> None:
    """It is named, its point dropped, its episode starts anew; the others and the log never see it."""
    monkeypatch.setitem(NATIVE, "CartPole-v1", Broken)
    monkeypatch.setattr(Broken, "part", part)
    monkeypatch.setattr(Broken, "value", value)
    result = train(config(tmp_path))
    assert [row["train/dropped_points"] for row in result.rows] == [0, 1, 0, 0]
    saved = load_checkpoint(tmp_path / "run" / "faults_2.pt")
    assert saved["points"].tolist() == [1]
    assert saved["reasons"][0].startswith("observations or rewards of its environments 1")
    assert math.isfinite(result.rows[-1]["rollout/cumulative_average_reward"])
    other = load_checkpoint(tmp_path / "run" / "checkpoint.pt")["evaluator"]
    assert other["envs"]["state"].isfinite().all()
    assert other["obs"].isfinite().all()


class Faulty(gymnasium.Env[np.ndarray, Any]):
    """A custom task whose sensor fails for good in the middle of some episodes."""

    observation_space = Box(-1.0, 1.0, (2,))
    action_space = Box(-1.0, 1.0, (1,))
    total = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.fails = False
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        Faulty.total += 1
        self.fails |= Faulty.total in (200, 203)
        obs = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return (obs * np.nan if self.fails else obs), 1.0, False, False, {}


@pytest.fixture
def faulty_env() -> Iterator[str]:
    Faulty.total = 0
    with registered("Faulty-v0", Faulty, max_episode_steps=50) as env:
        yield env


def test_a_users_environment_that_breaks(tmp_path: Path, faulty_env: str) -> None:
    """9 environments a step: the 200th is environment 1 of point 0, the 203rd environment 1 of point 1."""
    result = train(config(tmp_path, env=faulty_env))
    assert [row["train/dropped_points"] for row in result.rows] == [0, 2, 0, 0]
    assert load_checkpoint(tmp_path / "run" / "faults_2.pt")["points"].tolist() == [0, 1]


def test_a_singular_kernel_forgets_the_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    factorise, calls = kernels.safe_cholesky, []

    def singular(matrix: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 4:
            raise NotPositiveDefiniteError("kernel matrix of shape (6, 6) is not positive definite")
        return factorise(matrix)

    monkeypatch.setattr(gp, "safe_cholesky", singular)
    result = train(config(tmp_path, iterations=8))
    assert len(result.rows) == 8
    history = [row["optex/history"] for row in result.rows]
    assert any(b < a for a, b in itertools.pairwise(history))
    (path,) = (tmp_path / "run").glob("faults_*.pt")
    assert "kernel matrix" in load_checkpoint(path)["message"]


def test_exploding_parameters_stop_the_run_and_the_policy_stays_finite(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match=r"^iteration \d+: .*in a row") as error:
        train(config(tmp_path, optimizer="sgd", learning_rate=1e38, max_grad_norm=None, iterations=30))
    assert re.search("NaN or infinite|not finite", str(error.value))
    saved = load_checkpoint(tmp_path / "run" / "checkpoint.pt")
    assert all(value.isfinite().all() for value in saved["policy"].values())


def test_an_evaluation_that_is_not_finite_counts_for_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from optex_rl.training import trainer

    def evaluate_policy(*_: Any) -> list[float]:
        return [1.0, math.nan, math.inf]

    monkeypatch.setattr(trainer, "evaluate_policy", evaluate_policy)
    with pytest.warns(NumericalWarning, match="iteration 4: the returns of evaluation episodes 1, 2 are not finite"):
        result = train(config(tmp_path, eval_freq=9))
    assert math.isnan(result.rows[-1]["eval/mean_reward"])
    assert not (tmp_path / "run" / "best_model.pt").exists()


def test_the_fault_log_is_resumed_exactly(tmp_path: Path) -> None:
    first, second = (Trainer(config(tmp_path, logdir=None)) for _ in range(2))
    first.faults.bad(1, NonFiniteError("x"))
    first.faults.dropped = 3
    second.load_state_dict(first.state_dict())
    counts = {"in_a_row": 1, "dropped": 3, "files": 0}
    assert second.faults.state_dict() == counts | {"iteration": 1, "attempt": 1}
