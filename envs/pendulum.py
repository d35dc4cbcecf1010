"""Pendulum-v1: swing up a pendulum and hold it there, with a torque too weak to lift it at once.

The equations are those of `gymnasium/envs/classic_control/pendulum.py`: semi-implicit Euler; the speed is clipped
before it moves the angle.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.spaces import Box

from .checks import BoolArray, FloatArray, Observations, Options, option_number
from .native import NativeVectorEnv, native_metadata

# Constants that meet arrays are arrays themselves: a call costs NumPy half as much as with Python numbers.
# Mass 1 kg and length 1 m are left out of the formulas.
MIN_SPEED, MAX_SPEED = np.array(-8.0), np.array(8.0)  # rad/s
MIN_TORQUE, MAX_TORQUE = np.array(-2.0), np.array(2.0)  # N·m
TORQUE_GAIN = np.array(3.0)
TIME_STEP = np.array(0.05)  # s
HALF_TURN, FULL_TURN = np.array(np.pi), np.array(2 * np.pi)
SPEED_PRICE, TORQUE_PRICE = np.array(0.1), np.array(0.001)


def costs(state: FloatArray, torque: FloatArray) -> FloatArray:
    """Return θ² + 0.1 θ̇² + 0.001 torque² [E] of states [E, 2] = (θ, θ̇), the angle taken in [−π, π) from upright."""
    theta, speed = state.T
    angle = np.remainder(theta + HALF_TURN, FULL_TURN) - HALF_TURN
    total: FloatArray = angle * angle + SPEED_PRICE * (speed * speed) + TORQUE_PRICE * (torque * torque)
    return total


def swing(state: FloatArray, torque: FloatArray, weight: FloatArray) -> FloatArray:
    """Return the state [E, 2] = (θ, θ̇) one time step later: θ̈ = `weight` [] · sin θ + 3 `torque` [E]; weight: 1.5 g."""
    theta, speed = state.T
    following = np.empty_like(state.T)
    speed = speed + (weight * np.sin(theta) + TORQUE_GAIN * torque) * TIME_STEP
    np.minimum(np.maximum(speed, MIN_SPEED), MAX_SPEED, out=following[1])
    np.add(theta, following[1] * TIME_STEP, out=following[0])
    return following.T


class Pendulum(NativeVectorEnv):
    """E pendulums; state (θ in rad from upright, θ̇), action: the torque [E, 1], clipped to ±2 N·m; reward −`costs`.

    `g` is the gravity (10 m/s²). Episodes end by the time limit alone. Reset options "x_init" and "y_init" bound the
    uniform initial angle (±π) and speed (±1). `render` shows the pendulum without Gymnasium's arrow for the torque.
    Other arguments: see `NativeVectorEnv`.
    """

    env_id = "Pendulum-v1"
    default_max_episode_steps = 200
    metadata = native_metadata(render_fps=30)

    def __init__(self, num_envs: int = 1, *, g: float = 10.0, **kwargs: Any) -> None:
        super().__init__(num_envs, **kwargs)
        self.g = g
        self._weight = np.array(1.5 * g)

    def make_spaces(self) -> tuple[Box, Box]:
        """Observations: cos θ, sin θ, θ̇."""
        high = np.array([1.0, 1.0, float(MAX_SPEED)], dtype=np.float32)
        limit = float(MAX_TORQUE)
        return Box(-high, high, dtype=np.float32), Box(-limit, limit, shape=(1,), dtype=np.float32)

    def sample_states(self, generator: np.random.Generator, count: int, options: Options) -> FloatArray:
        """Angle and speed drawn uniformly from symmetric intervals, [count, 2]."""
        high = np.array([option_number(options, "x_init", np.pi), option_number(options, "y_init", 1.0)])
        return generator.uniform(-high, high, (count, 2))

    def dynamics(self, state: FloatArray, action: FloatArray) -> tuple[FloatArray, FloatArray, BoolArray]:
        """See `swing` and `costs`, which are those of the state before the step."""
        torque = np.minimum(np.maximum(action[:, 0], MIN_TORQUE), MAX_TORQUE)
        return swing(state, torque, self._weight), -costs(state, torque), np.zeros(len(state), dtype=np.bool_)

    def observe(self, state: FloatArray) -> Observations:
        """Return cos θ, sin θ and θ̇, [count, 3]."""
        columns = state.T
        seen = np.empty((3, len(state)))
        np.cos(columns[0], out=seen[0])
        np.sin(columns[0], out=seen[1])
        seen[2] = columns[1]
        return seen.T.astype(np.float32, order="C")
