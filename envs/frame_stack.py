"""The last observations as one, so that a policy sees motion.

Axes: E sub-environments, k frames.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import Space
from gymnasium.spaces import Box, Dict
from gymnasium.vector import VectorEnv
from gymnasium.vector.utils import batch_space

from ..common.errors import ConfigError
from ..common.images import has_channels_first, is_image
from .checks import Wrapper, check_count

Array = npt.NDArray[Any]


class FrameStack(Wrapper):
    """The last k observations of each sub-environment, the newest last, zeros before an episode began.

    As `VecFrameStack` of stable-baselines3 has them: images along their channels, other Boxes along the last axis, of a
    Dict every Box; what else is in a Dict stays as it is.

    Args:
        env: an environment of `make_vec`.
        frames: k.

    Raises:
        ConfigError: k is no positive integer, or there is no Box.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any], frames: int) -> None:
        super().__init__(env)
        self.frames = check_count("frame_stack", frames)
        space = env.single_observation_space
        boxes = space.spaces if isinstance(space, Dict) else {None: space}
        # The axis of [E, ...] along which the frames of each Box are put.
        self._axes = {key: 1 + _frame_axis(box) for key, box in boxes.items() if isinstance(box, Box) and box.shape}
        if not self._axes:
            raise ConfigError(
                f"frame_stack must be 1: frames are stacked along an axis of a Box, and {space} has none."
            )
        self.single_observation_space = self._stacked_space(space)
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self._stack: dict[Any, Array] = {}  # [E, ...] by key

    def _stacked_space(self, space: Space[Any]) -> Space[Any]:
        if isinstance(space, Dict):
            return Dict({k: self._stacked_box(k, box) if k in self._axes else box for k, box in space.items()})
        return self._stacked_box(None, space)

    def _stacked_box(self, key: Any, box: Any) -> Box:
        axis = self._axes[key] - 1
        low, high = (np.concatenate(self.frames * [bound], axis) for bound in (box.low, box.high))
        return Box(low, high, dtype=box.dtype)

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Start new episodes everywhere, or where ``options["reset_mask"]`` says; returns observations and infos."""
        rows = (options or {}).get("reset_mask", np.ones(self.num_envs, np.bool_))
        obs, infos = self.env.reset(seed=seed, options=options)
        begun = self._begin(obs)
        kept = {key: np.where(_as_column(rows, new), new, self._stack.get(key, new)) for key, new in begun.items()}
        return self._observe(obs, kept), infos

    def step(self, actions: Any) -> tuple[Any, Array, Array, Array, dict[str, Any]]:
        """Move all sub-environments by one step; ``infos["final_obs"]`` has the last frames of episodes that ended.

        Returns what `NativeVectorEnv.step` does.
        """
        obs, rewards, terminated, truncated, infos = self.env.step(actions)
        stack = self._push(self._stack, infos.get("final_obs", obs))
        if "final_obs" in infos:
            ended = terminated | truncated
            infos["final_obs"] = self._observe(infos["final_obs"], stack)
            begun = self._begin(obs)
            stack = {key: np.where(_as_column(ended, old), begun[key], old) for key, old in stack.items()}
        return self._observe(obs, stack), rewards, terminated, truncated, infos

    def _boxes(self, obs: Any) -> dict[Any, Array]:
        return {key: obs if key is None else obs[key] for key in self._axes}

    def _begin(self, obs: Any) -> dict[Any, Array]:
        """Stacks whose newest frame is ``obs`` and whose others are zero."""
        zeros = {
            key: np.repeat(np.zeros_like(box), self.frames, self._axes[key]) for key, box in self._boxes(obs).items()
        }
        return self._push(zeros, obs)

    def _push(self, stack: dict[Any, Array], obs: Any) -> dict[Any, Array]:
        """Stacks without their oldest frame and with ``obs`` as the newest."""
        pushed = {}
        for key, box in self._boxes(obs).items():
            axis = self._axes[key]
            kept = np.split(stack[key], [box.shape[axis]], axis)[1]
            pushed[key] = np.concatenate([kept, box], axis)
        return pushed

    def _observe(self, obs: Any, stack: dict[Any, Array]) -> Any:
        """Keep the stacks; returns the observation that they make with what is not stacked of ``obs``."""
        self._stack = stack
        return {**obs, **stack} if isinstance(self.single_observation_space, Dict) else stack[None]

    def get_state(self) -> dict[str, Any]:
        """The state of a native environment, and the frames."""
        frames = {key: torch.from_numpy(stack.copy()) for key, stack in self._stack.items()}
        return {"env": self.unwrapped.get_state(), "frames": frames}  # type: ignore[attr-defined]

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue from what `get_state` returned."""
        self.unwrapped.set_state(state["env"])  # type: ignore[attr-defined]
        self._stack = {key: stack.numpy().copy() for key, stack in state["frames"].items()}


def _frame_axis(box: Box) -> int:
    return 0 if is_image(box) and has_channels_first(box) else len(box.shape) - 1


def _as_column(rows: Array, like: Array) -> Array:
    """bool [E] in a shape that goes with [E, ...]."""
    return rows.reshape(-1, *(1 for _ in like.shape[1:]))
