"""What each worker gets of an evaluation, and how the answers become one again: pure functions.

An evaluation consists of *parts*: its N points, or, where there is one point with N times the environments
(data-parallel), N groups of environments. Each part has random numbers of its own, so that its experience is the same
on whichever worker it is. Axes: N points, P parts, T steps, E environments per part, K rows whose successor is not the
next row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..agents import Batch


class Share(NamedTuple):
    """Consecutive parts.

    Attributes:
        first: number of the first.
        size: how many.
        envs_per_part: E.
    """

    first: int
    size: int
    envs_per_part: int

    @property
    def parts(self) -> slice:
        """The parts among all."""
        return slice(self.first, self.first + self.size)

    @property
    def envs(self) -> slice:
        """Their environments among all."""
        return slice(self.first * self.envs_per_part, (self.first + self.size) * self.envs_per_part)


def divide(parts: int, workers: int, envs_per_part: int) -> list[Share]:
    """Shares of W workers, the first of them larger by one part where W does not divide P."""
    least, more = divmod(parts, workers)
    counts = [least + (number < more) for number in range(workers)]
    return [Share(sum(counts[:number]), count, envs_per_part) for number, count in enumerate(counts)]


def cut_state(state: Any, share: Share) -> Any:
    """The state of a share's collector, from that of a collector of all parts; no views, which travel whole.

    In such a state, tensors have a row for each environment, and lists (of random generators) an entry for each part.
    """
    if isinstance(state, Tensor):
        return state[share.envs].clone()
    if isinstance(state, list):
        return state[share.parts]
    return {name: cut_state(entry, share) for name, entry in state.items()} if isinstance(state, dict) else state


def join_states(states: Sequence[Any]) -> Any:
    """The state of a collector of all parts, from those of the shares' collectors."""
    first = states[0]
    if isinstance(first, Tensor):
        return torch.cat(list(states))
    if isinstance(first, list):
        return [entry for state in states for entry in state]
    return {name: join_states([s[name] for s in states]) for name in first} if isinstance(first, dict) else first


def without_steps(num_points: int, envs_per_point: int) -> Batch:
    """The batch of points whose experience nobody asked for, ``[N, 0, E]``."""
    steps, flags = torch.zeros(num_points, 0, envs_per_point), torch.zeros(num_points, 0, envs_per_point).bool()
    rows = torch.zeros(num_points, 0, 0)
    return Batch(steps[..., None], steps, steps, flags, flags, rows, rows.long())


def join_parts(batches: Sequence[Batch | None], shares: Sequence[Share]) -> Batch:
    """The experience of all parts, ``[P, T, E, …]``; zeros where it is missing. At least one must be there."""
    like = next(batch for batch in batches if batch is not None)
    K = max(batch.final_index.shape[1] for batch in batches if batch is not None)
    whole = []
    for batch, share in zip(batches, shares, strict=True):
        if batch is None:
            batch = Batch(*(column.new_zeros(share.size, *column.shape[1:]) for column in like))
        whole.append(_pad(batch, K))
    return Batch(*(torch.cat(columns) for columns in zip(*whole, strict=True)))


def _pad(batch: Batch, K: int) -> Batch:
    """The batch with room for ``K`` successors a point."""
    missing = K - batch.final_index.shape[1]
    final_obs, final_index = pad(batch.final_obs, (0, 0, 0, missing)), pad(batch.final_index, (0, missing), value=-1)
    return batch._replace(final_obs=final_obs, final_index=final_index)


def join_environments(batch: Batch) -> Batch:
    """The experience of P groups of environments, ``[P, T, E, …]``, as that of one point, ``[1, T, P·E, …]``."""
    P, _, E = batch.rewards.shape
    steps = {
        name: column.transpose(0, 1).flatten(1, 2)[None]
        for name, column in batch._asdict().items()
        if not name.startswith("final")
    }
    group = torch.arange(P)[:, None]
    step, env = batch.final_index // E, batch.final_index % E
    index = torch.where(batch.final_index < 0, -1, step * (P * E) + group * E + env)
    final = {"final_obs": batch.final_obs.flatten(0, 1)[None], "final_index": index.flatten()[None]}
    return Batch(**steps | final)
