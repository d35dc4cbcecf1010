"""One environment in Gymnasium's scalar interface, made of a batch of one: for tasks that Gymnasium does not have."""

from __future__ import annotations

from typing import Any, SupportsFloat

import gymnasium
import numpy as np

from .native import NativeVectorEnv


class SingleEnv(gymnasium.Env[Any, Any]):
    """A natively vectorised task with one sub-environment, as a scalar environment.

    Args:
        task: the class of the task.
        render_mode: "rgb_array" or None.
        kwargs: arguments of the task.
    """

    def __init__(self, task: type[NativeVectorEnv], render_mode: str | None = None, **kwargs: Any) -> None:
        self.envs = task(1, render_mode=render_mode, **kwargs)
        self.render_mode = render_mode
        self.metadata = {name: value for name, value in self.envs.metadata.items() if name != "autoreset_mode"}
        self.observation_space, self.action_space = self.envs.single_observation_space, self.envs.single_action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start an episode."""
        super().reset(seed=seed)
        observations, _ = self.envs.reset(seed=seed, options=options)
        return observations[0], {}

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Move by one step; the observation is what the step led to, also where the episode ended."""
        observations, rewards, terminated, truncated, infos = self.envs.step(np.asarray(action)[None])
        (seen,) = infos.get("final_obs", observations)
        return seen, float(rewards[0]), bool(terminated[0]), bool(truncated[0]), {}

    def render(self) -> Any:
        """Image of the environment, uint8 [height, width, 3]."""
        return self.envs.render()[0]

    def close(self) -> None:
        """Close the environment."""
        self.envs.close()
