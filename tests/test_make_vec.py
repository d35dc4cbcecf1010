"""make_vec: which backend, one interface whatever it is, seeds for blocks, errors in one sentence."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
import pytest
from gymnasium.error import DependencyNotInstalled, ResetNeeded
from gymnasium.vector import AutoresetMode
from hypothesis import given, settings
from hypothesis import strategies as st

from optex_rl.common.errors import ConfigError
from optex_rl.envs import (
    NATIVE,
    CartPole,
    Catch,
    NativeVectorEnv,
    SameStepVectorEnv,
    describe_backend,
    make_vec,
    vector,
)
from optex_rl.envs.registry import register_native
from optex_rl.envs.vector import expand_seeds

Array = npt.NDArray[Any]


class Counter(gymnasium.Env[Array, np.int64]):
    """Counts its steps and stops after `length` of them; sleeps while it does. The start is random."""

    def __init__(self, length: int = 3, seconds: float = 0.0, render_mode: str | None = None) -> None:
        self.observation_space = gymnasium.spaces.Box(0.0, 1000.0, (2,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(2)
        self.length, self.seconds, self.render_mode = length, seconds, render_mode
        self.start, self.count = 0.0, 0

    def seen(self) -> Array:
        return np.array([self.start, self.count], dtype=np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        super().reset(seed=seed)
        self.start, self.count = float(self.np_random.uniform(0, 1)), 0
        return self.seen(), {}

    def step(self, action: np.int64) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        time.sleep(self.seconds)
        self.count += 1
        return self.seen(), float(self.count), self.count >= self.length + int(action), False, {}


class NeedsMissing(gymnasium.Env[Array, np.int64]):
    def __init__(self, render_mode: str | None = None) -> None:
        raise DependencyNotInstalled("the package of this test is not installed")


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    gymnasium.register("OptexTest/Counter-v0", entry_point=lambda **kwargs: Counter(**kwargs))
    gymnasium.register("OptexTest/NeedsMissing-v0", entry_point=lambda **kwargs: NeedsMissing(**kwargs))
    gymnasium.register("OptexTest/NeedsBox2D-v0", entry_point="gymnasium.envs.box2d.absent:Absent")
    yield
    for name in ("Counter-v0", "NeedsMissing-v0", "NeedsBox2D-v0"):
        del gymnasium.registry[f"OptexTest/{name}"]


@pytest.mark.parametrize(
    "env_id", [env_id for env_id in NATIVE if getattr(gymnasium.registry.get(env_id), "entry_point", None)]
)
def test_native_tasks_are_native_by_default(env_id: str) -> None:
    env = make_vec(env_id, 4)
    assert type(env) is NATIVE[env_id]
    assert env.spec == gymnasium.spec(env_id)
    assert describe_backend(env) == f"4 x {env_id}: native, NumPy steps all of them as one batch"
    assert type(make_vec(f"optex_rl/{env_id}", 4)) is NATIVE[env_id]


@pytest.mark.parametrize("env_id", ["Catch-v0", "optex_rl/Catch-v0"])
def test_a_task_that_gymnasium_does_not_have(env_id: str) -> None:
    env = make_vec(env_id, 4)
    assert type(env) is Catch
    assert describe_backend(env) == "4 x optex_rl/Catch-v0: native, NumPy steps all of them as one batch"
    assert isinstance(make_vec(env_id, 4, backend="sync"), SameStepVectorEnv)


def test_other_tasks_and_other_render_modes_are_gymnasiums() -> None:
    env = make_vec("OptexTest/Counter-v0", 2)
    assert isinstance(env, SameStepVectorEnv)
    assert (
        describe_backend(env) == "2 x OptexTest/Counter-v0: sync, Gymnasium's SyncVectorEnv steps one after the other"
    )
    assert env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    native = {None: True, "rgb_array": True, "human": False}
    for render_mode, expected in native.items():
        chosen = vector._choose_backend(lambda: gymnasium.make("CartPole-v1"), 2, True, render_mode)
        assert (chosen == "native") is expected


def test_description_of_someone_elses_environment() -> None:
    env = gymnasium.make_vec("MountainCar-v0", 2, vectorization_mode="sync")
    assert describe_backend(env) == "2 x MountainCar-v0: SyncVectorEnv"
    assert describe_backend(gymnasium.vector.VectorWrapper(CartPole(3))) == (
        "3 x CartPole: native, NumPy steps all of them as one batch"
    )


def test_slow_steps_get_processes_where_there_are_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    def choice(cores: int, seconds: float, num_envs: int = 2) -> str:
        monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)), raising=False)
        return vector._choose_backend(lambda: Counter(seconds=seconds), num_envs, False, None)

    slow = 2 * vector.SLOW_STEP_SECONDS
    assert choice(8, slow) == "async"
    assert choice(8, 0.0) == "sync"
    assert choice(2, slow) == "sync"
    assert choice(8, slow, num_envs=1) == "sync"


def test_registering_twice_changes_nothing() -> None:
    before = dict(gymnasium.registry)
    register_native()
    assert dict(gymnasium.registry) == before


def test_hand_worked_ending_of_gymnasiums_backend() -> None:
    # Both count to 3, the second one further because its action is 1.
    env = make_vec("OptexTest/Counter-v0", 2, seed=[1, 2])
    start = env.reset()[0][:, 0]
    for count in (1, 2):
        observations, rewards, *_, infos = env.step(np.array([0, 1]))
        np.testing.assert_array_equal(observations[:, 1], count)
        assert "final_obs" not in infos
        assert "episode" not in infos
    observations, rewards, terminated, truncated, infos = env.step(np.array([0, 1]))
    np.testing.assert_array_equal(rewards, [3.0, 3.0])
    np.testing.assert_array_equal(terminated, [True, False])
    np.testing.assert_array_equal(truncated, [False, False])
    np.testing.assert_array_equal(observations[:, 1], [0.0, 3.0])
    assert observations[0, 0] != start[0]
    np.testing.assert_array_equal(infos["final_obs"], np.stack([start, [3.0, 3.0]], axis=1))
    assert infos["final_obs"].dtype == np.float32
    np.testing.assert_array_equal(infos["_final_obs"], [True, False])
    np.testing.assert_array_equal(infos["_episode"], [True, False])
    np.testing.assert_array_equal(infos["episode"]["r"], [1.0 + 2.0 + 3.0, 0.0])
    np.testing.assert_array_equal(infos["episode"]["l"], [3, 0])
    env.close()


def run(env: Any, steps: int, num_envs: int, **reset: Any) -> list[tuple[Any, ...]]:
    """Reset and step with cyclic pushes; return all that came back."""
    seen: list[tuple[Any, ...]] = [(env.reset(**reset)[0],)]
    actions = np.random.default_rng(0).integers(2, size=(steps, num_envs))
    for action in actions:
        seen.append(env.step(action))
    return seen


@pytest.mark.parametrize("backend", ["sync", "async"])
def test_gymnasiums_backends_agree_with_the_native_one(backend: str) -> None:
    native = run(make_vec("CartPole-v1", 3, max_episode_steps=20), 60, 3, seed=[4, 5, 6])
    env = make_vec("CartPole-v1", 3, backend=backend, max_episode_steps=20)
    assert env.num_envs == 3
    other = run(env, 60, 3, seed=[4, 5, 6])
    env.close()
    endings = 0
    for ours, theirs in zip(native, other, strict=True):
        for a, b in zip(ours[:4], theirs[:4], strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)
        if len(ours) == 5 and ours[4]:
            endings += 1
            for name in ("final_obs", "_final_obs", "_episode"):
                np.testing.assert_allclose(ours[4][name], theirs[4][name], rtol=0, atol=1e-6)
                assert ours[4][name].dtype == theirs[4][name].dtype
            for name in ("r", "l"):
                np.testing.assert_array_equal(ours[4]["episode"][name], theirs[4]["episode"][name])
    assert endings > 3


@pytest.mark.parametrize("backend", ["native", "sync"])
def test_the_first_reset_uses_the_seed_and_later_ones_go_on(backend: str) -> None:
    env, other = (make_vec("Pendulum-v1", 2, seed=7, backend=backend) for _ in range(2))
    first, second = env.reset()[0], env.reset()[0]
    np.testing.assert_array_equal(first, other.reset()[0])
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(env.reset(seed=7)[0], first)
    np.testing.assert_array_equal(env.reset()[0], second)
    override = make_vec("Pendulum-v1", 2, seed=7, backend=backend)
    assert not np.array_equal(override.reset(seed=8)[0], first)
    assert not np.array_equal(override.reset()[0], first)


@given(seeds=st.lists(st.integers(0, 2**40), min_size=1, max_size=4), size=st.integers(1, 6))
def test_seeds_of_a_block_depend_on_its_own_seed_alone(seeds: list[int], size: int) -> None:
    expanded = expand_seeds(seeds, len(seeds) * size)
    assert len(expanded) == len(seeds) * size
    for block, seed in enumerate(seeds):
        assert expanded[block * size : (block + 1) * size] == expand_seeds([seed], size)
        assert expand_seeds([seed], size) == expand_seeds([seed], size + 3)[:size]
    assert expanded[::size] == seeds


@given(size=st.integers(1, 3), block=st.integers(0, 2))
@settings(max_examples=8, deadline=None)
def test_a_blocks_trajectory_does_not_depend_on_the_others(size: int, block: int) -> None:
    rows, seeds = slice(block * size, (block + 1) * size), [9, 3, 5]
    actions = np.random.default_rng(0).integers(2, size=(12, 3 * size))
    among, alone = (make_vec("OptexTest/Counter-v0", n * size) for n in (3, 1))
    reset_among: Any = among.reset
    np.testing.assert_array_equal(reset_among(seed=seeds)[0][rows], alone.reset(seed=seeds[block])[0])
    for action in actions:
        ours, theirs = among.step(action), alone.step(action[rows])
        assert all(np.array_equal(a[rows], b) for a, b in zip(ours[:4], theirs[:4], strict=True))


@given(mask=st.lists(st.booleans(), min_size=4, max_size=4).filter(any))
@settings(max_examples=10, deadline=None)
def test_reset_mask_touches_only_its_rows(mask: list[bool]) -> None:
    env = make_vec("OptexTest/Counter-v0", 4, length=5)
    env.reset(seed=0)
    for _ in range(3):
        before = env.step(np.zeros(4, dtype=int))[0]
    options = {"reset_mask": np.array(mask)}
    for _ in range(2):  # Gymnasium pops the mask from the dictionary it gets: ours stays as it is
        after = env.reset(options=options)[0]
    assert list(options) == ["reset_mask"]
    np.testing.assert_array_equal(after[:, 1], np.where(mask, 0.0, 3.0))
    np.testing.assert_array_equal((after == before).all(axis=1), ~np.array(mask))
    for _ in range(2):
        infos = env.step(np.zeros(4, dtype=int))[4]
    assert ("episode" in infos) == (not all(mask))
    if not all(mask):
        np.testing.assert_array_equal(infos["episode"]["l"], np.where(mask, 0, 5))


def test_gymnasiums_backends_refuse_what_native_ones_refuse() -> None:
    env = make_vec("OptexTest/Counter-v0", 4)
    with pytest.raises(ResetNeeded, match="reset"):
        env.step(np.zeros(4, dtype=int))
    with pytest.raises(ResetNeeded, match="reset_mask"):
        env.reset(options={"reset_mask": np.ones(4, dtype=bool)})
    env.reset(seed=0)
    with pytest.raises(ConfigError, match="reset_mask"):
        env.reset(options={"reset_mask": np.zeros(4, dtype=bool)})
    reset: Any = env.reset
    with pytest.raises(ConfigError, match="must divide num_envs=4"):
        reset(seed=[1, 2, 3])


@pytest.mark.parametrize(
    ("wrong", "closest"),
    [("CartPole-v3", "CartPole-v1"), ("acrobot", "Acrobot-v1"), ("MountainCar", "MountainCar-v0")],
)
def test_unknown_ids_name_the_closest_one(wrong: str, closest: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown environment '{wrong}'; the closest registered id is '{closest}'"):
        make_vec(wrong, 2)


def test_packages_are_imported_and_missed_by_name() -> None:
    with pytest.raises(ConfigError, match="cannot import 'no_such_package'"):
        make_vec("no_such_package:Some-v0", 2)
    assert "colorsys" in sys.stdlib_module_names
    assert isinstance(make_vec("colorsys:CartPole-v1", 2), NativeVectorEnv)


def test_missing_packages_come_with_a_command() -> None:
    with pytest.raises(ConfigError, match=r"run: pip install 'gymnasium\[box2d\]'"):
        make_vec("OptexTest/NeedsBox2D-v0", 2)
    with pytest.raises(ConfigError, match="needs a package that is not installed: the package of this test"):
        make_vec("OptexTest/NeedsMissing-v0", 2)


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"backend": "threads"}, "backend must be 'auto' or one of native, sync, async, got 'threads'"),
        ({"env_id": "OptexTest/Counter-v0", "backend": "native"}, "there is no native OptexTest/Counter-v0"),
        ({"num_envs": 0}, "num_envs must be a positive integer"),
        ({"seed": [1, 2]}, "must divide num_envs=3"),
        ({"gravity": 1.0}, "'CartPole-v1' does not take one of the arguments.*'gravity'"),
        ({"gravity": 1.0, "backend": "sync"}, "'CartPole-v1' does not take one of the arguments.*'gravity'"),
    ],
)
def test_unusable_arguments_are_refused(kwargs: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make_vec(**{"env_id": "CartPole-v1", "num_envs": 3, **kwargs})


def test_arguments_reach_the_task() -> None:
    pendulum: Any = make_vec("Pendulum-v1", 2, g=1.0, max_episode_steps=9)
    assert (pendulum.g, pendulum.max_episode_steps) == (1.0, 9)
    scalars: Any = make_vec("Pendulum-v1", 2, backend="sync", g=1.0)
    assert [scalar.unwrapped.g for scalar in scalars.env.envs] == [1.0, 1.0]


def test_gymnasiums_backend_renders_every_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    env = make_vec("CartPole-v1", 2, backend="sync", render_mode="rgb_array", seed=0)
    env.reset()
    images = env.render()
    assert images is not None
    assert len(images) == 2
    env.close()
