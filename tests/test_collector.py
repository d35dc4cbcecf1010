"""Collection: against hand-worked windows, and the independence of the points."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector

from optex_rl import ConfigError
from optex_rl.agents import MlpPolicy, StackedPolicy
from optex_rl.envs import make_vec
from optex_rl.training.rollouts.collector import Collector, Rollout, pad_final
from optex_rl.training.rollouts.seeding import spawn_seeds


def make_points(env_id: str, num_points: int) -> tuple[StackedPolicy, Tensor]:
    """A policy for the task and N different parameter sets [N, d]; the i-th does not depend on N."""
    envs = make_vec(env_id, 1)
    spaces = envs.single_observation_space, envs.single_action_space
    policies = [MlpPolicy(*spaces, generator=torch.Generator().manual_seed(i)) for i in range(num_points)]
    points = torch.stack([parameters_to_vector(policy.parameters()) for policy in policies])
    return StackedPolicy(policies[0]), points.detach()


def collect(
    env_id: str, num_points: int, n_envs: int, n_steps: int, seed: int = 0, limit: int | None = None
) -> tuple[Collector, Rollout]:
    policy, points = make_points(env_id, num_points)
    kwargs: dict[str, Any] = {} if limit is None else {"max_episode_steps": limit}
    collector = Collector(make_vec(env_id, num_points * n_envs, **kwargs), num_points, n_steps, seed)
    return collector, collector.collect(policy.bind(points))


def test_window_with_time_limits_worked_by_hand() -> None:
    # CartPole cannot fall within 5 steps, so with a limit of 5 every episode is truncated at steps 5 and 10 (t = 4, 9)
    # and the window of T = 12 ends in the middle of the third. With E = 2 the flat rows t·E + e are
    # 8, 9 (t = 4), 18, 19 (t = 9) and 22, 23 (t = 11, unfinished).
    collector, (batch, episodes) = collect("CartPole-v1", num_points=3, n_envs=2, n_steps=12, limit=5)
    for point in range(3):
        assert sorted(batch.final_index[point].tolist()) == [8, 9, 18, 19, 22, 23]
    assert batch.truncated.sum() == 3 * 2 * 2
    assert not batch.terminated.any()
    assert [(e.ep_return, e.length) for e in episodes] == [(5.0, 5)] * 12
    assert sorted(e.point for e in episodes) == [0] * 4 + [1] * 4 + [2] * 4
    rows = batch.final_index[1].tolist()
    after_window = torch.from_numpy(collector._obs).view(3, 2, -1)
    assert torch.equal(batch.final_obs[1, rows.index(22)], after_window[1, 0])
    # A truncated row's successor is not the first observation of the next episode, which starts within ±0.05.
    assert not torch.equal(batch.final_obs[1, rows.index(8)], batch.obs[1, 5, 0])
    assert batch.obs[1, 5].abs().max() <= 0.05


def test_observations_follow_the_dynamics() -> None:
    """Replaying the recorded actions in environments with the same seeds gives the recorded observations."""
    _, (batch, _) = collect("CartPole-v1", num_points=2, n_envs=3, n_steps=40, seed=7)
    envs = make_vec("CartPole-v1", 6)
    seeds: list[int] = spawn_seeds(7, 0, 2)
    obs, _ = envs.reset(seed=seeds)  # type: ignore[arg-type]  # a list of seeds is Gymnasium's API, not its annotation
    for t in range(40):
        assert np.array_equal(batch.obs[:, t].reshape(6, -1).numpy(), obs)
        obs, rewards, terminated, truncated, _ = envs.step(batch.actions[:, t].reshape(6).numpy())
        assert np.array_equal(batch.rewards[:, t].reshape(6).numpy(), rewards)
        assert np.array_equal(batch.terminated[:, t].reshape(6).numpy(), terminated)
        assert np.array_equal(batch.truncated[:, t].reshape(6).numpy(), truncated)


def test_episodes_go_on_between_collections() -> None:
    # With a limit of 7 and windows of 5 steps, the episode that begins at step 0 ends in the second window, at t = 1.
    policy, points = make_points("CartPole-v1", 1)
    collector = Collector(make_vec("CartPole-v1", 2, max_episode_steps=7), 1, 5, seed=5)
    first, second = (collector.collect(policy.bind(points)) for _ in range(2))
    assert first.episodes == []
    assert [(e.ep_return, e.length) for e in second.episodes] == [(7.0, 7)] * 2
    assert second.batch.truncated[0].any(1).tolist() == [False, True, False, False, False]


def test_padding_worked_by_hand() -> None:
    # N = 2 points with E = 2: point 0 has rows (t=0, e=1) -> 1 and (t=3, e=0) -> 6; point 1 only (t=2, e=1) -> 5.
    obs = [np.full(3, value, np.float32) for value in (1.0, 2.0, 3.0)]
    final_obs, final_index = pad_final([(0, 1, obs[0]), (2, 3, obs[1]), (3, 0, obs[2])], 2, 2, obs[0])
    assert final_index.tolist() == [[1, 6], [5, -1]]
    assert final_obs[:, :, 0].tolist() == [[1.0, 3.0], [2.0, 0.0]]


def test_seeds_of_a_point_do_not_depend_on_their_number() -> None:
    assert spawn_seeds(4, 0, 8)[:3] == spawn_seeds(4, 0, 3)
    assert len({*spawn_seeds(4, 0, 8), *spawn_seeds(4, 1, 8), *spawn_seeds(5, 0, 8)}) == 24


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="multiple of 3, got 4"):
        Collector(make_vec("CartPole-v1", 4), 3, 8, 0)
    import gymnasium

    with pytest.raises(ConfigError, match="SAME_STEP"):
        Collector(gymnasium.make_vec("CartPole-v1", 4, vectorization_mode="sync"), 2, 8, 0)
