"""Finished episodes, and running figures of all of them."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

WINDOW: Final = 100  # episodes in ep_rew_mean, as in stable-baselines3


class Episode(NamedTuple):
    """A finished episode: the point that played it, its undiscounted return, its length in steps.

    ``ended`` is the step of the window in which it did; episodes come in the order of these, then of environments.
    """

    point: int
    ep_return: float
    length: int
    ended: int = 0


class EpisodeStatistics:
    """Running figures of all finished episodes, over all points."""

    def __init__(self) -> None:
        self.count = 0
        self._sum = 0.0
        self._window: deque[tuple[float, int]] = deque(maxlen=WINDOW)

    def add(self, episodes: Sequence[Episode]) -> None:
        """Count finished episodes."""
        self.count += len(episodes)
        self._sum += math.fsum(e.ep_return for e in episodes)
        self._window.extend((e.ep_return, e.length) for e in episodes)

    @property
    def cumulative_average_reward(self) -> float:
        """Mean return of all episodes so far, the y axis of the paper; NaN before the first has ended."""
        return self._sum / self.count if self.count else math.nan

    @property
    def ep_rew_mean(self) -> float:
        """Mean return of the last 100 episodes; NaN before the first has ended."""
        return math.fsum(r for r, _ in self._window) / len(self._window) if self._window else math.nan

    @property
    def ep_len_mean(self) -> float:
        """Mean length in steps of the last 100 episodes; NaN before the first has ended."""
        return math.fsum(length for _, length in self._window) / len(self._window) if self._window else math.nan

    def metrics(self) -> dict[str, float]:
        """The figures under their TensorBoard tags."""
        names = ("cumulative_average_reward", "ep_rew_mean", "ep_len_mean")
        return {"rollout/episodes": self.count} | {f"rollout/{name}": getattr(self, name) for name in names}

    def state_dict(self) -> dict[str, Any]:
        """Copy as plain values."""
        return {"count": self.count, "sum": self._sum, "window": [list(entry) for entry in self._window]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a state from `state_dict`."""
        self.count, self._sum = state["count"], state["sum"]
        self._window = deque(((float(r), int(length)) for r, length in state["window"]), maxlen=WINDOW)
