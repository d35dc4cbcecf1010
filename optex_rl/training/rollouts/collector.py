"""Collection of experience at N parameter sets at once, from one vector environment.

Axes: ``N`` points, ``T`` steps, ``E`` environments per point, ``O`` entries of an observation's row, ``m`` action
components.
Sub-environment ``n·E + e`` belongs to point ``n``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import Tensor

from ...agents import Batch, BoundPolicy, ObservationLayout
from ...agents.networks.observations import first_numbers
from ...common.errors import ConfigError
from ...envs import NativeVectorEnv
from .episodes import Episode
from .normalization import Normalizer
from .seeding import spawn_seeds

Array = npt.NDArray[Any]


class Rollout(NamedTuple):
    """What one collection gives: a batch for the agents and the episodes that ended in it."""

    batch: Batch
    episodes: list[Episode]


class Collector:
    """Steps N × E environments with N policies; episodes continue from one collection to the next.

    Every point has random numbers of its own, for actions and for environments, so its trajectory does not depend on N.

    Args:
        envs: N·E sub-environments with SAME_STEP autoreset, as `optex_rl.envs.make_vec` gives them.
        num_points: N.
        n_steps: T, steps per environment and collection.
        seed: the seed of the run.
        normalizer: normalises observations and rewards; by default they stay as they are. It is frozen here: its owner
            updates it between collections.
        noise_repeat: steps for which the random numbers of the actions are held.
        first_point: number of the first of the N points among those of the run, which decides its random numbers.

    Raises:
        ConfigError: N does not divide the number of sub-environments, or they do not reset in the same step.
    """

    def __init__(
        self,
        envs: VectorEnv[Any, Any, Any],
        num_points: int,
        n_steps: int,
        seed: int,
        normalizer: Normalizer | None = None,
        noise_repeat: int = 1,
        first_point: int = 0,
    ) -> None:
        if envs.num_envs % num_points:
            raise ConfigError(f"the number of environments must be a multiple of {num_points}, got {envs.num_envs}")
        if envs.metadata.get("autoreset_mode") != AutoresetMode.SAME_STEP:
            raise ConfigError(
                "the environments must use autoreset mode SAME_STEP; make them with optex_rl.envs.make_vec"
            )
        self.envs = envs
        self.shape = (num_points, n_steps, envs.num_envs // num_points)
        self.generators = [np.random.default_rng(s) for s in spawn_seeds(seed, 1, num_points, first_point)]
        # One for each point, where Gymnasium's signature has one for all.
        seeds: Any = spawn_seeds(seed, 0, num_points, first_point)
        obs, _ = envs.reset(seed=seeds)
        self.layout = ObservationLayout(envs.single_observation_space)
        self._obs = self.layout.encode(obs)  # not normalised
        self.broken = np.zeros(envs.num_envs, np.bool_)
        self.normalizer = normalizer or Normalizer(self.layout.box_numbers, envs.num_envs, gamma=1.0)
        self.noise_repeat = noise_repeat

    def collect(
        self,
        policy: BoundPolicy,
        device: torch.device | str = "cpu",
        before_step: Callable[[], object] | None = None,
    ) -> Rollout:
        """T steps of all environments.

        Afterwards ``broken [N·E]`` says which environments gave observations or rewards that are NaN or infinite. They
        have started new episodes, and those that ended in such a return are not among the episodes.

        Args:
            policy: the N policies; they keep what they compute from the batch's observations.
            device: where the policies live, and the batch will.
            before_step: called before every step.
        """
        N, T, E = self.shape
        # All random numbers of the window at once, per point: [T, N, E, k].
        draws = -(-T // self.noise_repeat)
        noise = np.stack([policy.distribution.noise(g, (draws, E)) for g in self.generators], axis=1)
        noises = torch.from_numpy(noise.repeat(self.noise_repeat, axis=0)).to(device)
        window = _Window(T, N * E, self.layout.numbers)
        steps = []
        with torch.no_grad():
            for t in range(T):
                if before_step is not None:
                    before_step()
                seen = torch.from_numpy(self.normalizer.observations(self._obs))
                inputs, computed = policy.act(seen.view(N, E, -1).to(device))
                steps.append(computed)
                actions = policy.distribution.sample(inputs, noises[t]).flatten(0, 1).cpu().numpy()
                obs, *outcome, infos = self.envs.step(policy.distribution.to_env(actions))
                window.add(self._obs, actions, *outcome)
                self._obs = self.layout.encode(obs)
                if "final_obs" in infos:
                    window.end_episodes(self.layout.encode(infos["final_obs"]), infos["episode"])
        self.broken = window.broken(self._obs)
        self.normalizer.see(window.obs, window.rewards, window.terminated | window.truncated, self.broken)
        rollout = Rollout(window.batch(self._obs, N, device, self.normalizer), window.episodes(E))
        policy.remember(rollout.batch.obs.flatten(1, 2), steps)
        if self.broken.any():
            self._restart(self.broken)
        return rollout

    def _restart(self, rows: Array) -> None:
        """New episodes in the environments ``rows [N·E]``, without seeding their generators again."""
        obs, _ = self.envs.reset(options={"reset_mask": rows})
        self._obs = np.where(rows[:, None], self.layout.encode(obs), self._obs)

    def state_dict(self) -> dict[str, Any]:
        """Random numbers and, of natively vectorised tasks, the environments: a collection continues exactly.

        Other environments cannot save their state: after loading they start new episodes, with seeds drawn from the
        saved generators. The owner of the normalizer saves its statistics, and loads them first.
        """
        envs: Any = self.envs
        return {
            "generators": [g.bit_generator.state for g in self.generators],
            "obs": torch.from_numpy(self._obs.copy()),
            "envs": envs.get_state() if isinstance(envs.unwrapped, NativeVectorEnv) else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a state from `state_dict`."""
        for generator, saved in zip(self.generators, state["generators"], strict=True):
            generator.bit_generator.state = saved
        envs: Any = self.envs
        if isinstance(envs.unwrapped, NativeVectorEnv):
            envs.set_state(state["envs"])
            self._obs = state["obs"].numpy().copy()
        else:
            seeds: Any = [int(g.integers(2**32)) for g in self.generators]
            obs, _ = self.envs.reset(seed=seeds)
            self._obs = self.layout.encode(obs)
            self.normalizer.reset_episodes()


class _Window:
    """The arrays of one collection, time first while it runs: ``[T, N·E, …]``."""

    def __init__(self, n_steps: int, num_envs: int, numbers: int) -> None:
        self._numbers = numbers  # of an observation, the rest being pixels
        self._obs: list[Array] = []
        self._actions: list[Array] = []
        self.rewards = np.empty((n_steps, num_envs), np.float32)
        self.terminated = np.empty((n_steps, num_envs), np.bool_)
        self.truncated = np.empty((n_steps, num_envs), np.bool_)
        self._final: list[tuple[int, int, Array]] = []  # (t, n·E + e, successor observation)
        self._episodes: list[tuple[int, int, float, int]] = []  # t, n·E + e, return, length

    def add(self, obs: Array, actions: Array, rewards: Array, terminated: Array, truncated: Array) -> None:
        """One step of all environments."""
        t = len(self._obs)
        self._obs.append(obs)
        self._actions.append(actions)
        self.rewards[t] = rewards
        self.terminated[t] = terminated
        self.truncated[t] = truncated

    def end_episodes(self, final_obs: Array, episode: dict[str, Array]) -> None:
        """Note the episodes that ended in the step just added."""
        t = len(self._obs) - 1
        terminated, truncated = self.terminated[t], self.truncated[t]
        for i in np.flatnonzero(terminated | truncated).tolist():
            self._episodes.append((t, i, float(episode["r"][i]), int(episode["l"][i])))
            if not terminated[i]:
                self._final.append((t, i, final_obs[i]))

    def episodes(self, envs_per_point: int) -> list[Episode]:
        """The episodes that ended in a finite return, in the order in which they did."""
        finite = (episode for episode in self._episodes if math.isfinite(episode[2]))
        return [Episode(i // envs_per_point, r, length, t) for t, i, r, length in finite]

    @cached_property
    def obs(self) -> Array:
        """The observations of the full window as they came, ``[T, N·E, O]``."""
        return np.stack(self._obs)

    def broken(self, last_obs: Array) -> Array:
        """Which environments gave NaN or infinite observations or rewards, ``[N·E]``; ``last_obs`` are those now."""
        broken = np.zeros(len(last_obs), np.bool_)
        seen, last = first_numbers(self.obs, self._numbers), first_numbers(last_obs, self._numbers)
        checks: list[tuple[Array, int | tuple[int, int]]] = [(self.rewards, 0), (seen, (0, 2)), (last, 1)]
        for values, but_environments in checks:
            finite = np.isfinite(values)
            if not finite.all():
                broken |= ~finite.all(axis=but_environments)
        for _, i, final_obs in self._final:
            broken[i] |= not np.isfinite(first_numbers(final_obs, self._numbers)).all()
        return broken

    def batch(self, last_obs: Array, num_points: int, device: torch.device | str, normalizer: Normalizer) -> Batch:
        """The window as a normalised batch ``[N, T, E, …]``; ``last_obs [N·E, O]`` follow its last step."""

        def by_point(array: Array) -> Tensor:
            shape = (array.shape[0], num_points, -1, *array.shape[2:])
            return torch.from_numpy(np.ascontiguousarray(array.reshape(shape).swapaxes(0, 1))).to(device)

        T, num_envs = self.rewards.shape
        unfinished = np.flatnonzero(~(self.terminated[-1] | self.truncated[-1])).tolist()
        final = self._final + [(T - 1, i, last_obs[i]) for i in unfinished]
        final = [(t, i, normalizer.observations(row)) for t, i, row in final]
        final_obs, final_index = pad_final(final, num_points, num_envs // num_points, last_obs[0])
        return Batch(
            obs=by_point(normalizer.observations(self.obs)),
            actions=by_point(np.stack(self._actions)),
            rewards=by_point(normalizer.rewards(self.rewards)),
            terminated=by_point(self.terminated),
            truncated=by_point(self.truncated),
            final_obs=final_obs.to(device),
            final_index=final_index.to(device),
        )


def pad_final(
    final: Sequence[tuple[int, int, Array]], num_points: int, envs_per_point: int, like: Array
) -> tuple[Tensor, Tensor]:
    """Successor observations that are not the next row, as many for every point: ``K`` is the most any point has.

    Args:
        final: (step t, sub-environment n·E + e, observation ``[O]``) of each.
        num_points: N.
        envs_per_point: E.
        like: an observation, ``[O]``.

    Returns:
        Observations ``[N, K, O]``, zero in padding, and flat rows ``t·E + e`` ``[N, K]``, −1 in padding.
    """
    rows: list[list[tuple[int, Array]]] = [[] for _ in range(num_points)]
    for t, i, obs in final:
        point, e = divmod(i, envs_per_point)
        rows[point].append((t * envs_per_point + e, obs))
    K = max(map(len, rows))
    final_obs = np.zeros((num_points, K, *like.shape), like.dtype)
    final_index = np.full((num_points, K), -1, np.int64)
    for point, entries in enumerate(rows):
        for k, (row, obs) in enumerate(entries):
            final_obs[point, k], final_index[point, k] = obs, row
    return torch.from_numpy(final_obs), torch.from_numpy(final_index)
