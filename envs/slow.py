"""A vector environment whose steps take their time: a stand-in for a remote simulator, a game server or a robot."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy.typing as npt
from gymnasium.vector import VectorEnv

from .checks import Wrapper


class SlowVectorEnv(Wrapper):
    """Sleeps in every step, without using the processor; all arrays [E, ...] are those of ``env``.

    Args:
        env: what is stepped.
        delay: seconds that each step of the batch takes in addition.
    """

    def __init__(self, env: VectorEnv[Any, Any, npt.NDArray[Any]], delay: float) -> None:
        super().__init__(env)
        self.delay = delay

    def step(self, actions: npt.NDArray[Any]) -> Any:
        """One step of all sub-environments, after the delay; see `NativeVectorEnv`."""
        time.sleep(self.delay)
        return self.env.step(actions)

    def get_state(self) -> dict[str, Any]:
        """The state of a native environment, whose steps are delayed."""
        inner: Any = self.env
        return dict(inner.get_state())

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue from what `get_state` returned."""
        inner: Any = self.env
        inner.set_state(state)
