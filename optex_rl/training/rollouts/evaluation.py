"""Returns of a finished policy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import Space
from gymnasium.vector import VectorEnv
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from ...agents import ObservationLayout, StackedPolicy, encode_observations, sample_observations
from .normalization import Normalizer


def example_observations(space: Space[Any]) -> Tensor:
    """Two random observations as the networks take them, [2, O]."""
    return torch.from_numpy(encode_observations(space, sample_observations(space, 2)))


def play_episodes(
    act: Callable[[npt.NDArray[Any]], npt.NDArray[Any]],
    envs: VectorEnv[Any, Any, Any],
    seed: int,
    before_step: Callable[[], object] | None = None,
) -> list[float]:
    """Undiscounted returns of one episode in every sub-environment.

    The first episode of each counts, so that short episodes are not favoured.

    Args:
        act: actions ``[E, …]`` for observations ``[E, …]``, both as the environments have them.
        envs: E sub-environments with SAME_STEP autoreset.
        seed: of the environments; the same seed gives the same initial states.
        before_step: called before every step, with the environments as the policy sees them.

    Returns:
        E returns.
    """
    obs, _ = envs.reset(seed=seed)
    returns = np.zeros(envs.num_envs)
    running = np.ones(envs.num_envs, np.bool_)
    while running.any():
        if before_step is not None:
            before_step()
        obs, rewards, terminated, truncated, _ = envs.step(act(obs))
        returns += rewards * running
        running &= ~(terminated | truncated)
    return [float(r) for r in returns]


@torch.no_grad()
def evaluate_policy(
    policy: nn.Module,
    envs: VectorEnv[Any, Any, Any],
    seed: int,
    normalizer: Normalizer | None = None,
    before_step: Callable[[], object] | None = None,
) -> list[float]:
    """Undiscounted returns of one episode in every sub-environment, with the most likely action at every step.

    Args:
        policy: a module that `StackedPolicy` takes.
        envs: E sub-environments, as for `play_episodes`.
        seed: of the environments, likewise.
        normalizer: the statistics that the policy was trained with; they are used and not updated.
        before_step: as for `play_episodes`.

    Returns:
        E returns.

    Raises:
        ConfigError: the outputs of the network would depend on earlier calls, see `StackedPolicy.examine`.
    """
    point = parameters_to_vector(policy.parameters()).detach()[None]
    space = envs.single_observation_space
    stacked = StackedPolicy(policy)
    stacked.examine(example_observations(space), critic=False)
    bound = stacked.bind(point)
    layout = ObservationLayout(space)

    def act(obs: npt.NDArray[Any]) -> npt.NDArray[Any]:
        seen = layout.encode(obs)
        rows = torch.from_numpy(normalizer.observations(seen) if normalizer else seen).to(point.device)[None]
        actions = bound.distribution.mode(bound.actor(rows))[0].cpu().numpy()
        return bound.distribution.to_env(actions)

    return play_episodes(act, envs, seed, before_step)
