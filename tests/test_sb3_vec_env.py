"""The native environments as a VecEnv: what DummyVecEnv over Monitor gives, step by step."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
import pytest
from gymnasium.wrappers import TimeLimit
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack, VecNormalize

from optex_rl import ConfigError
from optex_rl.sb3 import make_sb3_vec_env

TASKS = ["CartPole-v1", "Acrobot-v1", "MountainCar-v0", "MountainCarContinuous-v0", "Pendulum-v1"]


def actions_of(env: VecEnv, steps: int) -> list[npt.NDArray[Any]]:
    env.action_space.seed(3)
    return [np.stack([env.action_space.sample() for _ in range(env.num_envs)]) for _ in range(steps)]


def assert_same_infos(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys()
        assert a["TimeLimit.truncated"] is b["TimeLimit.truncated"]
        if "episode" in a:
            assert a["episode"].keys() == b["episode"].keys()
            assert a["episode"]["r"] == pytest.approx(b["episode"]["r"], rel=1e-5)
            assert a["episode"]["l"] == b["episode"]["l"]
            assert isinstance(a["episode"]["r"], float)
            np.testing.assert_allclose(a["terminal_observation"], b["terminal_observation"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("task", TASKS)
def test_steps_are_those_of_dummy_vec_env(task: str) -> None:
    ours: Any = make_sb3_vec_env(task, 3, seed=5, max_episode_steps=30)
    theirs: Any = make_vec_env(task, 3, seed=5, env_kwargs={"max_episode_steps": 30})
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space
    np.testing.assert_allclose(ours.reset(), theirs.reset(), rtol=1e-6)
    ended = 0
    for actions in actions_of(ours, 70):
        results, expected = ours.step(actions), theirs.step(actions)
        for a, b in zip(results[:3], expected[:3], strict=True):
            assert a.dtype == b.dtype
            assert a.shape == b.shape
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
        assert_same_infos(results[3], expected[3])
        ended += int(results[2].sum())
    assert ended >= 6
    ours.close()
    theirs.close()


def test_only_an_episode_cut_short_is_truncated() -> None:
    env = make_sb3_vec_env("CartPole-v1", 8, seed=0, max_episode_steps=12)
    env.reset()
    flags, lengths = [], []
    for actions in actions_of(env, 40):
        _, _, dones, infos = env.step(actions)
        flags += [info["TimeLimit.truncated"] for info, done in zip(infos, dones, strict=True) if done]
        lengths += [info["episode"]["l"] for info, done in zip(infos, dones, strict=True) if done]
        assert not any(info["TimeLimit.truncated"] for info, done in zip(infos, dones, strict=True) if not done)
    assert {True, False} == set(flags)
    assert all(length == 12 for length, cut in zip(lengths, flags, strict=True) if cut)


def test_arrays_and_infos_are_fresh() -> None:
    env: Any = make_sb3_vec_env("CartPole-v1", 2, seed=0)
    env.reset()
    first = env.step(np.array([0, 1]))
    kept = [np.copy(part) for part in first[:3]]
    second = env.step(np.array([0, 1]))
    assert all(np.array_equal(a, b) for a, b in zip(first[:3], kept, strict=True))
    assert first[3][0] is not second[3][0]


def test_seeds_are_used_once_and_count_up() -> None:
    env, other = make_sb3_vec_env("CartPole-v1", 3, seed=7), make_sb3_vec_env("CartPole-v1", 1)
    assert list(other.seed(8)) == [8]
    start = env.reset()
    np.testing.assert_array_equal(start[1], other.reset()[0])
    assert not np.array_equal(env.reset(), start)
    env.seed(7)
    np.testing.assert_array_equal(env.reset(), start)


def test_options_are_one_for_all() -> None:
    env = make_sb3_vec_env("CartPole-v1", 2, seed=0)
    env.set_options({"low": 0.01, "high": 0.02})
    start = env.reset()
    assert ((start >= 0.01) & (start <= 0.02)).all()
    env.set_options([{"low": 0.01}, {}])
    with pytest.raises(ConfigError, match="one set of reset options for all"):
        env.reset()


def test_attributes() -> None:
    env = make_sb3_vec_env("CartPole-v1", 3, seed=0)
    env.reset()
    assert env.get_attr("render_mode") == ["rgb_array"] * 3
    assert env.get_attr("action_space", 0) == [gymnasium.spaces.Discrete(2)]
    assert env.get_attr("max_episode_steps", [0, 2]) == [500, 500]
    np.testing.assert_array_equal(env.get_attr("state", 1)[0], env.env.state[1])
    np.testing.assert_array_equal(env.env_method("get_wrapper_attr", "state", indices=2)[0], env.env.state[2])
    env.set_attr("state", np.zeros(4), indices=[1])
    assert not env.env.state[1].any()
    assert env.env.state[0].any()
    env.set_attr("max_episode_steps", 20)
    assert env.get_attr("max_episode_steps", 0) == [20]
    assert env.has_attr("elapsed_steps")
    assert not env.has_attr("gravity")
    with pytest.raises(ConfigError, match="leave out indices"):
        env.set_attr("max_episode_steps", 20, indices=0)
    with pytest.raises(ConfigError, match="no 'reset' for single sub-environments"):
        env.env_method("reset")


def test_says_yes_to_monitor_alone() -> None:
    env = make_sb3_vec_env("CartPole-v1", 2)
    assert env.env_is_wrapped(Monitor) == [True, True]
    assert env.env_is_wrapped(TimeLimit, indices=0) == [False]


def test_draws_every_sub_environment() -> None:
    env = make_sb3_vec_env("CartPole-v1", 2, seed=0)
    env.reset()
    env.set_attr("state", np.array([[0.0, 0.0, 0.0, 0.0], [1.5, 0.0, 0.2, 0.0]]))
    before = env.env.state.copy()
    first, second = env.get_images()
    assert first is not None
    assert second is not None
    assert first.shape == second.shape == (400, 600, 3)
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(env.env_method("render", indices=1)[0], second)
    np.testing.assert_array_equal(env.env.state, before)
    tiled = env.render()
    assert tiled is not None
    assert tiled.shape == (800, 600, 3)
    env.close()
    assert make_sb3_vec_env("CartPole-v1", 2, render_mode=None).get_images() == [None, None]


def test_refuses_what_is_not_native() -> None:
    with pytest.raises(ConfigError, match="there is no native FrozenLake-v1"):
        make_sb3_vec_env("FrozenLake-v1", 2)


def test_wrappers_of_stable_baselines3_work_on_top() -> None:
    env: Any = VecNormalize(VecFrameStack(make_sb3_vec_env("CartPole-v1", 4, seed=0), 2), gamma=0.9)
    reference: Any = VecNormalize(VecFrameStack(make_vec_env("CartPole-v1", 4, seed=0), 2), gamma=0.9)
    np.testing.assert_allclose(env.reset(), reference.reset(), rtol=1e-5, atol=1e-6)
    for actions in actions_of(env, 60):
        results, expected = env.step(actions), reference.step(actions)
        for a, b in zip(results[:3], expected[:3], strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
        for ours, theirs in zip(results[3], expected[3], strict=True):
            assert ours.keys() == theirs.keys()
            if "terminal_observation" in ours:
                np.testing.assert_allclose(
                    ours["terminal_observation"], theirs["terminal_observation"], rtol=1e-4, atol=1e-5
                )
