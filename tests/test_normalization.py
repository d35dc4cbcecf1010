"""Normalisation: moments against NumPy, rewards against stable-baselines3, and statistics that stand still."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from optex_rl import train
from optex_rl.agents import MlpPolicy, StackedPolicy
from optex_rl.cli import main
from optex_rl.common.storage import load_checkpoint
from optex_rl.envs import make_vec
from optex_rl.training.config import METHODS
from optex_rl.training.rollouts.collector import Collector, Rollout
from optex_rl.training.rollouts.evaluation import evaluate_policy
from optex_rl.training.rollouts.normalization import (
    CLIP,
    EPSILON,
    Moments,
    Normalizer,
    merge_moments,
    moments_of,
    prior_moments,
    returns_so_far,
    scale_rewards,
    standardize,
)

from .test_resume import assert_halves_are_the_whole
from .test_training import config

BOTH = {"normalize_obs": True, "normalize_reward": True}


@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    offset=st.sampled_from([0.0, -3.0, 1e4]),
    seed=st.integers(0, 99),
)
def test_merged_moments_are_those_of_all_rows(sizes: list[int], offset: float, seed: int) -> None:
    generator = np.random.default_rng(seed)
    parts = [generator.normal(offset, 2.0, (size, 3)) for size in sizes]
    merged = moments_of(parts[0])
    for part in parts[1:]:
        merged = merge_moments(merged, moments_of(part))
    rows = np.concatenate(parts)
    assert merged.rows == len(rows)
    assert merged.mean == pytest.approx(rows.mean(0), rel=1e-10, abs=1e-10)
    assert merged.var == pytest.approx(rows.var(0), rel=1e-8, abs=1e-8)


def test_the_prior_is_outweighed_by_data() -> None:
    rows = np.random.default_rng(0).normal([5.0, -50.0], [0.1, 30.0], (1000, 2))
    merged = merge_moments(prior_moments(2), moments_of(rows))
    assert merged.mean == pytest.approx(rows.mean(0), rel=1e-6)
    assert np.sqrt(merged.var) == pytest.approx(rows.std(0), rel=1e-3)


def test_float32_rows_are_summed_in_float64() -> None:
    rows = np.full((100_000, 1), 1000.1, np.float32)
    rows[::2] += 0.25
    assert moments_of(rows).var == pytest.approx(rows.astype(np.float64).var(0), rel=1e-12)


def test_scales_and_clips_worked_by_hand() -> None:
    moments = Moments(10.0, np.array([1.0, 0.0]), np.array([4.0, 0.0]))
    seen = standardize(np.array([[3.0, 0.0], [-99.0, 1.0]]), moments)
    assert seen.dtype == np.float32
    assert seen.tolist() == [[pytest.approx(1.0), 0.0], [-CLIP, CLIP]]
    scaled = scale_rewards(np.array([-1.0, 4.0, 99.0]), Moments(10.0, np.array(7.0), np.array(4.0)))
    assert scaled.tolist() == [pytest.approx(-0.5), pytest.approx(2.0), CLIP]


def test_returns_so_far_worked_by_hand() -> None:
    # γ = ½; the first environment's episode ends at t = 1, the second begins the window with 8 and never ends.
    rewards = np.array([[1.0, 0.0], [2.0, 0.0], [4.0, 1.0]])
    ended = np.array([[False, False], [True, False], [False, False]])
    sums, following = returns_so_far(rewards, ended, np.array([0.0, 8.0]), 0.5)
    assert sums.tolist() == [[1.0, 4.0], [2.5, 2.0], [4.0, 2.0]]
    assert following.tolist() == [4.0, 2.0]


class Stream(gymnasium.Env[np.ndarray, Any]):
    """Random observations and rewards; every third episode end is a truncation."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,))
    action_space = gymnasium.spaces.Discrete(1)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        return self.np_random.normal(3.0, 2.0, 2).astype(np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        obs = self.np_random.normal(3.0, 2.0, 2).astype(np.float32)
        chance = self.np_random.uniform()
        return obs, float(np.float32(self.np_random.normal(-1.0, 5.0))), chance < 0.1, 0.1 <= chance < 0.15, {}


def test_statistics_are_those_of_vec_normalize() -> None:
    """The same stream through VecNormalize: it updates step by step, we once for the window; the sums agree."""
    envs: Any = VecNormalize(DummyVecEnv([Stream] * 3), gamma=0.9)
    envs.seed(0)
    envs.reset()
    obs, rewards, ended = [envs.get_original_obs()], [], []
    for _ in range(200):
        _, _, dones, _ = envs.step(np.zeros(3, np.int64))
        obs.append(envs.get_original_obs())
        rewards.append(envs.get_original_reward())
        ended.append(dones)
    assert np.any(ended)
    normalizer = Normalizer(2, 3, 0.9, obs=True, reward=True)
    for window in (slice(0, 120), slice(120, 200)):
        normalizer.see(np.stack(obs[1:][window]), np.stack(rewards[window]), np.stack(ended[window]))
        normalizer.update()
    assert normalizer.return_moments.var == pytest.approx(envs.ret_rms.var, rel=1e-9)
    assert normalizer.return_moments.mean == pytest.approx(envs.ret_rms.mean, rel=1e-9)
    assert normalizer.rewards(rewards[-1]) == pytest.approx(envs.normalize_reward(rewards[-1]), rel=1e-6)
    # VecNormalize also counts the observations of the reset, once: put them in. It sums observations in float32.
    normalizer.obs_moments = merge_moments(normalizer.obs_moments, moments_of(obs[0]))
    assert normalizer.obs_moments.var == pytest.approx(envs.obs_rms.var, rel=1e-6)
    assert normalizer.observations(obs[0]) == pytest.approx(envs.normalize_obs(obs[0]), rel=1e-6)
    assert (envs.epsilon, envs.clip_obs, envs.clip_reward) == (EPSILON, CLIP, CLIP)


def make_collector(env_id: str = "Pendulum-v1", num_points: int = 3, **options: Any) -> tuple[Collector, Any]:
    """Normalising collection at N points, with a policy bound to them."""
    envs = make_vec(env_id, num_points * 2)
    policy = MlpPolicy(envs.single_observation_space, envs.single_action_space, net_arch=(8,))
    features = envs.single_observation_space.shape[0]  # type: ignore[index]
    normalizer = Normalizer(features, envs.num_envs, 0.9, obs=True, reward=True)
    points = torch.nn.utils.parameters_to_vector(policy.parameters()).detach().expand(num_points, -1)
    return Collector(envs, num_points, 30, 5, normalizer, **options), StackedPolicy(policy).bind(points)


def test_statistics_stand_still_until_they_are_updated() -> None:
    collector, policy = make_collector()
    before = collector.normalizer.obs_moments, collector.normalizer.return_moments
    first, second = collector.collect(policy).batch, collector.collect(policy).batch
    assert (collector.normalizer.obs_moments, collector.normalizer.return_moments) == before
    collector.normalizer.update()
    # Before the update both windows were taken with mean 0 and variance 1, so what was recorded is what was seen.
    rows = torch.cat([first.obs, second.obs]).reshape(-1, 3).numpy()
    moments = collector.normalizer.obs_moments
    assert moments.rows == pytest.approx(len(rows))
    assert moments.mean == pytest.approx(rows.mean(0), rel=1e-4, abs=1e-4)
    assert moments.var == pytest.approx(rows.var(0), rel=1e-4)
    third = collector.collect(policy).batch
    assert third.obs[..., 2].std() < 2.0 < first.obs[..., 2].std()  # the speed, up to 8 rad/s
    assert third.rewards.abs().mean() < 0.5 * first.rewards.abs().mean()


def test_final_observations_are_normalised_alike() -> None:
    """Within an episode the successor of a row is the next row; the one after the window comes through `final_obs`."""
    collector, policy = make_collector()
    collector.collect(policy)
    collector.normalizer.update()
    first: Rollout = collector.collect(policy)
    second = collector.collect(policy)  # the same statistics
    last = first.batch.final_index[0].tolist().index(29 * 2)
    assert torch.equal(first.batch.final_obs[0, last], second.batch.obs[0, 0, 0])


def test_episode_statistics_are_raw() -> None:
    normalised, plain = (train(config(env="Pendulum-v1", n_steps=200, iterations=1, **flags)) for flags in (BOTH, {}))
    assert normalised.rows[-1]["rollout/ep_rew_mean"] == plain.rows[-1]["rollout/ep_rew_mean"] < -500


@pytest.mark.parametrize("method", METHODS)
def test_a_normalising_run_is_resumed_exactly(tmp_path: Path, method: str) -> None:
    flags = ["--env", "Pendulum-v1", "--normalize-obs", "--normalize-reward", "--noise-repeat", "3"]
    assert_halves_are_the_whole(tmp_path, *flags, "--method", method)
    statistics = load_checkpoint(tmp_path / "whole" / "checkpoint.pt")["normalizer"]
    assert min(statistics[part]["rows"] for part in ("obs", "returns")) > 50


def test_evaluation_uses_the_saved_statistics(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = config(
        env="Pendulum-v1", iterations=8, n_steps=100, learning_rate=1e-2, eval_freq=8, logdir=str(tmp_path), **BOTH
    )
    result = train(options)
    assert result.run_dir is not None
    saved, best = (load_checkpoint(result.run_dir / name) for name in ("checkpoint.pt", "best_model.pt"))
    assert saved["normalizer"]["obs"]["rows"] == pytest.approx(8 * 4 * 4 * 100)
    envs = make_vec("Pendulum-v1", 10)
    normalizer = Normalizer(3, 10, options.gamma, obs=True, reward=True)
    without = np.mean(evaluate_policy(result.policy, envs, 0, normalizer))
    normalizer.load_state_dict(best["normalizer"])
    expected = np.mean(evaluate_policy(result.policy, envs, 0, normalizer))
    assert normalizer.obs_moments.rows == saved["normalizer"]["obs"]["rows"]  # playing changes nothing
    assert expected != without
    for flags in ([], ["--best"]):
        capsys.readouterr()
        assert main(["evaluate", str(result.run_dir), "--episodes", "10", *flags]) == 0
        assert f"mean return {expected:.2f} " in capsys.readouterr().out


def test_environments_that_begin_anew_have_gathered_nothing() -> None:
    """The state of Gymnasium's environments cannot be saved; what their episodes had gathered must not go on."""
    envs = make_vec("Pendulum-v1", 2, backend="sync")
    normalizer = Normalizer(3, 2, 0.9, reward=True)
    collector = Collector(envs, 1, 4, 0, normalizer)
    normalizer.see(np.zeros((1, 2, 3)), np.ones((1, 2)), np.zeros((1, 2), np.bool_))
    assert normalizer.state_dict()["returns_so_far"].tolist() == [1.0, 1.0]
    collector.load_state_dict(collector.state_dict())
    assert normalizer.state_dict()["returns_so_far"].tolist() == [0.0, 0.0]


def test_noise_is_held() -> None:
    """Action minus mean changes only where new random numbers come: every 4 steps, the last time for 2."""
    collector, policy = make_collector(noise_repeat=4)
    batch = collector.collect(policy).batch
    noise = batch.actions - policy.distribution.mode(policy.actor(batch.obs.flatten(1, 2))).view_as(batch.actions)
    changed = (noise[:, 1:] - noise[:, :-1]).abs().amax(dim=(0, 2, 3)) > 1e-4
    assert [t + 1 for t in changed.nonzero().flatten().tolist()] == [4, 8, 12, 16, 20, 24, 28]
