"""The examples of the page on extending: a custom agent and a custom evaluator train, resume, and stay short."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from optex_rl import ConfigError, OptEx, RunFolderError, TrainConfig, resume, train
from optex_rl.agents import Agent
from optex_rl.optimizer.estimator import kernels

from .helpers import python_blocks

PAGE = (Path(__file__).parents[1] / "docs" / "extending.md").read_text("utf-8")


def test_agent_and_evaluator_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    agent_example, evaluator_example = python_blocks(PAGE)[:2]
    names: dict[str, Any] = {}
    exec(agent_example, names)
    assert names["result"].rows[-1]["rollout/ep_rew_mean"] > 60  # a random policy gets about 22
    assert issubclass(names["LeaveOneOut"], Agent)
    exec(evaluator_example, names)
    assert sorted(path.name for path in tmp_path.glob("*.npz")) == [f"experience-{i}.npz" for i in range(3)]
    with np.load("experience-2.npz") as seen:
        assert seen["points"].shape[0] == seen["obs"].shape[0] == 4
    assert max(map(len, (block.splitlines() for block in (agent_example, evaluator_example)))) <= 40
    goes_on_exactly(names, tmp_path)


def test_task_base_and_kernel_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    task, base, kernel = python_blocks(PAGE)[2:]
    names: dict[str, Any] = {"np": np, "torch": torch, "train": train, "TrainConfig": TrainConfig}
    try:
        exec(task, names)
    finally:
        gymnasium.registry.pop("Line-v0", None)
    assert names["result"].rows[-1]["rollout/ep_rew_mean"] > -12  # a random policy gets −29
    exec(base, names)
    values = descended(names["x"], names["optimizer"])
    assert values[-1] < 0.1 * values[0]  # from −1 at most 0.01 nearer with each of 80 steps
    monkeypatch.setitem(kernels.KERNELS, "gamma_exponential", kernels.matern12)  # so that it is gone after the test
    exec(kernel, names)
    values = descended(names["x"], names["optimizer"])
    assert min(values) < 0.1 * values[0]


def descended(x: torch.Tensor, optimizer: OptEx) -> list[float]:
    """The values of a quadratic function before each of 20 iterations on it."""

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = 0.5 * x.square().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    values: list[Any] = [optimizer.step(closure) for _ in range(20)]
    return [value.item() for value in values]


def goes_on_exactly(names: dict[str, Any], tmp_path: Path) -> None:
    """Stopped after three iterations and resumed, both are what nothing stopped; another agent is refused."""
    train, config, own = names["train"], names["TrainConfig"], names["LeaveOneOut"]()
    options = {"env": "CartPole-v1", "lr_schedule": "constant", "logdir": str(tmp_path / "runs")}
    with pytest.raises(ConfigError, match="n_critic_updates must be 0 with LeaveOneOut, got 2"):
        train(config(**options, n_critic_updates=2, run_name="refused"), agent=own)
    assert not (tmp_path / "runs" / "refused").exists()
    hooks = {"agent": own, "evaluator": names["Recording"]}
    whole = train(config(**options, iterations=5, run_name="whole"), **hooks)
    train(config(**options, iterations=3, run_name="run"), **hooks)
    with pytest.raises(RunFolderError, match="the agent LeaveOneOut, not ActorCritic: give it"):
        resume(tmp_path / "runs" / "run", iterations=5)
    second = resume(tmp_path / "runs" / "run", iterations=5, **hooks)
    for one, other in zip(whole.policy.parameters(), second.policy.parameters(), strict=True):
        assert torch.equal(one, other)
