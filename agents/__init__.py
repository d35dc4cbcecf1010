"""Agents: stacked policies, action distributions, and the losses that train them."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from ..errors import ConfigError
from .actor_critic import ActorCritic as ActorCritic
from .batch import Agent as Agent
from .batch import AgentLosses as AgentLosses
from .batch import Batch as Batch
from .distributions import ActionDistribution as ActionDistribution
from .distributions import Categorical as Categorical
from .distributions import DiagonalGaussian as DiagonalGaussian
from .distributions import make_distribution as make_distribution
from .policies import ActorCriticPolicy as ActorCriticPolicy
from .policies import BoundPolicy as BoundPolicy
from .policies import MlpPolicy as MlpPolicy
from .policies import StackedPolicy as StackedPolicy
from .policies import encode_observations as encode_observations
from .policies import observation_size as observation_size
from .policies import sample_observations as sample_observations
from .ppo import PPO as PPO
from .ppo import Rows as Rows
from .reinforce import Reinforce as Reinforce

__all__ = [
    "PPO",
    "ActionDistribution",
    "ActorCritic",
    "ActorCriticPolicy",
    "Agent",
    "AgentLosses",
    "Batch",
    "BoundPolicy",
    "Categorical",
    "DiagonalGaussian",
    "MlpPolicy",
    "Reinforce",
    "Rows",
    "StackedPolicy",
    "encode_observations",
    "make_agent",
    "make_distribution",
    "observation_size",
    "sample_observations",
]

_AGENTS: dict[str, type[ActorCritic] | type[Reinforce]] = {"a2c": ActorCritic, "ppo": PPO, "reinforce": Reinforce}


def make_agent(name: str, **hyperparameters: Any) -> Agent:
    """The agent called `name` ("reinforce", "a2c" or "ppo") with the given hyper-parameters.

    Raises:
        ConfigError: an unknown name, an unknown hyper-parameter, or a value outside of its range.
    """
    if name not in _AGENTS:
        raise ConfigError(f"Unknown agent {name!r}: choose one of {', '.join(sorted(_AGENTS))}.")
    agent = _AGENTS[name]
    allowed = [field.name for field in fields(agent)]
    unknown = sorted(set(hyperparameters) - set(allowed))
    if unknown:
        raise ConfigError(f"Agent {name!r} has no hyper-parameter {', '.join(unknown)}: it has {', '.join(allowed)}.")
    return agent(**hyperparameters)
