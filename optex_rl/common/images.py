"""Which spaces are of images, and where their channels are: the rules of stable-baselines3."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import Space
from gymnasium.spaces import Box

from .errors import ConfigError


def is_image(space: Space[Any]) -> bool:
    """Whether a space is one of images: a Box of three axes, uint8 from 0 to 255."""
    if not isinstance(space, Box) or len(space.shape) != 3 or space.dtype != np.uint8:
        return False
    return bool((space.low == 0).all() and (space.high == 255).all())


def has_channels_first(space: Space[Any]) -> bool:
    """Whether images are [C, H, W], because the first axis is the shortest, or else [H, W, C].

    Raises:
        ConfigError: the second axis is the shortest, so that it is neither.
    """
    shape = space.shape or ()
    shortest = int(np.argmin(shape))
    if shortest == 1:
        raise ConfigError(
            f"The image of shape {list(shape)} has its shortest axis in the middle: channels must come first or last."
        )
    return shortest == 0
