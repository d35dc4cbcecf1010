"""`make_vec`: a vector environment for any task, natively batched where there is a class that does so.

With every backend a new episode starts in the step in which one ends, final observations and statistics are in dense
`infos["final_obs"]` and `infos["episode"]`, and seeds may be given per block; `NativeVectorEnv` says how.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from gymnasium.error import DependencyNotInstalled, ResetNeeded
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.vector.utils import concatenate, create_empty_array, iterate

from ..common.errors import ConfigError
from .checks import (
    BoolArray,
    FloatArray,
    IntArray,
    Options,
    Seed,
    check_count,
    check_seeds,
    ending_infos,
    reset_rows,
)
from .frame_stack import FrameStack
from .registry import NATIVE, EnvFactory, Task, find_task

Env = gymnasium.Env[Any, Any]
Wrapper = Callable[[Env], Env]

BACKENDS = {
    "native": "NumPy steps all of them as one batch",
    "sync": "Gymnasium's SyncVectorEnv steps one after the other",
    "async": "Gymnasium's AsyncVectorEnv steps each in a process of its own",
}
# Processes pay where a step takes far longer than handing it over and there are cores to run them on.
SLOW_STEP_SECONDS = 2e-3
FEWEST_CORES = 3
PROBE_STEPS = 15


def make_vec(
    env_id: str | EnvFactory,
    num_envs: int = 1,
    *,
    seed: Seed = None,
    backend: str = "auto",
    render_mode: str | None = None,
    wrappers: Sequence[Wrapper] = (),
    frame_stack: int = 1,
    **env_kwargs: Any,
) -> VectorEnv[Any, Any, npt.NDArray[Any]]:
    """E = `num_envs` copies of a task, stepped as one batch; `NativeVectorEnv` says what its arrays are.

    Args:
        env_id: a registered id; "package:Name-v0" imports the package first. Or a function that makes one environment
            from `env_kwargs`, or a `NativeVectorEnv` class; "module:function" finds either.
        num_envs: number E of sub-environments.
        seed: used by the first `reset` that gets none; a number, or k seeds for k equal blocks.
        backend: "native" (NumPy), "sync", "async", or "auto": native if the task is in `NATIVE`, `render_mode` is
            None or "rgb_array" and there are no wrappers; else async if a step takes longer than `SLOW_STEP_SECONDS`
            and there are at least `FEWEST_CORES` cores; else sync. `describe_backend` tells which was chosen.
        render_mode: as in Gymnasium. A native environment draws sub-environment 0 only.
        wrappers: put around each sub-environment, the first one innermost.
        frame_stack: how many of the last observations are one, see `FrameStack`.
        env_kwargs: arguments of the task, and `max_episode_steps`.

    Raises:
        ConfigError: an unknown id or argument, a package that is not installed, or seeds that do not fit.
    """
    num_envs = check_count("num_envs", num_envs)
    if seed is not None:
        check_seeds(seed, num_envs)
    task = find_task(env_id)
    # A custom environment may have no such argument.
    rendering = {} if render_mode is None else {"render_mode": render_mode}
    single = partial(_make_single, task, wrappers, rendering | env_kwargs)
    with _one_sentence_errors(task):
        if backend == "auto":
            is_native = task.batch is not None and not wrappers
            backend = _choose_backend(single, num_envs, is_native, render_mode)
        if backend == "native" and task.batch is not None and not wrappers:
            env: VectorEnv[Any, Any, npt.NDArray[Any]] = task.batch(
                num_envs, render_mode=render_mode, seed=seed, **env_kwargs
            )
        elif backend in ("sync", "async"):
            env = SameStepVectorEnv(single, num_envs, backend, seed, task.name)
        elif backend == "native":
            wrapped = " with wrappers" if wrappers else ""
            raise ConfigError(f"there is no native {task.name}{wrapped}, only {', '.join(NATIVE)}; use backend='auto'.")
        else:
            raise ConfigError(f"backend must be 'auto' or one of {', '.join(BACKENDS)}, got {backend!r}.")
    env.spec = task.spec
    return env if frame_stack == 1 else FrameStack(env, frame_stack)


def _make_single(task: Task, wrappers: Sequence[Wrapper], kwargs: dict[str, Any]) -> Env:
    """One environment, not a batch."""
    if task.single is None:
        raise ConfigError(
            f"{task.name} exists as a batch only, which is neither wrapped nor stepped one by one: "
            "do in its class what the wrapper does."
        )
    made: object = task.single(**kwargs)  # by a user's function, which may return anything
    if not isinstance(made, gymnasium.Env):
        hint = ", and batches are subclasses of NativeVectorEnv" if isinstance(made, VectorEnv) else ""
        raise ConfigError(f"{task.name} must make a gymnasium.Env, and it made a {type(made).__name__}{hint}.")
    env: Env = made
    for wrapper in wrappers:
        env = wrapper(env)
    return env


def describe_backend(env: VectorEnv[Any, Any, Any]) -> str:
    """Return one line saying what `env` is and how it is stepped, e.g. for a log."""
    base = env.unwrapped
    name = getattr(base, "name", type(base).__name__) if base.spec is None else base.spec.id
    backend = getattr(base, "backend", None)
    manner = f"{backend}, {BACKENDS[backend]}" if backend in BACKENDS else type(base).__name__
    return f"{env.num_envs} x {name}: {manner}"


def expand_seeds(seeds: list[int], num_envs: int) -> list[int]:
    """Return one seed a sub-environment, [E], from one a block, [k].

    The first of a block gets the block's own seed, so that k = E is Gymnasium's list; the others get words that
    `numpy.random.SeedSequence` makes of it, which depend on neither k nor E.
    """
    others = num_envs // len(seeds) - 1
    return [child for s in seeds for child in (s, *np.random.SeedSequence(s).generate_state(others).tolist())]


class SameStepVectorEnv(VectorEnv[Any, Any, npt.NDArray[Any]]):
    """Gymnasium's Sync- or AsyncVectorEnv with the infos, statistics and block seeds of `NativeVectorEnv`.

    `env` is Gymnasium's environment. Observations keep the dtype of their space. A number as seed is one block: the
    sub-environments' seeds come from `expand_seeds`, not from counting up as in Gymnasium. The state cannot be saved.

    Args:
        make: makes one sub-environment.
        num_envs, seed: as of `make_vec`.
        backend: "sync" or "async".
        name: of the task, for messages.

    Raises:
        ConfigError: seeds that do not fit.
    """

    def __init__(self, make: Callable[[], Env], num_envs: int, backend: str, seed: Seed, name: str) -> None:
        vectorize = SyncVectorEnv if backend == "sync" else AsyncVectorEnv
        self.env: VectorEnv[Any, Any, npt.NDArray[Any]] = vectorize(
            [make] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP
        )
        self.backend, self.name = backend, name
        self.num_envs = num_envs
        self.metadata = self.env.metadata
        self.render_mode = self.env.render_mode
        self.observation_space = self.env.observation_space
        self.action_space = self.env.action_space
        self.single_observation_space = self.env.single_observation_space
        self.single_action_space = self.env.single_action_space
        self._first_seeds = None if seed is None else check_seeds(seed, num_envs)
        self._ready = False
        self._returns: FloatArray = np.zeros(num_envs)
        self._lengths: IntArray = np.zeros(num_envs, dtype=np.int64)

    def reset(self, *, seed: Seed = None, options: Options | None = None) -> tuple[Any, dict[str, Any]]:
        """Start new episodes everywhere, or where `options["reset_mask"]` bool [E] says, as `NativeVectorEnv.reset`.

        Returns what that does, and raises ConfigError for unusable seeds. Under a mask, only the selected
        sub-environments are reseeded.
        """
        rows = reset_rows(options, self.num_envs, self._ready)
        seeds = self._first_seeds if seed is None else check_seeds(seed, self.num_envs)
        self._first_seeds = None
        # Gymnasium takes a list here, which the base class does not declare, and pops the mask from the dictionary.
        gymnasium_reset: Any = self.env.reset
        observations, infos = gymnasium_reset(
            seed=None if seeds is None else expand_seeds(seeds, self.num_envs),
            options=None if options is None else dict(options),
        )
        self._returns[rows] = 0.0
        self._lengths[rows] = 0
        self._ready = True
        return observations, infos

    def step(self, actions: Any) -> tuple[Any, FloatArray, BoolArray, BoolArray, dict[str, Any]]:
        """Move all sub-environments by one step; see `NativeVectorEnv` for what is returned."""
        if not self._ready:
            raise ResetNeeded("call reset before step.")
        observations, rewards, terminated, truncated, infos = self.env.step(actions)
        self._returns += rewards
        self._lengths += 1
        ended = terminated | truncated
        if ended.any():
            last_seen = self._last_seen(observations, infos["final_obs"], ended)
            infos.update(ending_infos(ended, last_seen, self._returns, self._lengths))
            self._returns[ended] = 0.0
            self._lengths[ended] = 0
        return observations, rewards, terminated, truncated, infos

    def render(self) -> tuple[Any, ...] | None:
        """The images of all sub-environments, uint8 [height, width, 3] each."""
        return self.env.render()

    def close_extras(self, **kwargs: Any) -> None:
        """Close Gymnasium's environment."""
        if hasattr(self, "env"):  # older Gymnasium closes an object that it failed to make, too
            self.env.close(**kwargs)

    def _last_seen(self, observations: Any, final: npt.NDArray[np.object_], ended: BoolArray) -> Any:
        """Return a batch of the `final` observations where `ended` [E] and of `observations` elsewhere."""
        rows = list(iterate(self.observation_space, observations))
        for row in np.flatnonzero(ended):
            rows[row] = final[row]
        space = self.single_observation_space
        batch: Any = create_empty_array(space, self.num_envs)
        return concatenate(space, rows, batch)


@contextmanager
def _one_sentence_errors(task: Task) -> Iterator[None]:
    """Turn Gymnasium's errors about missing packages and unknown arguments into ConfigError."""
    try:
        yield
    except (DependencyNotInstalled, ImportError) as error:
        entry_point, reason = str(task.spec and task.spec.entry_point), str(error).rstrip(".")
        if not entry_point.startswith("gymnasium.envs."):
            raise ConfigError(f"environment {task.name!r} needs a package that is not installed: {reason}.") from error
        family = entry_point.split(".")[2]
        extra = {"phys2d": "jax", "tabular": "jax"}.get(family, family.replace("_", "-"))
        raise ConfigError(
            f"environment {task.name!r} needs packages that are not installed; run: pip install 'gymnasium[{extra}]'"
        ) from error
    except TypeError as error:
        for part, words in (("unexpected keyword", "does not take one of the arguments"), ("required", "needs others")):
            if f"{part} " in str(error) and "argument" in str(error):
                raise ConfigError(f"environment {task.name!r} {words}: {str(error).rstrip('.')}.") from error
        raise


def _choose_backend(make: Callable[[], Env], num_envs: int, is_native: bool, render_mode: str | None) -> str:
    """Return what `make_vec` says that "auto" means."""
    if is_native and render_mode in (None, "rgb_array"):
        return "native"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # A daemon, such as a pool's worker, must not start processes.
    if num_envs == 1 or cores < FEWEST_CORES or render_mode == "human" or multiprocessing.current_process().daemon:
        return "sync"
    return "async" if _step_seconds(make) > SLOW_STEP_SECONDS else "sync"


def _step_seconds(make: Callable[[], Env]) -> float:
    """Return the median time in seconds of a few random steps of one environment."""
    env = make()
    env.action_space.seed(0)
    env.reset(seed=0)
    durations = []
    for _ in range(PROBE_STEPS):
        action = env.action_space.sample()
        start = time.perf_counter()
        _, _, terminated, truncated, _ = env.step(action)
        durations.append(time.perf_counter() - start)
        if terminated or truncated:
            env.reset()
    env.close()
    return statistics.median(durations)
