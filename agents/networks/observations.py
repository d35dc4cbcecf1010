"""Observations as rows of numbers, whatever their space: how they are packed, and how networks unpack them.

A row has the parts of an observation one after the other: the numbers of every Box that is no image, then the ones and
zeros of Discrete, MultiDiscrete and MultiBinary, then the pixels of images. Without images it is float32. With images
it is uint8, a byte for each pixel and four for each number before them, so that an image is kept as it came, in a
quarter of the memory, and one array serves every space.

Axes: ... any leading shape, O entries of a row, F numbers that are no pixels, P pixels, B rows; C channels, H × W
pixels of an image.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

import gymnasium
import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from gymnasium.vector.utils import batch_space
from torch import Tensor

from ...common.errors import ConfigError
from ...common.images import has_channels_first, is_image

Array = npt.NDArray[Any]
BYTES: Final = 4  # of a float32
NUMBERS, ONES, PIXELS = range(3)  # kinds of parts, in their order in a row


class Part(NamedTuple):
    """One part of a row.

    Attributes:
        key: of the part in a Dict; None where the observation is no Dict.
        space: of the part.
        size: numbers, or pixels.
        kind: NUMBERS of a Box; ONES and zeros of Discrete, MultiDiscrete or MultiBinary; PIXELS of an image.
    """

    key: str | None
    space: gymnasium.Space[Any]
    size: int
    kind: int


class ObservationLayout:
    """How observations of a space are laid out in a row.

    Args:
        space: of one observation: Box, Discrete, MultiDiscrete, MultiBinary, or a Dict of these.

    Attributes:
        parts: in the order of the row: `plain` ones, then `images`.
        size: O.
        dtype: of the rows, float32 or uint8.
        numbers: F.
        box_numbers: how many of them, from the first, are numbers of a Box: those that may be normalised.
        features: F + P.

    Raises:
        ConfigError: any other space, or a Dict within a Dict.
    """

    def __init__(self, space: gymnasium.Space[Any]) -> None:
        self.space = space
        inner: Mapping[Any, gymnasium.Space[Any]] = space.spaces if isinstance(space, spaces.Dict) else {None: space}
        parts = [Part(key, part, *_size_and_kind(part, space)) for key, part in inner.items()]
        if not parts:
            raise ConfigError("The observation space Dict() is not supported: there is nothing in it.")
        self.parts = sorted(parts, key=lambda part: part.kind)
        self.plain = [part for part in self.parts if part.kind != PIXELS]
        self.images = [part for part in self.parts if part.kind == PIXELS]
        self.box_numbers = sum(part.size for part in self.plain if part.kind == NUMBERS)
        self.numbers = sum(part.size for part in self.plain)
        pixels = sum(part.size for part in self.images)
        self.features = self.numbers + pixels
        self.dtype: np.dtype[Any] = np.dtype(np.uint8 if self.images else np.float32)
        # Rows of whole floats, since torch reads no others as floats.
        padding = -pixels % BYTES if self.numbers else 0
        self.size = BYTES * self.numbers + pixels + padding if self.images else self.numbers

    def encode(self, obs: Any) -> Array:
        """Rows [..., O] of observations as a vector environment returns them: arrays [..., *shape], or a dictionary.

        Of a float32 Box, or of images alone, it is a view and no copy.
        """
        if not isinstance(self.space, spaces.Dict):
            return _encode(self.space, np.asarray(obs)).astype(self.dtype, copy=False)
        first = self.parts[0]
        leading = np.shape(obs[first.key])
        rows = np.zeros((*leading[: len(leading) - len(first.space.shape or ())], self.size), self.dtype)
        _fill(first_numbers(rows, self.numbers), self.plain, obs)
        _fill(rows[..., BYTES * self.numbers :], self.images, obs)
        return rows

    def flat(self, rows: Tensor) -> Tensor:
        """All numbers and all pixels, these divided by 255: [..., O] -> float32 [..., F + P]; for an MLP."""
        if not self.images:
            return rows
        end = BYTES * self.numbers
        pixels = rows[..., end : end + self.features - self.numbers].float() / 255
        return pixels if not self.numbers else torch.cat([self._numbers(rows), pixels], dim=-1)

    def split(self, rows: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Numbers float32 [..., F], and the images float32 [..., C, H, W] divided by 255."""
        images, start = [], BYTES * self.numbers
        for part in self.images:
            images.append(_as_image(rows[..., start : start + part.size], part.space))
            start += part.size
        return self._numbers(rows), images

    def decode(self, rows: Tensor) -> Any:
        """Observations as a network takes them, from rows [..., O]; the counterpart of `encode`.

        Numbers are in the shape of their space, Discrete and MultiDiscrete one-hot, MultiBinary ones and zeros, images
        [..., C, H, W] divided by 255; all float32. A dictionary for a Dict.
        """
        numbers, images = self.split(rows)
        found = {part.key: image for part, image in zip(self.images, images, strict=True)}
        columns = torch.split(numbers, [part.size for part in self.plain], dim=-1) if self.plain else []
        for part, column in zip(self.plain, columns, strict=True):
            shaped = part.kind == NUMBERS or isinstance(part.space, spaces.MultiBinary)
            found[part.key] = column.reshape(*column.shape[:-1], *(part.space.shape or ())) if shaped else column
        return found if isinstance(self.space, spaces.Dict) else found[None]

    def _numbers(self, rows: Tensor) -> Tensor:
        if not self.images:
            return rows
        return rows[..., : BYTES * self.numbers].view(torch.float32) if self.numbers else rows[..., :0].float()


def _size_and_kind(part: gymnasium.Space[Any], space: gymnasium.Space[Any]) -> tuple[int, int]:
    """Numbers or pixels of one part of a space, and what they are, see `Part`."""
    if isinstance(part, spaces.Box):
        return math.prod(part.shape), PIXELS if is_image(part) else NUMBERS
    if isinstance(part, spaces.Discrete):
        return int(part.n), ONES
    if isinstance(part, spaces.MultiDiscrete):
        return int(part.nvec.sum()), ONES
    if isinstance(part, spaces.MultiBinary):
        return math.prod(part.shape), ONES
    allowed = "Box, Discrete, MultiDiscrete, MultiBinary"
    if part is space:
        raise ConfigError(f"The observation space {space} is not supported: use {allowed}, or a Dict of these.")
    raise ConfigError(
        f"The observation space {space} is not supported: what is in a Dict must be {allowed}; "
        "gymnasium.wrappers.FlattenObservation makes one Box of it."
    )


def _fill(rows: Array, parts: Iterable[Part], obs: Mapping[Any, Any]) -> None:
    """Write parts of a dictionary into rows [..., size of all], one after the other."""
    start = 0
    for part in parts:
        rows[..., start : start + part.size] = _encode(part.space, np.asarray(obs[part.key]))
        start += part.size


def _encode(space: gymnasium.Space[Any], obs: Array) -> Array:
    """One part, [..., *shape] -> [..., size]; Box and MultiBinary in their own dtype, the others as ones and zeros."""
    if isinstance(space, spaces.Discrete):
        first = int(space.start)
        one_hot: Array = np.equal(obs[..., None], np.arange(first, first + int(space.n)))
        return one_hot
    leading = obs.shape[: obs.ndim - len(space.shape or ())]
    flat = obs.reshape((*leading, math.prod(space.shape or ())))
    if isinstance(space, spaces.MultiDiscrete):
        counts = space.nvec.flatten()
        values = np.concatenate([np.arange(n) for n in counts]) + np.repeat(space.start.flatten(), counts)
        flat = np.equal(np.repeat(flat, counts, axis=-1), values)
    return flat


def _as_image(pixels: Tensor, space: gymnasium.Space[Any]) -> Tensor:
    """Bytes [..., C·H·W] or [..., H·W·C] as float32 [..., C, H, W] in [0, 1]."""
    scaled = pixels.float() / 255
    image = scaled.reshape(*pixels.shape[:-1], *(space.shape or ()))
    return image if has_channels_first(space) else image.movedim(-1, -3)


def first_numbers(rows: Array, count: int) -> Array:
    """View of the first ``count`` numbers of rows [..., O], as `encode` gives them: float32 [..., count]."""
    if rows.dtype != np.uint8:
        return rows[..., :count]
    return rows[..., : BYTES * count].view(np.float32)


def observation_size(space: gymnasium.Space[Any]) -> int:
    """O, the number of entries of the row that `encode_observations` makes of one observation of ``space``.

    Raises:
        ConfigError: the space is not supported, see `ObservationLayout`.
    """
    return ObservationLayout(space).size


def encode_observations(space: gymnasium.Space[Any], obs: Any) -> Array:
    """Observations as rows; for many calls make an `ObservationLayout` once.

    Args:
        space: the space of a single observation.
        obs: [..., *space.shape], of a Dict a dictionary of such.

    Returns:
        [..., O]: float32, Box flattened (values are not rescaled), the others as ones and zeros; with images uint8.

    Raises:
        ConfigError: the space is not supported, see `ObservationLayout`.
    """
    return ObservationLayout(space).encode(obs)


def sample_observations(space: gymnasium.Space[Any], rows: int, seed: int = 0) -> Any:
    """``rows`` random observations of ``space``, as a vector environment returns them, drawn with ``seed``."""
    batched = batch_space(space, rows)
    batched.seed(seed)
    return batched.sample()
