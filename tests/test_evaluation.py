"""Fused evaluation against one point at a time, and the returns of finished policies against Gymnasium itself."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from optex_rl.agents import Categorical, MlpPolicy, make_agent
from optex_rl.envs import NativeVectorEnv, make_vec
from optex_rl.evaluation import FusedEvaluator, evaluate_policy
from optex_rl.rollout import Collector


def make_evaluator(env_id: str, algo: str, num_points: int, n_envs: int = 4) -> FusedEvaluator:
    envs = make_vec(env_id, num_points * n_envs)
    policy = MlpPolicy(envs.single_observation_space, envs.single_action_space, net_arch=(16, 16))
    return FusedEvaluator(policy, make_agent(algo), Collector(envs, num_points, 32, seed=0))


@pytest.mark.parametrize("algo", ["a2c", "reinforce"])
@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_gradient_of_a_point_does_not_depend_on_the_others(env_id: str, algo: str) -> None:
    """The first of N points has the gradient that it has alone: same experience, no leak through the summed loss."""
    many, one = make_evaluator(env_id, algo, 3), make_evaluator(env_id, algo, 1)
    d = many.policy.num_parameters
    points = 0.3 * torch.randn(3, d, generator=torch.Generator().manual_seed(1))
    together, alone = many(points), one(points[:1])
    difference = (together.gradients[0] - alone.gradients[0]).norm() / alone.gradients[0].norm()
    assert together.gradients.shape == (3, d)
    assert difference < 1e-4
    assert torch.allclose(together.losses.total[0], alone.losses.total[0], rtol=1e-4)
    assert not together.losses.total.requires_grad


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
