"""Observations and rewards brought to a common scale by running moments, as stable-baselines3's VecNormalize does.

The moments are frozen while the N points of an evaluation collect, so that all gradients are of one objective;
`Normalizer.update` then adds the data of all points. Only the numbers of a Box are normalised, not images, ones and
zeros; they come first in an observation's row. Axes: T steps, E sub-environments of all points together, O entries of
a row, F numbers of a Box, B rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from ...agents.networks.observations import first_numbers

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float64]

CLIP: Final = 10.0  # normalised observations and rewards stay within ±CLIP
EPSILON: Final = 1e-8  # added to every variance before the root
PRIOR_ROWS: Final = 1e-4  # rows that mean 0 and variance 1 stand for before there are data


class Moments(NamedTuple):
    """Mean and population variance, float64 of any one shape, over ``rows`` rows."""

    rows: float
    mean: FloatArray
    var: FloatArray


class Report(NamedTuple):
    """What a `Normalizer` has noted of some environments: moments of windows, and their discounted sums since then."""

    seen: list[tuple[Moments, Moments]]
    returns_so_far: FloatArray


def prior_moments(*shape: int) -> Moments:
    """Mean 0 and variance 1, to be outweighed by the first data."""
    return Moments(PRIOR_ROWS, np.zeros(shape), np.ones(shape))


def moments_of(rows: Array) -> Moments:
    """Moments of the rows [B, ...], computed in float64."""
    rows = rows.astype(np.float64, copy=False)
    return Moments(float(len(rows)), rows.mean(0), rows.var(0))


def merge_moments(a: Moments, b: Moments) -> Moments:
    """Moments of the rows of both (Chan, Golub and LeVeque, 1979, Stanford report STAN-CS-79-773).

    With δ = mean_b − mean_a and n = n_a + n_b:   mean = mean_a + δ n_b / n,
    var = (n_a var_a + n_b var_b + δ² n_a n_b / n) / n.
    """
    rows = a.rows + b.rows
    delta = b.mean - a.mean
    mean = a.mean + delta * (b.rows / rows)
    var = (a.rows * a.var + b.rows * b.var + delta**2 * (a.rows * b.rows / rows)) / rows
    return Moments(rows, mean, var)


def standardize(obs: Array, moments: Moments) -> Array:
    """(obs − mean) / √(var + ε), clipped to ±10: [..., O] -> float32 [..., O]."""
    scaled = (obs - moments.mean) / np.sqrt(moments.var + EPSILON)
    return np.clip(scaled, -CLIP, CLIP).astype(np.float32)


def scale_rewards(rewards: Array, returns: Moments) -> Array:
    """rewards / √(variance of the discounted returns + ε), clipped to ±10; not centred: signs are kept. float32."""
    return np.clip(rewards / np.sqrt(returns.var + EPSILON), -CLIP, CLIP).astype(np.float32)


def returns_so_far(rewards: Array, ended: Array, start: FloatArray, gamma: float) -> tuple[FloatArray, FloatArray]:
    """Discounted sums of the rewards since each episode began, whose variance VecNormalize takes as the scale.

        R_t = r_t + γ · R_{t−1},    R_{t−1} = 0 where an episode began

    Args:
        rewards: [T, E].
        ended: [T, E], bool; terminated or truncated: what an episode had gathered never leaks into the next.
        start: [E], R of the step before the window, 0 where an episode begins with it.
        gamma: discount factor per step.

    Returns:
        R [T, E], and what `start` of the next window is, [E].
    """
    sums = np.empty(rewards.shape)
    current = start
    for t in range(len(rewards)):
        sums[t] = rewards[t] + gamma * current
        current = np.where(ended[t], 0.0, sums[t])
    return sums, current


class Normalizer:
    """Running moments of observations and of discounted returns; does nothing for what is switched off.

    Args:
        features: F.
        num_envs: E, sub-environments of all points together.
        gamma: discount factor of the agent.
        obs: whether observations are normalised.
        reward: whether rewards are.
    """

    def __init__(self, features: int, num_envs: int, gamma: float, *, obs: bool = False, reward: bool = False) -> None:
        self.obs, self.reward, self.gamma = obs, reward, gamma
        self.obs_moments, self.return_moments = prior_moments(features), prior_moments()
        self._returns: FloatArray = np.zeros(num_envs)
        self._seen: list[tuple[Moments, Moments]] = []

    def observations(self, obs: Array) -> Array:
        """Observations [..., O] as the policy takes them."""
        if not self.obs:
            return obs
        features = len(self.obs_moments.mean)
        if obs.shape[-1] == features:
            return standardize(obs, self.obs_moments)
        obs = obs.copy()
        numbers = first_numbers(obs, features)
        numbers[...] = standardize(numbers, self.obs_moments)
        return obs

    def rewards(self, rewards: Array) -> Array:
        """Rewards float32 as the agent takes them."""
        return scale_rewards(rewards, self.return_moments) if self.reward else rewards

    def see(self, obs: Array, rewards: Array, ended: Array, left_out: Array | None = None) -> None:
        """Note a window for the next `update`; until then nothing changes.

        Args:
            obs: [T, E, O], not normalised.
            rewards: [T, E], not normalised.
            ended: [T, E], bool, terminated or truncated.
            left_out: [E], bool: environments that gave numbers that are not finite, and begin new episodes.
        """
        if not (self.obs or self.reward):
            return
        sums, self._returns = returns_so_far(rewards, ended, self._returns, self.gamma)
        if left_out is not None and left_out.any():
            self._returns[left_out] = 0.0
            obs, sums = obs[:, ~left_out], sums[:, ~left_out]
        if sums.size:
            numbers = first_numbers(obs, len(self.obs_moments.mean))
            numbers = numbers.reshape(sums.size, numbers.shape[-1])
            self._seen.append((moments_of(numbers), moments_of(sums.reshape(-1))))

    def share(self, envs: slice) -> dict[str, Any] | None:
        """The state of a normalizer of some of the environments; None if nothing is normalised."""
        if not (self.obs or self.reward):
            return None
        return self.state_dict() | {"returns_so_far": torch.tensor(self._returns[envs])}

    def report(self) -> Report:
        """What it has noted since the last update, for `include`."""
        return Report(list(self._seen), self._returns.copy())

    def include(self, envs: slice, report: Report) -> None:
        """Note what a normalizer of some of the environments has noted since it was given its `share`."""
        self._seen += report.seen
        self._returns[envs] = report.returns_so_far

    def update(self) -> None:
        """Update the moments with the windows noted since the last update."""
        for obs, returns in self._seen:
            self.obs_moments = merge_moments(self.obs_moments, obs)
            self.return_moments = merge_moments(self.return_moments, returns)
        self._seen.clear()

    def reset_episodes(self, envs: slice = slice(None)) -> None:
        """All environments begin new episodes, or some of them."""
        self._returns[envs] = 0.0

    def state_dict(self) -> dict[str, Any]:
        """Copy as plain values and tensors."""

        def tensors(moments: Moments) -> dict[str, Any]:
            arrays = {"mean": moments.mean, "var": moments.var}
            return {"rows": moments.rows} | {name: torch.tensor(array) for name, array in arrays.items()}

        return {
            "obs": tensors(self.obs_moments),
            "returns": tensors(self.return_moments),
            "returns_so_far": torch.tensor(self._returns),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a state from `state_dict`."""

        def moments(saved: Mapping[str, Any]) -> Moments:
            return Moments(saved["rows"], saved["mean"].numpy().copy(), saved["var"].numpy().copy())

        self.obs_moments, self.return_moments = moments(state["obs"]), moments(state["returns"])
        self._returns = state["returns_so_far"].numpy().copy()
        self._seen.clear()
