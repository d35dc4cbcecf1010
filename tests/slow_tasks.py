"""A task whose episodes last for hours, found as ``--env slow_tasks:Slow-v0`` with this folder on the path."""

from __future__ import annotations

import time
from typing import Any

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete

SECONDS = 0.02  # of a step


class Slow(gymnasium.Env[np.ndarray, Any]):
    """Ends by its time limit alone."""

    observation_space = Box(-1.0, 1.0, (2,))
    action_space = Discrete(2)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        time.sleep(SECONDS)
        return np.zeros(2, np.float32), 1.0, False, False, {}


gymnasium.register("Slow-v0", entry_point="slow_tasks:Slow", max_episode_steps=10**6)
