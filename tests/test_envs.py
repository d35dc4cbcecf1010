"""The native environments keep Gymnasium's vector interface: spaces, autoresets, masks, infos, errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from gymnasium.error import InvalidAction, ResetNeeded
from hypothesis import given, settings
from hypothesis import strategies as st

from optex_rl.common.errors import ConfigError
from optex_rl.envs import (
    NATIVE,
    Acrobot,
    CartPole,
    Catch,
    MountainCar,
    MountainCarContinuous,
    NativeVectorEnv,
    Pendulum,
)

Array = npt.NDArray[Any]
TASKS = list(NATIVE.values())
DISCRETE = [CartPole, Acrobot, MountainCar]


@pytest.mark.parametrize("task", TASKS)
def test_shapes_dtypes_and_spaces(task: type[NativeVectorEnv]) -> None:
    env = task(6, max_episode_steps=20)
    env.action_space.seed(0)
    observations, infos = env.reset(seed=0)
    assert env.observation_space.contains(observations)
    assert infos == {}
    for step in range(1, 61):
        observations, rewards, terminated, truncated, infos = env.step(env.action_space.sample())
        assert env.observation_space.contains(observations)
        assert observations.flags.c_contiguous
        assert [array.dtype.name for array in (rewards, terminated, truncated)] == ["float64", "bool", "bool"]
        assert rewards.shape == terminated.shape == truncated.shape == (6,)
        assert bool(infos) == bool((terminated | truncated).any())
        if step == 20 and task not in (CartPole, Catch):
            assert truncated.all()
            assert infos["final_obs"].shape == observations.shape
            assert infos["final_obs"].dtype == observations.dtype
            np.testing.assert_array_equal(infos["episode"]["l"], 20)


def fall_and_balance(max_episode_steps: int) -> tuple[Any, ...]:
    """Step two cart-poles, both pushed right: one about to leave the track, one at rest in the middle."""
    env = CartPole(2, max_episode_steps=max_episode_steps)
    env.reset(seed=0)
    env.state[:] = [[2.39, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]
    return env, *env.step(np.array([1, 1]))


def test_hand_worked_ending() -> None:
    # From rest under 10 N: push = 10/1.1; θ̈ = −push / (0.5 (4/3 − 0.1/1.1)) = −14.634146;
    # ẍ = push − 0.05 θ̈ / 1.1 = 9.756098; a step of 0.02 s gives ẋ = 0.195122 and θ̇ = −0.292683.
    # The first cart moves from 2.39 by 0.02 · 1 to 2.41 > 2.4 and ends.
    env, observations, rewards, terminated, truncated, infos = fall_and_balance(500)
    np.testing.assert_array_equal(terminated, [True, False])
    np.testing.assert_array_equal(truncated, [False, False])
    np.testing.assert_array_equal(rewards, [1.0, 1.0])
    np.testing.assert_allclose(infos["final_obs"][0], [2.41, 1.195122, 0.0, -0.292683], rtol=0, atol=1e-6)
    np.testing.assert_allclose(infos["final_obs"][1], [0.0, 0.195122, 0.0, -0.292683], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(observations[1], infos["final_obs"][1])
    assert np.all(np.abs(observations[0]) <= 0.05)
    np.testing.assert_array_equal(infos["_final_obs"], [True, False])
    np.testing.assert_array_equal(infos["_episode"], [True, False])
    np.testing.assert_array_equal(infos["episode"]["r"], [1.0, 0.0])
    np.testing.assert_array_equal(infos["episode"]["l"], [1, 0])
    np.testing.assert_array_equal(env.elapsed_steps, [0, 1])


def test_both_flags_on_the_last_allowed_step() -> None:
    _, _, _, terminated, truncated, infos = fall_and_balance(1)
    np.testing.assert_array_equal(terminated, [True, False])
    np.testing.assert_array_equal(truncated, [True, True])
    np.testing.assert_array_equal(infos["_final_obs"], [True, True])


@pytest.mark.parametrize("task", TASKS)
def test_returned_arrays_are_fresh(task: type[NativeVectorEnv]) -> None:
    env = task(4, max_episode_steps=7)
    env.action_space.seed(0)
    kept: list[tuple[Array, Array]] = []
    given: list[Array] = [env.reset(seed=0)[0]]
    for _ in range(30):
        observations, rewards, terminated, truncated, infos = env.step(env.action_space.sample())
        given += [observations, rewards, terminated, truncated]
        if infos:
            given += [infos["final_obs"], infos["_final_obs"], infos["_episode"], *infos["episode"].values()]
        assert not any(np.shares_memory(array, env.state) for array in given[-9:])
        kept += [(array, array.copy()) for array in given]
        given = []
    env.reset()
    assert all(np.array_equal(array, copy) for array, copy in kept)
    assert not any(np.shares_memory(a[0], b[0]) for i, a in enumerate(kept) for b in kept[:i])


@given(
    mask=st.lists(st.booleans(), min_size=5, max_size=5).filter(any),
    seed=st.integers(0, 2**40),
    blocks=st.sampled_from([1, 5]),
    task=st.sampled_from(TASKS),
)
@settings(max_examples=30, deadline=None)
def test_reset_mask_touches_only_its_rows(
    mask: list[bool], seed: int, blocks: int, task: type[NativeVectorEnv]
) -> None:
    env = task(5)
    env.action_space.seed(seed)
    env.reset(seed=[seed + i for i in range(blocks)])
    for _ in range(4):
        env.step(env.action_space.sample())
    before, selected = env.get_state(), np.array(mask)
    options = {"reset_mask": selected}
    observations, _ = env.reset(options=options)
    after = env.get_state()
    assert options == {"reset_mask": selected}
    for name, started in (("elapsed_steps", 0), ("returns", 0.0)):
        np.testing.assert_array_equal(after[name].numpy(), np.where(mask, started, before[name].numpy()))
    np.testing.assert_array_equal(after["state"][~selected], before["state"][~selected])
    assert np.all(np.any(after["state"].numpy() != before["state"].numpy(), axis=1) == selected)
    np.testing.assert_array_equal(observations, env.observe(env.state))
    drawn = [a != b for a, b in zip(after["generators"], before["generators"], strict=True)]
    assert drawn == (mask if blocks == 5 else [True])


def test_statistics_equal_the_sums_of_a_loop() -> None:
    env = MountainCarContinuous(3, max_episode_steps=90)
    env.reset(seed=1, options={"low": -0.5, "high": 0.3})
    generator = np.random.default_rng(0)
    returns, lengths, episodes = np.zeros(3), np.zeros(3, dtype=int), 0
    for _ in range(400):
        _, rewards, _, _, infos = env.step(generator.uniform(0.0, 1.5, (3, 1)))
        returns, lengths = returns + rewards, lengths + 1
        if infos:
            ended = infos["_episode"]
            np.testing.assert_array_equal(infos["episode"]["r"], np.where(ended, returns, 0.0))
            np.testing.assert_array_equal(infos["episode"]["l"], np.where(ended, lengths, 0))
            returns[ended], lengths[ended], episodes = 0.0, 0, episodes + int(ended.sum())
    assert episodes > 10


@pytest.mark.parametrize("task", [CartPole, Acrobot, MountainCar, MountainCarContinuous])
def test_reset_bounds_hold_for_one_reset(task: type[NativeVectorEnv]) -> None:
    env = task(4, max_episode_steps=1)
    env.reset(seed=0, options={"low": 0.2, "high": 0.21})
    assert np.all((env.state[:, 0] >= 0.2) & (env.state[:, 0] <= 0.21))
    env.step(env.action_space.sample())
    assert not np.any(env.state[:, 0] >= 0.2)
    for options in ({"low": 1.0, "high": 0.0}, {"low": "left"}, {"high": float("nan")}):
        with pytest.raises(ConfigError, match="reset option"):
            env.reset(options=options)


def test_reset_bounds_of_the_pendulum() -> None:
    env = Pendulum(50)
    env.reset(seed=0, options={"x_init": 0.1, "y_init": 0.0})
    assert np.all(np.abs(env.state[:, 0]) <= 0.1)
    assert not env.state[:, 1].any()
    with pytest.raises(ConfigError, match="'x_init'"):
        env.reset(options={"x_init": None})


def test_rendering_needs_its_mode() -> None:
    env = CartPole(2)
    env.reset(seed=0)
    with pytest.raises(ConfigError, match="render_mode='rgb_array'"):
        env.render()
    with pytest.raises(ConfigError, match="'human'"):
        CartPole(2, render_mode="human")


@pytest.mark.parametrize("task", DISCRETE)
@pytest.mark.parametrize("wrong", [-1, 3, 2**40])
def test_discrete_actions_out_of_range_are_refused(task: type[NativeVectorEnv], wrong: int) -> None:
    env = task(3)
    env.reset(seed=0)
    with pytest.raises(InvalidAction, match="actions must lie in 0"):
        env.step(np.array([0, wrong, 1]))


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.uint8, np.uint64])
def test_integer_actions_of_any_kind_are_taken(dtype: type[np.integer[Any]]) -> None:
    env, same = CartPole(3), CartPole(3)
    env.reset(seed=0)
    same.reset(seed=0)
    np.testing.assert_array_equal(env.step(np.array([0, 1, 1], dtype=dtype))[0], same.step(np.array([0, 1, 1]))[0])


def test_actions_of_a_wrong_shape_or_kind_are_refused() -> None:
    cart, pendulum = CartPole(3), Pendulum(3)
    cart.reset(seed=0)
    pendulum.reset(seed=0)
    with pytest.raises(InvalidAction, match=r"shape \(3,\), got \(3, 1\)"):
        cart.step(np.zeros((3, 1), dtype=int))
    with pytest.raises(InvalidAction, match="integers, got float64"):
        cart.step(np.zeros(3))
    with pytest.raises(InvalidAction, match=r"shape \(3, 1\), got \(3,\)"):
        pendulum.step(np.zeros(3))


def test_what_needs_a_reset_says_so() -> None:
    env = CartPole(3, render_mode="rgb_array")
    calls: list[Callable[[], object]] = [
        lambda: env.step(np.zeros(3, dtype=int)),
        env.render,
        env.get_state,
        lambda: env.reset(options={"reset_mask": np.array([True, False, False])}),
    ]
    for call in calls:
        with pytest.raises(ResetNeeded, match="reset"):
            call()


@pytest.mark.parametrize("mask", [[True, False, True], np.array([1, 0, 1]), np.ones(2, dtype=bool), np.zeros(3, bool)])
def test_unusable_masks_are_refused(mask: Any) -> None:
    env = CartPole(3)
    env.reset(seed=0)
    with pytest.raises(ConfigError, match="reset_mask"):
        env.reset(options={"reset_mask": mask})


@pytest.mark.parametrize("kwargs", [{"num_envs": 0}, {"num_envs": 2.0}, {"max_episode_steps": 0}])
def test_unusable_counts_are_refused(kwargs: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="positive integer"):
        CartPole(**kwargs)
