"""Observations as rows: against stable-baselines3's preprocessing, and there and back."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first, preprocess_obs
from torch import Tensor
from torch.func import vmap

from optex_rl import ConfigError
from optex_rl.agents import (
    ObservationLayout,
    encode_observations,
    observation_size,
    sample_observations,
)
from optex_rl.common.images import has_channels_first, is_image

VECTOR = spaces.Box(-1, 1, (2, 2), np.float64)
COUNTS = spaces.Box(0, 255, (5,), np.uint8)  # of one axis: no image
LAST, FIRST = spaces.Box(0, 255, (5, 6, 3), np.uint8), spaces.Box(0, 255, (1, 5, 5), np.uint8)

SPACES: dict[str, gymnasium.Space[Any]] = {
    "vector": VECTOR,
    "counts": COUNTS,
    "discrete": spaces.Discrete(4),
    "multi-discrete": spaces.MultiDiscrete([4, 3]),
    "multi-binary": spaces.MultiBinary(8),
    "multi-binary matrix": spaces.MultiBinary((3, 2)),
    "channels last": LAST,
    "channels first": FIRST,
    "vectors": spaces.Dict(a=VECTOR, b=spaces.Discrete(3), c=COUNTS),
    "everything": spaces.Dict(a=LAST, b=spaces.MultiDiscrete([2, 3]), c=FIRST, d=VECTOR, e=spaces.MultiBinary(2)),
    "images": spaces.Dict(a=LAST, b=FIRST),
    "one image": spaces.Dict(a=LAST),
}


def as_tensors(obs: Any) -> Any:
    return {k: torch.from_numpy(v) for k, v in obs.items()} if isinstance(obs, dict) else torch.from_numpy(obs)


def channels_first(space: gymnasium.Space[Any], part: Tensor) -> Tensor:
    """stable-baselines3 does it in a wrapper of the environment."""
    return part.movedim(-1, -3) if space is LAST else part


def leaves(tree: Any) -> list[Tensor]:
    return list(tree.values()) if isinstance(tree, dict) else [tree]


@pytest.mark.parametrize("name", SPACES)
def test_networks_get_what_those_of_stable_baselines3_get(name: str) -> None:
    space = SPACES[name]
    obs = sample_observations(space, 7, seed=3)
    expected: Any = preprocess_obs(as_tensors(obs), space)
    decoded = ObservationLayout(space).decode(torch.from_numpy(encode_observations(space, obs)))
    if isinstance(space, spaces.Dict):
        assert decoded.keys() == expected.keys()
        pairs = [(decoded[key], channels_first(space[key], part)) for key, part in expected.items()]
    else:
        pairs = [(decoded, channels_first(space, expected))]
    for part, other in pairs:
        assert part.dtype == torch.float32
        torch.testing.assert_close(part, other.float())


@pytest.mark.parametrize("name", SPACES)
def test_rows_of_any_leading_shape(name: str) -> None:
    space = SPACES[name]
    layout, flat = ObservationLayout(space), sample_observations(space, 6)

    def fold(array: Any) -> Any:
        return array.reshape(2, 3, *array.shape[1:])

    folded = {k: fold(v) for k, v in flat.items()} if isinstance(flat, dict) else fold(flat)
    single = {k: v[4] for k, v in flat.items()} if isinstance(flat, dict) else flat[4]
    rows = layout.encode(flat)
    assert rows.shape == (6, layout.size) == (6, observation_size(space))
    assert rows.dtype == layout.dtype
    assert np.array_equal(layout.encode(folded), rows.reshape(2, 3, -1))
    assert np.array_equal(layout.encode(single), rows[4])
    numbers = layout.flat(torch.from_numpy(rows))
    assert numbers.shape == (6, layout.features)
    assert numbers.dtype == torch.float32


@pytest.mark.parametrize("name", SPACES)
def test_vmap_takes_rows_apart(name: str) -> None:
    layout = ObservationLayout(SPACES[name])
    rows = torch.from_numpy(layout.encode(sample_observations(SPACES[name], 6))).view(3, 2, -1)
    expected = layout.decode(rows)
    for given, known in zip(leaves(vmap(layout.decode)(rows)), leaves(expected), strict=True):
        assert torch.equal(given, known)


def test_images_take_a_byte_for_each_pixel() -> None:
    """36 × 36 bytes, and four for each of two numbers and three ones and zeros."""
    image = spaces.Box(0, 255, (36, 36, 1), np.uint8)
    assert observation_size(image) == 36 * 36
    assert observation_size(spaces.Dict(a=image, b=spaces.Box(-1, 1, (2,)), c=spaces.Discrete(3))) == 36 * 36 + 4 * 5


def test_images_alone_are_not_copied() -> None:
    obs = sample_observations(LAST, 4)
    assert np.shares_memory(encode_observations(LAST, obs), obs)


@pytest.mark.parametrize("shape", [(5, 6, 3), (3, 5, 6), (1, 5, 5), (4, 4, 4), (84, 84, 12), (6, 3, 5)])
@pytest.mark.filterwarnings("ignore:Treating image space as channels-last")
@pytest.mark.parametrize(("dtype", "high"), [(np.uint8, 255), (np.uint8, 254), (np.float32, 255)])
def test_what_an_image_is_stable_baselines3_says(shape: tuple[int, ...], dtype: Any, high: int) -> None:
    space = spaces.Box(0, high, shape, dtype)
    assert is_image(space) == is_image_space(space)
    if is_image(space):
        assert has_channels_first(space) == is_image_space_channels_first(space)
    assert not is_image(spaces.Box(0, 255, shape[:2], np.uint8))


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (
            spaces.Tuple([VECTOR, VECTOR]),
            r"^The observation space Tuple.* use Box, Discrete, MultiDiscrete, MultiBinary",
        ),
        (spaces.Text(3), r"^The observation space Text.* or a Dict of these\.$"),
        (spaces.Dict(a=VECTOR, b=spaces.Dict(c=VECTOR)), r"what is in a Dict must be Box, .*FlattenObservation"),
        (spaces.Dict(), "nothing in it"),
    ],
)
def test_other_observation_spaces_are_refused(space: gymnasium.Space[Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ObservationLayout(space)
