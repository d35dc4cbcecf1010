"""Acrobot-v1: swing the tip of a two-link pendulum above a height by torques at the joint between the links.

The equations are those of `gymnasium/envs/classic_control/acrobot.py` in its form after the book: R. S. Sutton and
A. G. Barto, *Reinforcement Learning: An Introduction* (2018), §11.3 of the first edition, with links of mass 1, length
1, centre of mass 0.5 and moment of inertia 1, so that most factors become numbers.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from gymnasium.spaces import Box, Discrete

from .checks import BoolArray, FloatArray, IntArray, Observations, Options, option_bounds
from .native import NativeVectorEnv, native_metadata

# Constants that meet arrays are arrays themselves: a call costs NumPy half as much as with Python numbers.
# Rows are links.
TIME_STEP = 0.2  # s
MAX_SPEEDS = np.array([[4 * np.pi], [9 * np.pi]])  # rad/s
MIN_SPEEDS = -MAX_SPEEDS
TORQUES = np.array([[2.0, 0.0, -2.0], [-2.0, 0.0, 2.0]])  # twice the torque on each link in N·m, by action
WEIGHTS = np.array([[-3.0], [-1.0]]) * 9.8  # twice mass · lever arm · gravity
INERTIAS = np.array([[4.5], [2.5]])  # twice the links' moments of inertia
OTHER_INERTIAS = INERTIAS[::-1].copy()
SIGNS = np.array([[-1.0], [1.0]])
FULL_TURN = np.array(2 * np.pi)
GOAL_HEIGHT = np.array(1.0)  # m above the upper joint
STEP_COST = np.array(1.0)
INERTIA_PRODUCT = INERTIAS[0] * INERTIAS[1]
H, HALF_H, SIXTH_H, SIXTH_H2 = (np.array(h) for h in (TIME_STEP, TIME_STEP / 2, TIME_STEP / 6, TIME_STEP**2 / 6))


def accelerations(angles: FloatArray, speeds: FloatArray, torques: FloatArray) -> FloatArray:
    """Return the angular accelerations [2, E] of links at `angles` [2, E] that turn with `speeds` [2, E].

    Angles φ and speeds Ω are the links' own, measured from straight down, not those of the joints. So written, twice
    Lagrange's equations are symmetric, with c = cos(φ1 − φ2), s = sin(φ1 − φ2) and the `torques` as in `TORQUES`:

        4.5 a1 + c a2 = −s Ω2² − 3 g sin φ1 + torques1 = b1
        c a1 + 2.5 a2 =  s Ω1² −   g sin φ2 + torques2 = b2

    Their determinant is 11.25 − c² > 0.
    """
    bend = angles[:1] - angles[1:]
    cos = np.cos(bend)
    b = np.sin(angles)
    b *= WEIGHTS
    b += torques
    b += (speeds * speeds)[::-1] * (SIGNS * np.sin(bend))
    numerator = OTHER_INERTIAS * b
    numerator -= cos * b[::-1]
    numerator /= INERTIA_PRODUCT - cos * cos
    return numerator


def runge_kutta_step(angles: FloatArray, speeds: FloatArray, torques: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return angles and speeds [2, E] of the links one classical fourth-order step later, see `accelerations`.

    The speeds of the four stages are v1 = v, v2 = v + h/2 a1, v3 = v + h/2 a2, v4 = v + h a3, which turns the weights
    1, 2, 2, 1 into x + h v + h²/6 (a1 + a2 + a3) for the angles and v + h/6 (a1 + 2 a2 + 2 a3 + a4) for the speeds.
    """
    a1 = accelerations(angles, speeds, torques)
    v2 = speeds + HALF_H * a1
    a2 = accelerations(angles + HALF_H * speeds, v2, torques)
    v3 = speeds + HALF_H * a2
    a3 = accelerations(angles + HALF_H * v2, v3, torques)
    a4 = accelerations(angles + H * v3, speeds + H * a3, torques)
    a1 += a2
    a1 += a3
    a4 += a1
    a4 += a2
    a4 += a3
    return angles + (H * speeds + SIXTH_H2 * a1), speeds + SIXTH_H * a4


def swing(state: FloatArray, action: IntArray) -> FloatArray:
    """Return the state [E, 4] = (θ1, θ2, ω1, ω2) of the joints one time step after `action` [E].

    The joints' values are those of the first link and the differences of the second to it; a Runge-Kutta step commutes
    with such a linear change of variables. Angles come back in [−π, π], speeds clipped to their bounds.
    """
    columns = state.T
    links = columns.copy()
    links[1::2] += columns[::2]
    angles, speeds = runge_kutta_step(links[:2], links[2:], TORQUES.take(action, axis=1))
    angles[1] -= angles[0]
    speeds[1] -= speeds[0]
    links[:2] = angles - FULL_TURN * np.rint(angles / FULL_TURN)
    np.minimum(np.maximum(speeds, MIN_SPEEDS), MAX_SPEEDS, out=links[2:])
    return links.T


def above_goal(state: FloatArray) -> BoolArray:
    """Return where the tip is above the goal, [E], for states [E, 4]: −cos θ1 − cos(θ1 + θ2) > GOAL_HEIGHT."""
    angles = state.T[:2].copy()
    angles[1] += angles[0]
    cos = np.cos(angles)
    above: BoolArray = -cos[0] - cos[1] > GOAL_HEIGHT
    return above


class Acrobot(NativeVectorEnv):
    """E acrobots; state (θ1, θ2 in rad, θ̇1, θ̇2), actions 0, 1, 2 for torques of −1, 0, 1 N·m.

    The reward is −1 a step and 0 at the goal. Reset options "low" and "high" bound the uniform initial states
    (−0.1, 0.1), which Gymnasium rounds to float32. Arguments: see `NativeVectorEnv`.
    """

    env_id = "Acrobot-v1"
    default_max_episode_steps = 500
    metadata = native_metadata(render_fps=15)

    def make_spaces(self) -> tuple[Box, Discrete]:
        """Observations: cos θ1, sin θ1, cos θ2, sin θ2, θ̇1, θ̇2."""
        high = np.array([1.0, 1.0, 1.0, 1.0, *MAX_SPEEDS[:, 0]], dtype=np.float32)
        return Box(-high, high, dtype=np.float32), Discrete(3)

    def sample_states(self, generator: np.random.Generator, count: int, options: Options) -> FloatArray:
        """All four numbers drawn uniformly, [count, 4]."""
        low, high = option_bounds(options, -0.1, 0.1)
        return generator.uniform(low, high, (count, 4)).astype(np.float32).astype(np.float64)

    def dynamics(self, state: FloatArray, action: npt.NDArray[np.int64]) -> tuple[FloatArray, FloatArray, BoolArray]:
        """See `swing` and `above_goal`."""
        state = swing(state, action)
        terminated = above_goal(state)
        return state, terminated - STEP_COST, terminated

    def observe(self, state: FloatArray) -> Observations:
        """Return cosines and sines of the angles and the speeds, [count, 6]."""
        columns = state.T
        seen = np.empty((6, len(state)))
        np.cos(columns[:2], out=seen[0:4:2])
        np.sin(columns[:2], out=seen[1:4:2])
        seen[4:] = columns[2:]
        return seen.T.astype(np.float32, order="C")
