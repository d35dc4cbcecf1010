"""CartPole-v1: balance a pole on a cart that is pushed left or right.

The equations are those of `gymnasium/envs/classic_control/cartpole.py` (Euler integration), after R. V. Florian,
"Correct equations for the dynamics of the cart-pole system" (2007), without friction.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium.spaces import Box, Discrete

from .checks import BoolArray, FloatArray, IntArray, Observations, Options, option_bounds
from .native import NativeVectorEnv, native_metadata

# Constants that meet arrays are arrays themselves: a call costs NumPy half as much as with Python numbers.
GRAVITY = np.array(9.8)  # m/s²
POLE_MASS = np.array(0.1)  # kg
TOTAL_MASS = np.array(0.1 + 1.0)  # kg, with the cart
HALF_LENGTH = np.array(0.5)  # m, half the pole
POLE_MOMENT = np.array(0.1 * 0.5)  # kg·m, mass · half length
FOUR_THIRDS = np.array(4.0 / 3.0)
TIME_STEP = np.array(0.02)  # s
FORCES = np.array([-10.0, 10.0])  # N, by action
POSITION_LIMIT = 2.4  # m
ANGLE_LIMIT = 12 * 2 * math.pi / 360  # rad
LIMITS = np.array([[POSITION_LIMIT], [ANGLE_LIMIT]])
STEP_REWARD = np.array(1.0)


def accelerations(theta: FloatArray, theta_dot: FloatArray, force: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return the cart's acceleration (m/s²) and the pole's (rad/s²) under `force` (N), each [E]."""
    cos, sin = np.cos(theta), np.sin(theta)
    push = (force + POLE_MOMENT * (theta_dot * theta_dot) * sin) / TOTAL_MASS
    theta_acc = (GRAVITY * sin - cos * push) / (HALF_LENGTH * (FOUR_THIRDS - POLE_MASS * (cos * cos) / TOTAL_MASS))
    return push - POLE_MOMENT * theta_acc * cos / TOTAL_MASS, theta_acc


def euler_step(state: FloatArray, action: IntArray) -> FloatArray:
    """Return the state [E, 4] = (x, ẋ, θ, θ̇) one time step after `action` [E]: state + TIME_STEP · rates."""
    columns = state.T
    rates = np.empty_like(columns)
    rates[0], rates[2] = columns[1], columns[3]
    rates[1], rates[3] = accelerations(columns[2], columns[3], FORCES.take(action))
    rates *= TIME_STEP
    rates += columns
    return rates.T


def out_of_bounds(state: FloatArray) -> BoolArray:
    """Return where the cart left the track or the pole fell, [E], for states [E, 4]."""
    beyond = np.abs(state.T[::2]) > LIMITS
    fallen: BoolArray = beyond[0] | beyond[1]
    return fallen


class CartPole(NativeVectorEnv):
    """E cart-poles; state (x in m, ẋ, θ in rad, θ̇), actions 0 (left) and 1 (right), reward 1 a step.

    With `sutton_barto_reward` the reward is 0 a step and −1 for the step on which the pole falls. Reset options "low"
    and "high" bound the uniform initial states (−0.05, 0.05). Other arguments: see `NativeVectorEnv`.
    """

    env_id = "CartPole-v1"
    default_max_episode_steps = 500
    metadata = native_metadata(render_fps=50)

    def __init__(self, num_envs: int = 1, *, sutton_barto_reward: bool = False, **kwargs: Any) -> None:
        super().__init__(num_envs, **kwargs)
        self._sutton_barto_reward = sutton_barto_reward

    def make_spaces(self) -> tuple[Box, Discrete]:
        """Observations: the state, in float32; Gymnasium's box is twice the limits of failure."""
        high = np.array([2 * POSITION_LIMIT, np.inf, 2 * ANGLE_LIMIT, np.inf], dtype=np.float32)
        return Box(-high, high, dtype=np.float32), Discrete(2)

    def sample_states(self, generator: np.random.Generator, count: int, options: Options) -> FloatArray:
        """All four numbers drawn uniformly, [count, 4]."""
        low, high = option_bounds(options, -0.05, 0.05)
        return generator.uniform(low, high, (count, 4))

    def dynamics(self, state: FloatArray, action: npt.NDArray[np.int64]) -> tuple[FloatArray, FloatArray, BoolArray]:
        """See `euler_step` and `out_of_bounds`."""
        state = euler_step(state, action)
        terminated = out_of_bounds(state)
        rewards = -terminated.astype(np.float64) if self._sutton_barto_reward else STEP_REWARD.repeat(len(state))
        return state, rewards, terminated

    def observe(self, state: FloatArray) -> Observations:
        """Return the state [count, 4] in float32."""
        return state.astype(np.float32, order="C")
