"""The natively vectorised environments as a ``VecEnv`` of stable-baselines3.

Axes: E sub-environments.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv

from ..common.errors import ConfigError
from ..envs import NativeVectorEnv, make_vec

Infos = list[dict[str, Any]]


def make_sb3_vec_env(
    env_id: str,
    n_envs: int = 1,
    *,
    seed: int | None = None,
    render_mode: str | None = "rgb_array",
    **env_kwargs: Any,
) -> NativeVecEnv:
    """E = ``n_envs`` copies of a classic-control task that NumPy steps as one batch, for stable-baselines3.

    What ``stable_baselines3.common.env_util.make_vec_env`` gives for the same arguments, but faster: the same episodes
    under the same seed, and the same infos.

    Args:
        env_id: one of `optex_rl.envs.NATIVE`.
        n_envs: number of sub-environments.
        seed: of the first reset; sub-environment i gets ``seed + i``.
        render_mode: ``"rgb_array"`` or None.
        env_kwargs: arguments of the task, and ``max_episode_steps``.

    Raises:
        ConfigError: the task is not native, or it refuses an argument.
    """
    env = make_vec(env_id, n_envs, backend="native", render_mode=render_mode, **env_kwargs)
    assert isinstance(env, NativeVectorEnv)
    vec_env = NativeVecEnv(env)
    if seed is not None:
        vec_env.seed(seed)
    return vec_env


class NativeVecEnv(VecEnv):
    """A `NativeVectorEnv` with the interface of ``VecEnv``.

    Episodes, seeds, ``terminal_observation`` and ``TimeLimit.truncated`` are those of ``DummyVecEnv``; infos of ended
    episodes are those of ``Monitor``, so `env_is_wrapped` says yes to it. There are no scalar environments inside:
    attributes are those of the batch, arrays ``[E, ...]`` and spaces by sub-environment.

    Args:
        env: the environment, not yet reset.
    """

    def __init__(self, env: NativeVectorEnv) -> None:
        self.env = env
        self.spec = env.spec
        self._start = time.time()
        self._actions: npt.NDArray[Any] = np.empty(0)
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

    def reset(self) -> npt.NDArray[Any]:
        """Start new episodes everywhere; returns observations ``[E, obs]``. Seeds and options are used once.

        Raises:
            ConfigError: the sub-environments were given different options.
        """
        if any(options != self._options[0] for options in self._options):
            raise ConfigError(f"a native environment takes one set of reset options for all, got {self._options}")
        seeds = [seed for seed in self._seeds if seed is not None]
        observations, _ = self.env.reset(seed=seeds or None, options=self._options[0] or None)
        self.reset_infos = [{} for _ in range(self.num_envs)]
        self._reset_seeds()
        self._reset_options()
        return observations

    def step_async(self, actions: npt.NDArray[Any]) -> None:
        """Keep actions ``[E]`` or ``[E, actions]`` for `step_wait`."""
        self._actions = actions

    def step_wait(self) -> tuple[npt.NDArray[Any], npt.NDArray[np.float32], npt.NDArray[np.bool_], Infos]:
        """Step; returns observations ``[E, obs]``, rewards ``[E]``, whether episodes ended ``[E]``, and E infos."""
        observations, rewards, terminated, truncated, batch_infos = self.env.step(self._actions)
        infos: Infos = [{"TimeLimit.truncated": False} for _ in range(self.num_envs)]
        if batch_infos:
            elapsed = round(time.time() - self._start, 6)
            final, episode = batch_infos["final_obs"], batch_infos["episode"]
            for i in np.flatnonzero(batch_infos["_episode"]).tolist():
                infos[i]["TimeLimit.truncated"] = bool(truncated[i] and not terminated[i])
                infos[i]["terminal_observation"] = final[i].copy()
                infos[i]["episode"] = {"r": round(float(episode["r"][i]), 6), "l": int(episode["l"][i]), "t": elapsed}
                self.reset_infos[i] = {}
        return observations, rewards.astype(np.float32), terminated | truncated, infos

    def close(self) -> None:
        """Close the environment."""
        self.env.close()

    def get_images(self) -> Sequence[npt.NDArray[np.uint8] | None]:
        """One image ``[height, width, 3]`` for each sub-environment; None without ``render_mode="rgb_array"``."""
        return [self._image(i) if self.render_mode == "rgb_array" else None for i in range(self.num_envs)]

    def _image(self, index: int) -> npt.NDArray[np.uint8]:
        """Image of one sub-environment: it takes the place of the first, which is the one that is drawn."""
        first = self.env.state[0].copy()
        self.env.state[0] = self.env.state[index]
        try:
            (image,) = self.env.render()
        finally:
            self.env.state[0] = first
        drawn: npt.NDArray[np.uint8] = image
        return drawn

    def get_attr(self, attr_name: str, indices: int | Iterable[int] | None = None) -> list[Any]:
        """An attribute of the batch for each of the chosen sub-environments: rows of arrays ``[E, ...]``, else itself.

        Raises:
            AttributeError: there is none of that name.
        """
        name = f"single_{attr_name}" if attr_name in ("observation_space", "action_space") else attr_name
        value = getattr(self.env, name)
        per_env = isinstance(value, np.ndarray) and value.shape[:1] == (self.num_envs,)
        return [value[i] if per_env else value for i in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: int | Iterable[int] | None = None) -> None:
        """Set rows of an array ``[E, ...]``, or an attribute of the batch.

        Raises:
            ConfigError: an attribute of the whole batch was to be set for some sub-environments only.
        """
        chosen = list(self._get_indices(indices))
        current = getattr(self.env, attr_name, None)
        if isinstance(current, np.ndarray) and current.shape[:1] == (self.num_envs,):
            current[chosen] = value
        elif sorted(chosen) == list(range(self.num_envs)):
            setattr(self.env, attr_name, value)
        else:
            raise ConfigError(f"{attr_name!r} is one for all {self.num_envs} sub-environments; leave out indices")

    def env_method(
        self, method_name: str, *method_args: Any, indices: int | Iterable[int] | None = None, **method_kwargs: Any
    ) -> list[Any]:
        """``render`` and ``get_wrapper_attr`` of the chosen sub-environments.

        Raises:
            ConfigError: any other method: one sub-environment alone cannot be stepped or reset.
        """
        if method_name == "get_wrapper_attr":
            return self.get_attr(*method_args, **{**method_kwargs, "indices": indices})
        if method_name == "render":
            return [self._image(i) for i in self._get_indices(indices)]
        raise ConfigError(
            f"a native environment has no {method_name!r} for single sub-environments; "
            "stable_baselines3.common.env_util.make_vec_env makes environments that do"
        )

    def env_is_wrapped(
        self, wrapper_class: type[gymnasium.Wrapper[Any, Any, Any, Any]], indices: int | Iterable[int] | None = None
    ) -> list[bool]:
        """True for ``Monitor``, whose infos these environments give; False for any other wrapper."""
        return [issubclass(Monitor, wrapper_class) for _ in self._get_indices(indices)]
