"""MountainCar-v0 and MountainCarContinuous-v0: rock an underpowered car out of a valley.

The equations are those of `mountain_car.py` and `continuous_mountain_car.py` in `gymnasium/envs/classic_control`, after
A. W. Moore, *Efficient Memory-based Learning for Robot Control* (1990): the hill is sin(3x), units are arbitrary.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium.spaces import Box, Discrete

from .checks import BoolArray, FloatArray, Observations, Options, option_bounds
from .native import NativeVectorEnv, native_metadata

# Constants that meet arrays are arrays themselves: a call costs NumPy half as much as with Python numbers.
MIN_POSITION, MAX_POSITION = np.array(-1.2), np.array(0.6)
MIN_SPEED, MAX_SPEED = np.array(-0.07), np.array(0.07)
STEEPNESS = np.array(3.0)
GRAVITY = np.array(0.0025)
FORCES = np.array([-0.001, 0.0, 0.001])  # MountainCar-v0, by action
POWER = np.array(0.0015)  # MountainCarContinuous-v0, by clipped action
MIN_ACTION, MAX_ACTION = np.array(-1.0), np.array(1.0)
GOAL, GOAL_CONTINUOUS = np.array(0.5), np.array(0.45)
PRIZE, FUEL_PRICE, STEP_REWARD = np.array(100.0), np.array(0.1), np.array(-1.0)


def roll(state: FloatArray, push: FloatArray) -> FloatArray:
    """Return the state [E, 2] = (position, velocity) one step after an acceleration `push` [E]; the left wall stops."""
    columns = state.T
    following = np.empty_like(columns)
    position, velocity = following[0], following[1]
    np.add(columns[1], push - GRAVITY * np.cos(STEEPNESS * columns[0]), out=velocity)
    np.minimum(np.maximum(velocity, MIN_SPEED), MAX_SPEED, out=velocity)
    np.add(columns[0], velocity, out=position)
    np.minimum(np.maximum(position, MIN_POSITION), MAX_POSITION, out=position)
    # At the wall, where clipping made the position exact, the least velocity is 0.
    np.maximum(velocity, MIN_SPEED * (position > MIN_POSITION), out=velocity)
    return following.T


def at_goal(state: FloatArray, goal: FloatArray, goal_velocity: FloatArray) -> BoolArray:
    """Return where states [E, 2] are at the `goal` position or beyond, at least as fast as `goal_velocity`, [E]."""
    columns = state.T
    there: BoolArray = (columns[0] >= goal) & (columns[1] >= goal_velocity)
    return there


def fuel_rewards(action: FloatArray, terminated: BoolArray) -> FloatArray:
    """Return 100 at the goal minus a tenth of the squared `action` [E], which counts as given, not as clipped, [E]."""
    rewards: FloatArray = PRIZE * terminated - FUEL_PRICE * (action * action)
    return rewards


class MountainCar(NativeVectorEnv):
    """E cars; state (position, velocity), actions 0, 1, 2 (push left, none, right), reward −1 a step.

    `goal_velocity` is the least velocity at the goal that counts (0). Reset options "low" and "high" bound the uniform
    initial position (−0.6, −0.4). Other arguments: see `NativeVectorEnv`.
    """

    env_id = "MountainCar-v0"
    default_max_episode_steps = 200
    metadata = native_metadata(render_fps=30)

    def __init__(self, num_envs: int = 1, *, goal_velocity: float = 0.0, **kwargs: Any) -> None:
        super().__init__(num_envs, **kwargs)
        self.goal_velocity = np.array(float(goal_velocity))

    def make_spaces(self) -> tuple[Box, Discrete | Box]:
        """Observations: the state, in float32."""
        low = np.array([MIN_POSITION, MIN_SPEED], dtype=np.float32)
        high = np.array([MAX_POSITION, MAX_SPEED], dtype=np.float32)
        return Box(low, high, dtype=np.float32), Discrete(3)

    def sample_states(self, generator: np.random.Generator, count: int, options: Options) -> FloatArray:
        """Positions drawn uniformly, at rest, [count, 2]."""
        low, high = option_bounds(options, -0.6, -0.4)
        states = np.zeros((count, 2))
        states[:, 0] = generator.uniform(low, high, count)
        return states

    def dynamics(self, state: FloatArray, action: npt.NDArray[Any]) -> tuple[FloatArray, FloatArray, BoolArray]:
        """See `roll` and `at_goal`."""
        state = roll(state, FORCES.take(action))
        return state, STEP_REWARD.repeat(len(state)), at_goal(state, GOAL, self.goal_velocity)

    def observe(self, state: FloatArray) -> Observations:
        """Return the state [count, 2] in float32."""
        return state.astype(np.float32, order="C")


class MountainCarContinuous(MountainCar):
    """E cars pushed by a force in [−1, 1] (others are clipped), action [E, 1]; see `fuel_rewards` and `MountainCar`.

    Gymnasium keeps this task's state in float32; here each new state [E, 2] is rounded to float32 likewise.
    """

    env_id = "MountainCarContinuous-v0"
    default_max_episode_steps = 999

    def make_spaces(self) -> tuple[Box, Box]:
        """Observations: the state, in float32."""
        return super().make_spaces()[0], Box(-1.0, 1.0, shape=(1,), dtype=np.float32)

    def dynamics(self, state: FloatArray, action: npt.NDArray[Any]) -> tuple[FloatArray, FloatArray, BoolArray]:
        """See `roll`, `at_goal` and `fuel_rewards`."""
        action = action[:, 0]
        state = roll(state, POWER * np.minimum(np.maximum(action, MIN_ACTION), MAX_ACTION))
        terminated = at_goal(state, GOAL_CONTINUOUS, self.goal_velocity)
        return state.astype(np.float32).astype(np.float64), fuel_rewards(action, terminated), terminated
