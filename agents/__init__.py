"""Agents: stacked policies, action distributions, and the losses that train them."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Final

from ..common.errors import ConfigError
from .actor_critic import ActorCritic, Rows
from .interface import Agent, AgentLosses, Batch, Iterate, Update
from .networks.cnn import CnnPolicy
from .networks.discrete import Bernoulli, Categorical, MultiCategorical
from .networks.distributions import ActionDistribution, make_distribution
from .networks.gaussian import DiagonalGaussian, SquashedGaussian
from .networks.mlp import ActorCriticPolicy, MlpPolicy
from .networks.observations import ObservationLayout, encode_observations, observation_size, sample_observations
from .networks.stacked import BoundPolicy, StackedPolicy
from .ppo import PPO
from .reinforce import Reinforce
from .trpo import TRPO

__all__ = [
    "AGENTS",
    "PPO",
    "TRPO",
    "ActionDistribution",
    "ActorCritic",
    "ActorCriticPolicy",
    "Agent",
    "AgentLosses",
    "Batch",
    "Bernoulli",
    "BoundPolicy",
    "Categorical",
    "CnnPolicy",
    "DiagonalGaussian",
    "Iterate",
    "MlpPolicy",
    "MultiCategorical",
    "ObservationLayout",
    "Reinforce",
    "Rows",
    "SquashedGaussian",
    "StackedPolicy",
    "Update",
    "agent_options",
    "encode_observations",
    "make_agent",
    "make_distribution",
    "observation_size",
    "sample_observations",
]

AGENTS: Final[dict[str, type[Agent]]] = {"a2c": ActorCritic, "ppo": PPO, "reinforce": Reinforce, "trpo": TRPO}


def agent_options(name: str) -> list[str]:
    """The names of the hyper-parameters of the agent called `name`, one of `AGENTS`.

    Raises:
        ConfigError: an unknown name.
    """
    if name not in AGENTS:
        raise ConfigError(f"Unknown agent {name!r}: choose one of {', '.join(sorted(AGENTS))}.")
    agent: Any = AGENTS[name]  # a dataclass, like all of them
    return [field.name for field in fields(agent)]


def make_agent(name: str, **hyperparameters: Any) -> Agent:
    """The agent called `name`, one of `AGENTS`, with the given hyper-parameters.

    Raises:
        ConfigError: an unknown name, an unknown hyper-parameter, or a value outside of its range.
    """
    allowed = agent_options(name)
    unknown = sorted(set(hyperparameters) - set(allowed))
    if unknown:
        raise ConfigError(f"Agent {name!r} has no hyper-parameter {', '.join(unknown)}: it has {', '.join(allowed)}.")
    return AGENTS[name](**hyperparameters)
