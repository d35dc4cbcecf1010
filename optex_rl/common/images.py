"""Which spaces are of images, and where their channels are: the rules of stable-baselines3."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium import Space
from gymnasium.spaces import Box


def is_image(space: Space[Any]) -> bool:
    """Whether a space is one of images: a Box of three axes, uint8 from 0 to 255."""
    if not isinstance(space, Box) or len(space.shape) != 3 or space.dtype != np.uint8:
        return False
    return bool((space.low == 0).all() and (space.high == 255).all())


def has_channels_first(space: Space[Any]) -> bool:
    """Whether images are [C, H, W], because the first axis is the shortest, or else [H, W, C]."""
    return int(np.argmin(space.shape or ())) == 0


def describe_doubt(space: Space[Any]) -> str | None:
    """What may not be meant where a Box is taken as an image, or as mere numbers; None if there is no doubt."""
    if not isinstance(space, Box):
        return None
    if is_image(space):
        words = "is taken to have its channels in the last axis, although the second one is the shortest"
        return f"the image of shape {list(space.shape)} {words}" if int(np.argmin(space.shape)) == 1 else None
    if len(space.shape) == 3 or (len(space.shape) == 2 and space.dtype == np.uint8):
        words = "is flattened for an MLP: an image has three axes and dtype uint8 from 0 to 255"
        return f"{space} {words}; with cnn 'none' nothing is said of it"
    return None
