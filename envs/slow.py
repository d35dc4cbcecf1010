"""A vector environment whose steps take their time: a stand-in for a remote simulator, a game server or a robot."""

from __future__ import annotations

import time
from typing import Any

import numpy.typing as npt
from gymnasium.vector import VectorEnv, VectorWrapper


class SlowVectorEnv(VectorWrapper[Any, Any, Any, npt.NDArray[Any], Any]):
    """Sleeps in every step, without using the processor.

    Args:
        env: what is stepped.
        delay: seconds that each step of the batch takes in addition.
    """

    def __init__(self, env: VectorEnv[Any, Any, npt.NDArray[Any]], delay: float) -> None:
        super().__init__(env)
        self.delay = delay

    def step(self, actions: npt.NDArray[Any]) -> Any:
        """One step of all sub-environments, after the delay."""
        time.sleep(self.delay)
        return self.env.step(actions)
