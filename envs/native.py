"""The base class of the environments that NumPy steps as one batch: everything that is not dynamics.

A subclass states its spaces, how episodes start, how a state moves and what is seen of it. This file adds Gymnasium's
vector interface: SAME_STEP autoreset, time limits, partial resets, generators per block, episode statistics, rendering
and an exact, savable state. Axes: E sub-environments, k blocks of E / k consecutive sub-environments.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import gymnasium
import numpy as np
import numpy.typing as npt
import torch
from gymnasium.error import InvalidAction, ResetNeeded
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from ..common.errors import ConfigError
from .checks import (
    BoolArray,
    FloatArray,
    IntArray,
    Observations,
    Options,
    Seed,
    check_count,
    check_seeds,
    ending_infos,
    reset_rows,
)


def native_metadata(render_fps: int) -> dict[str, Any]:
    """Return the metadata that Gymnasium expects of a vector environment, `render_fps` in frames per second."""
    return {"render_modes": ["rgb_array"], "render_fps": render_fps, "autoreset_mode": AutoresetMode.SAME_STEP}


class NativeVectorEnv(VectorEnv[Observations, npt.NDArray[Any], npt.NDArray[Any]], ABC):
    """E copies of one task, stepped by NumPy as one batch.

    Args:
        num_envs: number E of sub-environments.
        max_episode_steps: time limit in steps; by default the one Gymnasium registers for the task.
        render_mode: "rgb_array", or None where nothing is drawn.
        seed: used by the first `reset` that gets none.

    `step` returns observations [E, obs] (float32, images uint8), rewards float64 [E], terminated bool [E], truncated
    bool [E], infos; both flags are true where an episode terminates on its last allowed step. A new episode starts in
    the step in which one ends. The infos are empty unless some episode ended; then `infos["final_obs"]` [E, obs] holds
    what the step led to before any reset (rows of running episodes equal the observations), `infos["episode"]` the
    returns "r" and lengths "l" [E] of the ended episodes, 0 elsewhere (no "t": wall-clock time has no meaning for one
    row of a batch), and `infos["_final_obs"]`, `infos["_episode"]` bool [E] say which ended. All arrays are fresh.

    `state` float64 [E, ...] has the layout of `unwrapped.state` of Gymnasium's scalar environment; rows may be written.

    Seeds: a number seeds one generator for the whole batch; a list of k seeds, k dividing E, one generator for each
    block of E / k consecutive sub-environments, so that a block's episodes do not depend on k. With k = E the initial
    states are those of Gymnasium's scalar environments under the same seeds. Autoresets continue the generators.

    Raises ConfigError for arguments out of range; `step` raises gymnasium.error.InvalidAction and ResetNeeded.
    """

    env_id: ClassVar[str]
    default_max_episode_steps: ClassVar[int]
    metadata: dict[str, Any] = native_metadata(render_fps=30)
    backend: ClassVar[str] = "native"
    _renderer: Any = None

    def __init__(
        self,
        num_envs: int = 1,
        *,
        max_episode_steps: int | None = None,
        render_mode: str | None = None,
        seed: Seed = None,
    ) -> None:
        if render_mode not in (None, "rgb_array"):
            raise ConfigError(f"render_mode of a native environment must be None or 'rgb_array', got {render_mode!r}.")
        limit = self.default_max_episode_steps if max_episode_steps is None else max_episode_steps
        self.num_envs = check_count("num_envs", num_envs)
        self.max_episode_steps = check_count("max_episode_steps", limit)
        self.render_mode = render_mode
        self.single_observation_space, self.single_action_space = self.make_spaces()
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.state: FloatArray = np.empty((self.num_envs, 0))
        self._first_seeds = None if seed is None else check_seeds(seed, self.num_envs)
        self._generators: list[np.random.Generator] = []
        self._ready = False
        # Episode lengths are differences of a shared clock, and limits are checked only when one can be due: two
        # array operations fewer per step.
        self._clock = 0
        self._started: IntArray = np.zeros(self.num_envs, dtype=np.int64)
        self._limit_due = 0
        self._returns: FloatArray = np.zeros(self.num_envs)
        self._discrete = isinstance(self.single_action_space, gymnasium.spaces.Discrete)
        count = self.single_action_space.n if isinstance(self.single_action_space, gymnasium.spaces.Discrete) else 0
        self._action_count = np.array(count, dtype=np.uint64)

    @abstractmethod
    def make_spaces(self) -> tuple[gymnasium.spaces.Box, gymnasium.spaces.Discrete | gymnasium.spaces.Box]:
        """Return the observation space and the action space of one sub-environment."""

    @abstractmethod
    def sample_states(self, generator: np.random.Generator, count: int, options: Options) -> FloatArray:
        """Initial states [count, ...], drawn from `generator`; `options` are those of `reset`, empty at autoresets."""

    @abstractmethod
    def dynamics(self, state: FloatArray, action: npt.NDArray[Any]) -> tuple[FloatArray, FloatArray, BoolArray]:
        """The next state [E, ...] after `action`, the rewards [E], whether the episodes terminated [E]: new arrays."""

    @abstractmethod
    def observe(self, state: FloatArray) -> Observations:
        """Return what is seen of states [count, ...], as a new array [count, obs], float32 or uint8."""

    @property
    def elapsed_steps(self) -> IntArray:
        """Steps taken in the current episodes, [E]."""
        return self._clock - self._started

    def reset(self, *, seed: Seed = None, options: Options | None = None) -> tuple[Observations, dict[str, Any]]:
        """Start new episodes everywhere, or where `options["reset_mask"]` bool [E] says.

        `seed` renews all generators, also under a mask. Other options: see the task's class; they hold for this reset
        only. Returns the observations [E, obs] of all sub-environments and empty infos.
        Raises ConfigError for unusable seeds and options, gymnasium.error.ResetNeeded if the first reset is partial.
        """
        rows = np.flatnonzero(reset_rows(options, self.num_envs, self._ready))
        self._seed(seed)
        fresh = self._draw(rows, options or {})
        if not self._ready:
            self._hold(np.zeros((self.num_envs, *fresh.shape[1:])))
        self._start(rows, fresh)
        return self.observe(self.state), {}

    def step(self, actions: npt.NDArray[Any]) -> tuple[Observations, FloatArray, BoolArray, BoolArray, dict[str, Any]]:
        """Move all sub-environments by one step; see the class for what is returned.

        `actions` are integers [E] for discrete tasks, numbers [E, actions] otherwise; numbers beyond the space's bounds
        are clipped exactly where Gymnasium clips them.
        """
        if not self._ready:
            raise ResetNeeded("call reset before step.")
        self.state, rewards, terminated = self.dynamics(self.state, self._checked(actions))
        observations = self.observe(self.state)
        self._returns += rewards
        self._clock += 1
        if self._clock >= self._limit_due:
            truncated = self.elapsed_steps >= self.max_episode_steps
        elif np.count_nonzero(terminated):
            truncated = np.zeros(self.num_envs, dtype=np.bool_)
        else:
            return observations, rewards, terminated, np.zeros(self.num_envs, dtype=np.bool_), {}
        ended = terminated | truncated
        infos = ending_infos(ended, observations, self._returns, self.elapsed_steps)
        return self._restart(ended, observations), rewards, terminated, truncated, infos

    def render(self) -> tuple[Any, ...]:
        """The image of sub-environment 0: a tuple of one uint8 array [height, width, 3].

        A task that Gymnasium does not have draws itself in a method of its own. Raises ConfigError if it does not, and
        without render_mode="rgb_array"; gymnasium.error.ResetNeeded before the first reset.
        """
        if self.render_mode is None:
            raise ConfigError("render() needs an environment made with render_mode='rgb_array'.")
        if not self._ready:
            raise ResetNeeded("call reset before render.")
        return (self.draw(self.state[0].copy()),)

    def draw(self, state: FloatArray) -> Any:
        """Image of one state, uint8 [height, width, 3]; by default Gymnasium's of the same task.

        Raises:
            ConfigError: Gymnasium has no such task.
        """
        spec = gymnasium.registry.get(self.env_id)
        if spec is None or spec.entry_point is None:
            raise ConfigError(f"{self.env_id} does not draw itself: its class has no method draw() or render().")
        if self._renderer is None:
            self._renderer = gymnasium.make(self.env_id, render_mode=self.render_mode).unwrapped
            self._renderer.reset()
        self._renderer.state = state
        return self._renderer.render()

    def close_extras(self, **kwargs: Any) -> None:
        """Close the renderer, if one was made."""
        if self._renderer is not None:
            self._renderer.close()

    def get_state(self) -> dict[str, Any]:
        """Return everything that later steps depend on, in types that `torch.load(..., weights_only=True)` accepts.

        Raises gymnasium.error.ResetNeeded before the first reset. The generator of `action_space` is not part of it.
        """
        if not self._ready:
            raise ResetNeeded("call reset before get_state.")
        return {
            "env_id": self.env_id,
            "state": torch.from_numpy(self.state.copy(order="C")),
            "elapsed_steps": torch.from_numpy(self.elapsed_steps.copy()),
            "returns": torch.from_numpy(self._returns.copy()),
            "generators": [generator.bit_generator.state for generator in self._generators],
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue, bit for bit, from what `get_state` returned.

        Raises ConfigError if it comes from another task or another number of sub-environments, ValueError if an episode
        is not between its beginning and its time limit.
        """
        shape = (state["env_id"], len(state["state"]))
        if shape != (self.env_id, self.num_envs):
            raise ConfigError(f"this is {self.num_envs} x {self.env_id}, the saved state is {shape[1]} x {shape[0]}.")
        elapsed = state["elapsed_steps"].numpy()
        if not ((elapsed >= 0) & (elapsed < self.max_episode_steps)).all():
            raise ValueError(
                f"elapsed_steps must be between 0 and {self.max_episode_steps - 1}, got {elapsed.tolist()}"
            )
        self._hold(state["state"].numpy())
        self._clock = 0
        self._started = -elapsed
        self._limit_due = int(self._started.min()) + self.max_episode_steps
        self._returns = state["returns"].numpy().copy()
        self._generators = [np.random.default_rng(0) for _ in state["generators"]]
        for generator, saved in zip(self._generators, state["generators"], strict=True):
            generator.bit_generator.state = saved
        self._np_random, self._np_random_seed = self._generators[0], -1

    def _hold(self, state: FloatArray) -> None:
        """Keep a copy of `state` [E, ...] whose columns are contiguous, as the dynamics read them."""
        self.state = np.array(state.T, dtype=np.float64, order="C").T
        self._ready = True

    def _seed(self, seed: Seed) -> None:
        """Make new generators if a seed is given or none exist yet."""
        if seed is not None:
            self._first_seeds = check_seeds(seed, self.num_envs)
        if self._first_seeds is not None:
            self._generators = [np.random.default_rng(s) for s in self._first_seeds]
            self._np_random, self._np_random_seed = self._generators[0], self._first_seeds[0]
            self._first_seeds = None
        elif not self._generators:
            self._generators = [self.np_random]

    def _draw(self, rows: npt.NDArray[np.intp], options: Options) -> FloatArray:
        """Draw initial states [count, ...] for the ascending `rows`, each block from its own generator."""
        if len(self._generators) == 1:
            return self.sample_states(self._generators[0], len(rows), options)
        counts = np.bincount(rows // (self.num_envs // len(self._generators)))
        blocks = np.flatnonzero(counts)
        return np.concatenate([self.sample_states(self._generators[b], int(counts[b]), options) for b in blocks])

    def _start(self, rows: npt.NDArray[np.intp], fresh: FloatArray) -> None:
        """Begin episodes at `rows` in the states `fresh` [count, ...]."""
        self.state[rows] = fresh
        self._started[rows] = self._clock
        self._returns[rows] = 0.0
        self._limit_due = int(self._started.min()) + self.max_episode_steps

    def _restart(self, ended: BoolArray, observations: Observations) -> Observations:
        """Begin new episodes where `ended` [E]; return the observations [E, obs] with their first ones put in."""
        rows = np.flatnonzero(ended)
        fresh = self._draw(rows, {})
        self._start(rows, fresh)
        observations = observations.copy()
        observations[rows] = self.observe(fresh)
        return observations

    def _checked(self, actions: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the actions as int64 [E] or float64 [E, actions]; raises gymnasium.error.InvalidAction."""
        actions = np.asarray(actions)
        if actions.shape != self.action_space.shape:
            raise InvalidAction(f"actions must have shape {self.action_space.shape}, got {actions.shape}.")
        if not self._discrete:
            return actions.astype(np.float64)
        if actions.dtype.kind not in "iu":
            raise InvalidAction(f"actions must be integers, got {actions.dtype}.")
        actions = actions.astype(np.int64, copy=False)
        # Seen as unsigned, negative numbers are huge: one comparison serves both ends.
        if np.count_nonzero(actions.view(np.uint64) >= self._action_count):
            raise InvalidAction(f"actions must lie in 0 ... {int(self._action_count) - 1}, got {actions}.")
        return actions
