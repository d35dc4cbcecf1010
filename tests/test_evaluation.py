"""Fused evaluation against one point at a time, and the returns of finished policies against Gymnasium itself."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import gymnasium
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from optex_rl.agents import Categorical, MlpPolicy, StackedPolicy, make_agent, observation_size
from optex_rl.envs import NativeVectorEnv, make_vec
from optex_rl.training.rollouts.collector import Collector
from optex_rl.training.rollouts.evaluation import evaluate_policy
from optex_rl.training.rollouts.evaluator import FusedEvaluator
from optex_rl.training.rollouts.normalization import Normalizer


def make_evaluator(env_id: str, algo: str, num_points: int, normalize: bool = False) -> FusedEvaluator:
    envs = make_vec(env_id, num_points * 4)
    spaces = envs.single_observation_space, envs.single_action_space
    normalizer = Normalizer(observation_size(spaces[0]), envs.num_envs, 0.99, obs=normalize)
    policy = MlpPolicy(*spaces, net_arch=(16, 16))
    return FusedEvaluator(StackedPolicy(policy), make_agent(algo), Collector(envs, num_points, 32, 0, normalizer))


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_a_point_has_its_experience_wherever_it_runs(env_id: str) -> None:
    """Three points by one collector, and by one of points 0 and 1 beside one of point 2, twice over."""
    whole, first = make_evaluator(env_id, "a2c", 3), make_evaluator(env_id, "a2c", 2)
    envs = make_vec(env_id, 4)
    second = FusedEvaluator(first.policy, first.agent, Collector(envs, 1, 32, 0, first_point=2))
    points = 0.3 * torch.randn(3, whole.policy.num_parameters, generator=torch.Generator().manual_seed(1))
    for _ in range(2):
        expected, parts = whole(points), (first(points[:2]), second(points[2:]))
        for name in ("obs", "actions", "rewards", "terminated"):
            joined = torch.cat([getattr(part.batch, name) for part in parts])
            torch.testing.assert_close(joined, getattr(expected.batch, name))
        torch.testing.assert_close(
            torch.cat([part.gradients for part in parts]), expected.gradients, rtol=1e-3, atol=1e-5
        )


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_gradient_is_that_of_the_loss_on_the_batch(env_id: str, normalize: bool) -> None:
    """What the rollout computed and the gradient takes over belongs to the same rows as the batch."""
    evaluator = make_evaluator(env_id, "a2c", 3, normalize)
    points = 0.3 * torch.randn(3, evaluator.policy.num_parameters, generator=torch.Generator().manual_seed(1))
    evaluator(points)
    evaluator.collector.normalizer.update()
    evaluation = evaluator(points)
    points.requires_grad_()
    losses = evaluator.agent.loss(evaluator.policy.bind(points), evaluation.batch)
    (expected,) = torch.autograd.grad(losses.total.sum(), points)
    assert (evaluation.gradients - expected).norm() < 1e-5 * expected.norm()


FAULTS = """
import resource, torch
from optex_rl.training.rollouts.evaluator import keep_freed_memory

def faults():
    arrays = [torch.ones(2**19) for _ in range(8)]  # 2 MiB each, 4096 pages in all
    del arrays
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    arrays = [torch.ones(2**19) for _ in range(8)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(faults(), keep_freed_memory(), faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such threshold")
def test_freed_memory_is_kept() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    command = [sys.executable, "-c", FAULTS]
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    before, _, after = printed.split()
    assert int(before) > 1000
    assert 4 * int(after) < int(before)  # the array at the edge of the heap may go back all the same


def test_points_are_left_alone() -> None:
    evaluator = make_evaluator("CartPole-v1", "a2c", 2)
    points = torch.zeros(2, evaluator.policy.num_parameters)
    evaluator(points)
    assert not points.requires_grad
    assert torch.equal(points, torch.zeros_like(points))


class Leaning(nn.Module):
    """Pushes towards the side to which the pole leans: returns differ from start to start."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(1.0))
        self.distribution = Categorical(2)

    def actor(self, obs: Tensor) -> Tensor:
        return torch.stack([torch.zeros_like(obs[..., 2]), self.gain * obs[..., 2]], -1)


def test_returns_equal_those_of_gymnasium() -> None:
    envs = make_vec("CartPole-v1", 20)
    assert isinstance(envs, NativeVectorEnv)
    envs.reset(seed=11)
    starts = envs.state.copy()
    expected = []
    scalar = gymnasium.make("CartPole-v1")
    for start in starts:
        scalar.reset()
        scalar.unwrapped.state = start  # type: ignore[attr-defined]
        obs, total, done = start.astype(np.float32), 0.0, False
        while not done:
            obs, reward, terminated, truncated, _ = scalar.step(int(obs[2] > 0))
            total += float(reward)
            done = terminated or truncated
        expected.append(total)
    assert evaluate_policy(Leaning(), envs, seed=11) == expected
    assert len(set(expected)) > 1
