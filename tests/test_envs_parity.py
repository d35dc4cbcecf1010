"""The native environments move, reward, end and look like Gymnasium's scalar ones."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

from optex_rl.envs import NATIVE, CartPole, MountainCar, MountainCarContinuous, NativeVectorEnv, Pendulum

Array = npt.NDArray[Any]
TASKS = [task for env_id, task in NATIVE.items() if getattr(gymnasium.registry.get(env_id), "entry_point", None)]

# States far beyond what episodes visit, so that walls, goals, speed limits and wrapped angles are met all the time.
EXTREMES: dict[str, tuple[list[float], list[float]]] = {
    "CartPole-v1": ([-2.5, -4.0, -0.25, -4.0], [2.5, 4.0, 0.25, 4.0]),
    "Acrobot-v1": ([-np.pi, -np.pi, -4 * np.pi, -9 * np.pi], [np.pi, np.pi, 4 * np.pi, 9 * np.pi]),
    "MountainCar-v0": ([-1.2, -0.07], [0.6, 0.07]),
    "MountainCarContinuous-v0": ([-1.2, -0.07], [0.6, 0.07]),
    "Pendulum-v1": ([-10.0, -8.0], [10.0, 8.0]),
}
# Pushes of continuous tasks, beyond the bounds at which Gymnasium clips.
CONTINUOUS_PUSH = {"MountainCarContinuous-v0": 1.5, "Pendulum-v1": 3.0}


def able_actions(env: NativeVectorEnv, generator: np.random.Generator) -> Array:
    """Return actions [E]: rows that push along the last speed, which finds goals and limits, rows that do so half of
    the time and are random otherwise, and rows that idle, which meet the time limit.
    """
    direction = np.sign(env.state[:, -1] + (env.state[:, 2] if isinstance(env, CartPole) else 0.0))
    idle = np.arange(env.num_envs) % 5 == 4
    random = (generator.random(env.num_envs) < 0.5) & (np.arange(env.num_envs) % 5 > 1)
    if isinstance(env.single_action_space, gymnasium.spaces.Discrete):
        n = int(env.single_action_space.n)
        pushes = np.where(random, generator.integers(n, size=env.num_envs), np.where(direction >= 0, n - 1, 0))
        return np.where(idle, n // 2, pushes)
    bound = CONTINUOUS_PUSH[env.env_id]
    pushes = np.where(random, generator.uniform(-bound, bound, env.num_envs), bound * direction)
    return np.where(idle, 0.0, pushes)[:, None].astype(np.float32)


class ScalarOracle:
    """Gymnasium's scalar environment with its time limit, put into any state before each step."""

    def __init__(self, env_id: str, limit: int | None) -> None:
        self.env = gymnasium.make(env_id, max_episode_steps=limit)
        self.env.reset(seed=0)
        self.float32_state = env_id == "MountainCarContinuous-v0"

    def step(self, state: Array, elapsed: int, action: Any) -> tuple[Array, float, bool, bool]:
        inner: Any = self.env.unwrapped
        inner.state = state.astype(np.float32) if self.float32_state and elapsed else state.copy()
        inner.steps_beyond_terminated = None
        limit: Any = self.env
        limit._elapsed_steps = elapsed
        observation, reward, terminated, truncated, _ = self.env.step(action)
        return observation, float(reward), terminated, truncated


@pytest.mark.parametrize(
    ("num_envs", "steps", "limit"), [(40, 125, 60), pytest.param(50, 1100, None, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("task", TASKS)
def test_each_step_equals_gymnasiums(task: type[NativeVectorEnv], num_envs: int, steps: int, limit: int | None) -> None:
    """Compare every step of a native environment with the oracle's from the same state.

    Every other row is now and then thrown into an extreme state; the rest live on, to meet the time limit.
    """
    # Gymnasium's costs carry float32 actions, hence float32 roundings of 0.001 · 4, below 1e-9; elsewhere one rounding.
    reward_error = {"Pendulum-v1": 1e-9, "MountainCarContinuous-v0": 1e-12}.get(task.env_id, 0.0)
    generator = np.random.default_rng(7)
    env, oracle = task(num_envs, max_episode_steps=limit), ScalarOracle(task.env_id, limit)
    env.reset(seed=3)
    counts = np.zeros(2, dtype=int)
    for _ in range(steps):
        thrown = 1 + 2 * np.flatnonzero(generator.random(num_envs // 2) < 0.03)
        low, high = EXTREMES[task.env_id]
        env.state[thrown] = generator.uniform(low, high, (len(thrown), len(low))).astype(np.float32)
        states, elapsed, actions = env.state.copy(), env.elapsed_steps, able_actions(env, generator)
        observations, rewards, terminated, truncated, infos = env.step(actions)
        expected = [oracle.step(*one) for one in zip(states, elapsed.tolist(), actions, strict=True)]
        last_seen = infos.get("final_obs", observations)
        np.testing.assert_allclose(last_seen, np.stack([e[0] for e in expected]), rtol=0, atol=1e-6)
        np.testing.assert_allclose(rewards, [e[1] for e in expected], rtol=0, atol=reward_error)
        np.testing.assert_array_equal(terminated, [e[2] for e in expected])
        np.testing.assert_array_equal(truncated, [e[3] for e in expected])
        counts += terminated.sum(), truncated.sum()
    assert counts[1] > 0
    assert counts[0] > 0 or task is Pendulum


@pytest.mark.parametrize("task", TASKS)
def test_episodes_equal_gymnasiums_under_a_seed_for_each(task: type[NativeVectorEnv]) -> None:
    seeds = [11, 5, 8]
    env = task(3, max_episode_steps=25)
    scalar = gymnasium.make_vec(
        task.env_id,
        3,
        vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP},
        max_episode_steps=25,
    )
    reset: Any = scalar.reset
    np.testing.assert_allclose(env.reset(seed=seeds)[0], reset(seed=seeds)[0], rtol=0, atol=1e-6)
    generator = np.random.default_rng(0)
    for _ in range(80):
        actions = able_actions(env, generator)
        pairs: list[tuple[Any, Any]] = list(zip(env.step(actions)[:4], scalar.step(actions)[:4], strict=True))
        for ours, theirs in pairs:
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("task", "kwargs"),
    [
        (CartPole, {"sutton_barto_reward": True}),
        (MountainCar, {"goal_velocity": 0.03}),
        (MountainCarContinuous, {"goal_velocity": 0.03}),
        (Pendulum, {"g": 9.81}),
    ],
)
def test_arguments_mean_what_they_mean_in_gymnasium(task: type[NativeVectorEnv], kwargs: dict[str, Any]) -> None:
    env, scalar = task(400, **kwargs), gymnasium.make(task.env_id, **kwargs)
    env.reset(seed=0)
    scalar.reset(seed=0)
    generator = np.random.default_rng(1)
    low, high = EXTREMES[task.env_id]
    env.state[:] = generator.uniform(low, high, (400, len(low))).astype(np.float32)
    states, actions = env.state.copy(), able_actions(env, generator)
    observations, rewards, terminated, _, infos = env.step(actions)
    inner: Any = scalar.unwrapped
    for row in range(400):
        inner.state, inner.steps_beyond_terminated = states[row], None
        observation, reward, ended, _, _ = scalar.step(actions[row])
        np.testing.assert_allclose(infos.get("final_obs", observations)[row], observation, rtol=0, atol=1e-6)
        assert rewards[row] == pytest.approx(reward, abs=1e-8)
        assert terminated[row] == ended


class OneOf(gymnasium.Env[Array, Any]):
    """A native environment of one, through Gymnasium's scalar interface, so that Gymnasium's checker can look at it."""

    def __init__(self, task: type[NativeVectorEnv]) -> None:
        self.batch = task(1)
        self.observation_space = self.batch.single_observation_space
        self.action_space = self.batch.single_action_space
        self.spec = gymnasium.spec(f"optex_rl/{task.env_id}")

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        observations, infos = self.batch.reset(seed=seed, options=options)
        self._np_random = self.batch.np_random
        return observations[0], infos

    def step(self, action: Any) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        observations, rewards, terminated, truncated, infos = self.batch.step(np.array([action]))
        return observations[0], float(rewards[0]), bool(terminated[0]), bool(truncated[0]), infos


# The checker's advice on the bounds is to Gymnasium: the spaces are its own.
@pytest.mark.filterwarnings("ignore:.*Box (action|observation) space")
@pytest.mark.parametrize("task", TASKS)
def test_gymnasiums_checker_accepts_scalars_and_batches_of_one(task: type[NativeVectorEnv]) -> None:
    check_env(gymnasium.make(f"optex_rl/{task.env_id}").unwrapped, skip_render_check=True)
    check_env(OneOf(task), skip_render_check=True)


@pytest.mark.parametrize("task", TASKS)
def test_registered_vector_entry_point(task: type[NativeVectorEnv]) -> None:
    env = gymnasium.make_vec(f"optex_rl/{task.env_id}", num_envs=8, vectorization_mode="vector_entry_point")
    assert isinstance(env, task)
    registered: Any = gymnasium.spec(task.env_id)
    assert env.max_episode_steps == registered.max_episode_steps
    assert env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    scalar = gymnasium.make(task.env_id)
    assert env.single_observation_space == scalar.observation_space
    assert env.single_action_space == scalar.action_space
    assert env.metadata["render_fps"] == scalar.metadata["render_fps"]


@pytest.mark.parametrize("task", TASKS)
def test_rendering_is_gymnasiums_image_of_the_first(
    task: type[NativeVectorEnv], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    env = task(2, render_mode="rgb_array")
    env.reset(seed=0)
    scalar = gymnasium.make(task.env_id, render_mode="rgb_array")
    scalar.reset(seed=1)
    inner: Any = scalar.unwrapped
    inner.state = env.state[0].copy()
    (image,) = env.render()
    np.testing.assert_array_equal(image, scalar.render())
    assert image.dtype == np.uint8
    env.close()
