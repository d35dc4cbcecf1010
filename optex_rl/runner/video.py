"""A video of a trained policy: one episode as an animated GIF."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from gymnasium.error import DependencyNotInstalled
from gymnasium.vector import VectorEnv
from torch import nn

from ..common.errors import ConfigError, RunFolderError
from ..training.builders import make_envs
from ..training.config import TrainConfig
from ..training.rollouts.evaluation import evaluate_policy
from ..training.rollouts.normalization import Normalizer

Frame = npt.NDArray[np.uint8]

INSTALL: Final = "a video needs packages that are not installed; run: pip install 'optex-rl[video]'"
MAX_FPS: Final = 30  # of the video; of faster tasks only some frames are kept, so that the speed stays right


def check_can_record(path: Path) -> None:
    """Find out early what would keep a video from being written.

    Raises:
        ConfigError: the path does not end in .gif, or a package is missing.
        RunFolderError: its folder is missing.
    """
    if path.suffix.lower() != ".gif":
        raise ConfigError(f"a video is written as GIF: its path must end in .gif, got {str(path)!r}")
    if not path.parent.is_dir():
        raise RunFolderError(f"video {path} cannot be written: there is no folder {str(path.parent)!r}")
    if find_spec("PIL") is None:
        raise ConfigError(INSTALL)


def record_episode(
    config: TrainConfig, policy: nn.Module, seed: int, normalizer: Normalizer | None, path: Path
) -> tuple[float, int]:
    """Play one episode with the most likely actions and write it to ``path``, a GIF.

    It begins in the state in which the first episode of `evaluate_policy` under the same seed begins.

    Returns:
        The return of the episode and its length in steps.

    Raises:
        ConfigError: the path does not end in .gif, a package is missing, or the task cannot be drawn.
        RunFolderError: the file cannot be written.
    """
    check_can_record(path)
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    envs = make_envs(config, 1, render_mode="rgb_array")
    frames: list[Frame] = []
    try:
        (episode_return,) = evaluate_policy(policy, envs, seed, normalizer, lambda: frames.append(draw(envs)))
    except DependencyNotInstalled as error:
        raise ConfigError(INSTALL) from error
    finally:
        envs.close()
    save_gif(path, frames, envs.metadata.get("render_fps", MAX_FPS))
    return episode_return, len(frames)


def draw(envs: VectorEnv[Any, Any, Any]) -> Frame:
    """Image of sub-environment 0, uint8 [height, width, 3]."""
    images = envs.render()
    frame = None if images is None else images[0]
    if not isinstance(frame, np.ndarray):
        raise ConfigError("this task does not draw itself in render_mode 'rgb_array'")
    return frame


def save_gif(path: Path, frames: list[Frame], fps: float) -> None:
    """Write frames [height, width, 3] that followed each other at ``fps`` per second."""
    from PIL import Image

    every = -(-int(fps) // MAX_FPS)
    # The octree is many times faster than the default median cut; these drawings have few colours.
    images = [Image.fromarray(frame).quantize(method=Image.Quantize.FASTOCTREE) for frame in frames[::every]]
    try:
        images[0].save(path, save_all=True, append_images=images[1:], duration=1000 * every / fps, loop=0)
    except OSError as error:
        raise RunFolderError(f"video {path} cannot be written: {error.strerror or error}") from error
