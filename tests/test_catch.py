"""Catch by hand, its scalar form, and frame stacking against stable-baselines3's."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack

from optex_rl import ConfigError, TrainConfig, load, train
from optex_rl.agents import sample_observations
from optex_rl.envs import Catch, FrameStack, make_vec
from optex_rl.sb3 import NativeVecEnv, OptExA2C
from optex_rl.training.rollouts.evaluation import evaluate_policy

from .helpers import assert_resumed_exactly, registered


def play(env: Any, policy: Any) -> tuple[np.ndarray[Any, Any], int]:
    """Returns of one episode everywhere, and its length; ``policy`` gives actions from the states."""
    env.reset(seed=0)
    for step in range(1, 50):
        *_, terminated, _, infos = env.step(policy(env.unwrapped.state))
        if terminated.any():
            assert terminated.all()
            return infos["episode"]["r"], step
    raise AssertionError("no episode ended")


def test_who_follows_the_ball_catches_it_and_who_flees_does_not() -> None:
    env = Catch(64)
    returns, length = play(env, lambda state: 1 + np.sign(state[:, 1] - state[:, 2]).astype(int))
    assert (returns == 1).all()
    assert length == 11
    flee = play(Catch(64), lambda state: np.where(state[:, 1] < 6, 2, 0))[0]
    assert (flee == -1).all()


def test_drawn_by_hand() -> None:
    """Ball in row 2, column 5 and paddle in column 11: pixels 6 … 8 × 15 … 17 and 33 … 35 × 33 … 35."""
    env = Catch(2)
    env.reset(seed=0)
    env.state[:] = [[1, 5, 10], [0, 0, 0]]
    observations, rewards, *_ = env.step(np.array([2, 0]))
    assert env.state.tolist() == [[2, 5, 11], [1, 0, 0]]
    assert rewards.tolist() == [0, 0]
    expected = np.zeros((36, 36), np.uint8)
    expected[6:9, 15:18] = expected[33:, 33:] = 255
    assert observations.dtype == np.uint8
    assert np.array_equal(observations[0, :, :, 0], expected)


def test_a_missed_ball_by_hand() -> None:
    env = Catch(2)
    env.reset(seed=0)
    env.state[:] = [[10, 3, 4], [10, 3, 3]]
    observations, rewards, terminated, truncated, infos = env.step(np.array([1, 1]))
    assert rewards.tolist() == [-1, 1]
    assert terminated.all()
    assert not truncated.any()
    assert (infos["final_obs"][0, 33:, 9:15] == 255).all()
    assert (observations[:, :3].sum((1, 2, 3)) == 9 * 255).all()  # the new ball is in the top row


def test_the_scalar_environment_is_the_batch_of_one() -> None:
    env = gymnasium.make("optex_rl/Catch-v0", render_mode="rgb_array")
    batch = Catch(1)
    for seed in (0, 1):
        observation, _ = env.reset(seed=seed)
        expected, _ = batch.reset(seed=seed)
        assert np.array_equal(observation, expected[0])
        ended = False
        while not ended:
            observation, reward, terminated, truncated, _ = env.step(2)
            expected, rewards, _, _, infos = batch.step(np.array([2]))
            assert np.array_equal(observation, infos.get("final_obs", expected)[0])
            assert reward == rewards[0]
            ended = terminated or truncated
    image = env.render()
    assert isinstance(image, np.ndarray)
    assert image.shape == (288, 288, 3)


@pytest.mark.filterwarnings("ignore:.*WARN")
def test_gymnasium_checks_the_scalar_environment() -> None:
    check_env(gymnasium.make("optex_rl/Catch-v0").unwrapped, skip_render_check=True)


class Counting(gymnasium.Env[Any, Any]):
    """Observations that count the steps, one part of a Dict after another; an episode ends after four or five."""

    observation_space = spaces.Dict(
        last=spaces.Box(0, 255, (4, 4, 1), np.uint8),
        first=spaces.Box(0, 255, (2, 3, 3), np.uint8),
        vec=spaces.Box(-1e3, 1e3, (2,)),
    )
    action_space = spaces.Discrete(2)

    def __init__(self, length: int = 4) -> None:
        self.count, self.length, self.total = 0, length, 0

    def observe(self) -> Any:
        self.total += 1
        space = self.observation_space
        return {key: np.full(box.shape, self.total + i, box.dtype) for i, (key, box) in enumerate(space.items())}

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self.count = 0
        return self.observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.count += 1
        ended = self.count >= self.length
        return self.observe(), 1.0, ended and self.length == 4, ended and self.length != 4, {}


@pytest.mark.parametrize("length", [4, 5])
def test_frames_are_those_of_stable_baselines3(length: int) -> None:
    """Also the last ones of an episode, and whichever way it ended."""
    with registered("OptexTest/Counting-v0", Counting) as name:
        env = make_vec(name, 1, frame_stack=3, length=length)
        theirs = VecFrameStack(DummyVecEnv([lambda: Counting(length)]), 3)
        assert env.single_observation_space == theirs.observation_space
        given, expected = env.reset()[0], theirs.reset()
        their_infos: Any
        for step in range(12):
            for key in Counting.observation_space:
                assert np.array_equal(given[key], expected[key]), (step, key)
            given, _, terminated, truncated, infos = env.step(np.zeros(1, int))
            expected, _, dones, their_infos = theirs.step(np.zeros(1, int))  # type: ignore[assignment]
            assert (terminated | truncated).tolist() == dones.tolist()
            if dones[0]:
                for key, part in their_infos[0]["terminal_observation"].items():
                    assert np.array_equal(infos["final_obs"][key][0], part)


def test_a_partial_reset_keeps_the_other_frames() -> None:
    env = make_vec("CartPole-v1", 3, frame_stack=2)
    env.reset(seed=0)
    before = env.step(np.ones(3, int))[0]
    after, _ = env.reset(options={"reset_mask": np.array([False, True, False])})
    assert np.array_equal(after[[0, 2]], before[[0, 2]])
    assert (after[1, :4] == 0).all()
    assert (after[1, 4:] != before[1, 4:]).any()


def test_what_has_no_frames_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"frame_stack must be 1: .* of a Box, and Discrete\(16\) has none"):
        make_vec("FrozenLake-v1", 2, frame_stack=2)
    with pytest.raises(ConfigError, match="frame_stack must be a positive integer, got 0"):
        make_vec("CartPole-v1", 2, frame_stack=0)


SMALL: dict[str, Any] = {
    **{"env": "Catch-v0", "frame_stack": 2, "parallelism": 2, "n_envs": 2, "n_steps": 13, "cnn": "small"},
    **{"features_dim": 8, "eval_freq": 0, "progress_bar": False, "lr_schedule": "constant"},
}


@pytest.mark.parametrize("options", [{}, {"n_critic_updates": 1, "share_features_extractor": False, "batch_size": 16}])
def test_a_resumed_run_is_the_run_that_nothing_stopped(options: dict[str, Any], tmp_path: Any) -> None:
    """In the middle of episodes of eleven steps, with the frames before it."""
    assert_resumed_exactly(tmp_path, **SMALL | options)


def test_a_point_does_not_depend_on_the_number_of_points() -> None:
    """The frames of one sub-environment are its own."""
    alone, among = make_vec("Catch-v0", 2, frame_stack=3), make_vec("Catch-v0", 6, frame_stack=3)
    assert isinstance(alone, FrameStack)
    (first, _), (second, _) = alone.reset(seed=[5]), among.reset(seed=[5, 6, 7])  # type: ignore[arg-type]
    for _ in range(25):
        assert np.array_equal(first, second[:2])
        first, second = alone.step(np.zeros(2, int))[0], among.step(np.zeros(6, int))[0]


@pytest.mark.parametrize("options", [{}, {"env": "Pendulum-v1", "frame_stack": 1, "squash_output": True}])
def test_policies_come_back_and_are_exported(options: dict[str, Any], tmp_path: Any) -> None:
    """`export` itself compares the program with `predict`."""
    result = train(TrainConfig(**SMALL | options | {"logdir": str(tmp_path), "iterations": 1}))
    assert result.run_dir is not None
    model = load(result.run_dir)
    obs = sample_observations(model.observation_space, 3)
    together, one = model.predict(obs)[0], model.predict(obs[1])[0]
    assert np.allclose(together[1], one)
    model.export(tmp_path / "policy.pt2")
    assert len(model.evaluate(3)) == 3


def test_stable_baselines3_takes_it() -> None:
    model = OptExA2C(
        "CnnPolicy",
        "Catch-v0",
        parallelism=2,
        envs_per_point=2,
        n_steps=12,
        policy_kwargs={"features_extractor_kwargs": {"features_dim": 8}},
        device="cpu",
    )
    assert isinstance(model.get_env().unwrapped, NativeVecEnv)  # type: ignore[union-attr]
    assert model.learn(2 * 12 * 4).num_timesteps == 96
    assert [info["l"] for info in model.ep_info_buffer or []] == 8 * [11]


@pytest.mark.slow
def test_catch_is_learnt() -> None:
    torch.set_num_threads(1)
    result = train(TrainConfig.recommended("Catch-v0", seed=0, logdir=None, progress_bar=False, eval_freq=0))
    returns = evaluate_policy(result.policy, make_vec("Catch-v0", 200), 1, result.normalizer)
    assert float(np.mean(returns)) > 0.9  # a random walk has −0.83
