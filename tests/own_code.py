"""A user's own tasks, wrapper and networks: what tests of custom code write into a module of the working directory."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor, nn

from optex_rl.agents import Categorical
from optex_rl.envs import NativeVectorEnv

Array = npt.NDArray[Any]


class Walk(gymnasium.Env[Array, np.int64]):
    """A walk on a line, of `length` steps; to the right it pays."""

    observation_space = Box(-100.0, 100.0, (2,), np.float32)
    action_space = Discrete(2)

    def __init__(self, length: int = 5, render_mode: str | None = None) -> None:
        self.length = length

    def seen(self) -> Array:
        return np.array([self.place, self.count], dtype=np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        super().reset(seed=seed)
        self.place, self.count = float(self.np_random.uniform(-1, 1)), 0
        return self.seen(), {}

    def step(self, action: np.int64) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        self.count += 1
        self.place += 2.0 * action - 1.0
        return self.seen(), float(action), self.count >= self.length, False, {}


class Reach(NativeVectorEnv):
    """As a batch: a point on a line that is to stay near 0. Registered where it is copied to: see `test_own_tasks`."""

    env_id = "Reach-v0"
    default_max_episode_steps = 20

    def __init__(self, num_envs: int = 1, *, step: float = 0.2, **options: Any) -> None:
        super().__init__(num_envs, **options)
        self.step_size = step

    def make_spaces(self) -> tuple[Box, Discrete]:
        return Box(-10.0, 10.0, (1,), np.float32), Discrete(2)

    def sample_states(self, generator: np.random.Generator, count: int, options: Any) -> npt.NDArray[np.float64]:
        return generator.uniform(-1, 1, (count, 1))

    def dynamics(self, state: Array, action: Array) -> tuple[Array, Array, Array]:
        state = state + self.step_size * (2.0 * action[:, None] - 1.0)
        return state, -np.abs(state[:, 0]), np.abs(state[:, 0]) > 3

    def observe(self, state: Array) -> Array:
        return state.astype(np.float32)


def make(length: int = 5) -> gymnasium.Env[Array, np.int64]:
    return Walk(length)


class Half(gymnasium.RewardWrapper[Any, Any]):
    def reward(self, reward: Any) -> float:
        return float(reward) / 2


class Net(nn.Module):
    """A network of one's own, with one layer for actor and critic."""

    def __init__(self, observations: gymnasium.Space[Any], actions: gymnasium.Space[Any], width: int = 8) -> None:
        super().__init__()
        assert isinstance(observations, Box)
        assert isinstance(actions, Discrete)
        self.distribution = Categorical(int(actions.n))
        self.trunk = nn.Linear(observations.shape[0], width)
        self.actor_head, self.critic_head = nn.Linear(width, int(actions.n)), nn.Linear(width, 1)

    def actor(self, obs: Tensor) -> Tensor:
        inputs: Tensor = self.actor_head(torch.tanh(self.trunk(obs)))
        return inputs

    def critic(self, obs: Tensor) -> Tensor:
        values: Tensor = self.critic_head(torch.tanh(self.trunk(obs)))
        return values.squeeze(-1)


def network(observations: gymnasium.Space[Any], actions: gymnasium.Space[Any]) -> nn.Module:
    return Net(observations, actions, width=6)


def no_network(observations: gymnasium.Space[Any], actions: gymnasium.Space[Any]) -> dict[str, Any]:
    return {}
