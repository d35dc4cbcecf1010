"""Catch-v0: move a paddle under a falling ball, seen as an image of 36 × 36 pixels.

The game is bsuite's `catch` (Osband et al., 2020, arXiv 1908.03568, after Mnih et al., 2014, arXiv 1406.6247), on a
board of 12 × 12 cells in place of 10 × 5, each drawn as 3 × 3 pixels: the least image that the CNN of Mnih et al.,
2015, takes.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
from gymnasium.spaces import Box, Discrete

from .checks import BoolArray, FloatArray, Observations, Options
from .native import NativeVectorEnv, native_metadata

CELLS: Final = 12  # rows and columns of the board
PIXELS: Final = 3  # of a cell, in height and width
SIZE: Final = CELLS * PIXELS
ZOOM: Final = 8  # of the drawing


def draw_cells() -> npt.NDArray[np.uint8]:
    """One image for each cell of the board, in which that is white: [rows, columns, SIZE, SIZE]."""
    cells = np.eye(CELLS * CELLS, dtype=np.uint8).reshape(CELLS, CELLS, CELLS, CELLS) * np.uint8(255)
    return cells.repeat(PIXELS, axis=2).repeat(PIXELS, axis=3)


CELL_IMAGES: Final = draw_cells()


class Catch(NativeVectorEnv):
    """E games; state (row and column of the ball, column of the paddle), actions 0 (left), 1 (stay) and 2 (right).

    The ball begins in any column of the top row and falls a row a step; the paddle begins in the middle of the bottom
    row. When the ball is there, after 11 steps, the episode terminates with reward 1 if it meets the paddle and −1 if
    not; all other rewards are 0. Observations are grey images, uint8 [36, 36, 1]. Arguments: see `NativeVectorEnv`.
    """

    env_id = "Catch-v0"
    default_max_episode_steps = 100  # no episode gets there
    metadata = native_metadata(render_fps=10)

    def make_spaces(self) -> tuple[Box, Discrete]:
        """Observations: the image."""
        return Box(0, 255, (SIZE, SIZE, 1), np.uint8), Discrete(3)

    def sample_states(self, generator: np.random.Generator, count: int, options: Options) -> FloatArray:
        """The start [count, 3], the column of the ball drawn uniformly."""
        states = np.zeros((count, 3))
        states[:, 1] = generator.integers(CELLS, size=count)
        states[:, 2] = CELLS // 2
        return states

    def dynamics(self, state: FloatArray, action: npt.NDArray[Any]) -> tuple[FloatArray, FloatArray, BoolArray]:
        """The ball falls, the paddle moves within the board; see `NativeVectorEnv.dynamics`."""
        state = state.copy()
        state[:, 0] += 1
        state[:, 2] = np.clip(state[:, 2] + action - 1, 0, CELLS - 1)
        terminated: BoolArray = state[:, 0] >= CELLS - 1
        rewards = np.where(terminated, np.where(state[:, 1] == state[:, 2], 1.0, -1.0), 0.0)
        return state, rewards, terminated

    def observe(self, state: FloatArray) -> Observations:
        """Return the images uint8 [count, 36, 36, 1]."""
        row, ball, paddle = state.astype(np.int64).T
        images: npt.NDArray[np.uint8] = CELL_IMAGES[row, ball] | CELL_IMAGES[CELLS - 1, paddle]
        return images[..., None]

    def draw(self, state: FloatArray) -> npt.NDArray[np.uint8]:
        """The image, larger: uint8 [288, 288, 3]."""
        image: npt.NDArray[Any] = self.observe(state[None])[0].repeat(ZOOM, axis=0).repeat(ZOOM, axis=1)
        return image.repeat(3, axis=2)
