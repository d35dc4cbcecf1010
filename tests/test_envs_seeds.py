"""Seeds, blocks of seeds and saved states of the native environments."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from optex_rl.common.errors import ConfigError
from optex_rl.envs import NATIVE, CartPole, NativeVectorEnv, Pendulum

Array = npt.NDArray[Any]
TASKS = list(NATIVE.values())


def trajectory(env: NativeVectorEnv, actions: Array, **reset: Any) -> list[Array]:
    """Reset and step through `actions` [T, E]; return all observations, rewards and flags."""
    seen: list[Array] = [env.reset(**reset)[0]]
    for action in actions:
        seen += env.step(action)[:4]
    return seen


def random_actions(task: type[NativeVectorEnv], steps: int, num_envs: int, seed: int) -> Array:
    space = task(num_envs).action_space
    space.seed(seed)
    return np.stack([space.sample() for _ in range(steps)])


@given(seed=st.integers(0, 2**64), task=st.sampled_from(TASKS), blocks=st.sampled_from([None, 1, 2, 4]))
@settings(max_examples=25, deadline=None)
def test_equal_seeds_give_equal_trajectories(seed: int, task: type[NativeVectorEnv], blocks: int | None) -> None:
    actions = random_actions(task, 50, 4, seed % 1000)
    seeds = seed if blocks is None else [seed + i for i in range(blocks)]
    first = trajectory(task(4, max_episode_steps=15), actions, seed=seeds)
    again = trajectory(task(4, max_episode_steps=15, seed=seeds), actions)
    other = trajectory(task(4, max_episode_steps=15), actions, seed=seed + 9)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])


@given(
    seeds=st.lists(st.integers(0, 2**32), min_size=2, max_size=5, unique=True),
    size=st.integers(1, 5),
    task=st.sampled_from(TASKS),
    data=st.data(),
)
@settings(max_examples=40, deadline=None)
def test_a_blocks_trajectory_does_not_depend_on_the_others(
    seeds: list[int], size: int, task: type[NativeVectorEnv], data: st.DataObject
) -> None:
    block = data.draw(st.integers(0, len(seeds) - 1))
    rows = slice(block * size, (block + 1) * size)
    actions = random_actions(task, 60, len(seeds) * size, 1)
    among = trajectory(task(len(seeds) * size, max_episode_steps=25), actions, seed=seeds)
    alone = trajectory(task(size, max_episode_steps=25), actions[:, rows], seed=seeds[block])
    assert all(np.array_equal(a[rows], b) for a, b in zip(among, alone, strict=True))


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("seeds", [5, [5, 6]])
def test_a_saved_state_continues_bit_for_bit(task: type[NativeVectorEnv], seeds: int | list[int]) -> None:
    actions = random_actions(task, 120, 4, 2)
    env, other = task(4, max_episode_steps=33), task(4, max_episode_steps=33)
    trajectory(env, actions[:40], seed=seeds)
    file = io.BytesIO()
    torch.save(env.get_state(), file)
    other.set_state(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    for action in actions[40:]:
        ours, theirs = list[Any](env.step(action)), list[Any](other.step(action))
        our_infos, their_infos = ours.pop(), theirs.pop()
        assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))
        assert our_infos.keys() == their_infos.keys()
        if our_infos:
            np.testing.assert_array_equal(our_infos["episode"]["r"], their_infos["episode"]["r"])
            np.testing.assert_array_equal(our_infos["episode"]["l"], their_infos["episode"]["l"])


def test_a_saved_state_is_independent_of_later_steps() -> None:
    env = Pendulum(2)
    env.reset(seed=0)
    saved = env.get_state()
    copy = saved["state"].clone()
    env.step(np.ones((2, 1)))
    env.set_state(saved)
    env.step(np.ones((2, 1)))
    torch.testing.assert_close(saved["state"], copy, rtol=0, atol=0)


def test_a_saved_state_of_something_else_is_refused() -> None:
    env = Pendulum(2)
    env.reset(seed=0)
    for other in (Pendulum(3), CartPole(2)):
        with pytest.raises(ConfigError, match="the saved state is 2 x Pendulum-v1"):
            other.set_state(env.get_state())


@pytest.mark.parametrize("seed", [-1, 1.5, True, "7", [1, -2, 3], [1, 2], [], [1, None, 2]])
def test_unusable_seeds_are_refused(seed: Any) -> None:
    with pytest.raises(ConfigError, match="seed"):
        CartPole(3).reset(seed=seed)
    with pytest.raises(ConfigError, match="seed"):
        CartPole(3, seed=seed)


def test_resets_without_any_seed_differ() -> None:
    assert not np.array_equal(CartPole(2).reset()[0], CartPole(2).reset()[0])
    env = CartPole(2)
    assert not np.array_equal(env.reset()[0], env.reset()[0])
