"""Agents: stacked policies, action distributions, and the losses that train them."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, Final

from ..common.errors import ConfigError
from .actor_critic import ActorCritic as ActorCritic
from .actor_critic import Rows as Rows
from .interface import Agent as Agent
from .interface import AgentLosses as AgentLosses
from .interface import Batch as Batch
from .interface import Iterate as Iterate
from .interface import Update as Update
from .networks.cnn import CnnPolicy as CnnPolicy
from .networks.discrete import Bernoulli as Bernoulli
from .networks.discrete import Categorical as Categorical
from .networks.discrete import MultiCategorical as MultiCategorical
from .networks.distributions import ActionDistribution as ActionDistribution
from .networks.distributions import make_distribution as make_distribution
from .networks.gaussian import DiagonalGaussian as DiagonalGaussian
from .networks.gaussian import SquashedGaussian as SquashedGaussian
from .networks.mlp import ActorCriticPolicy as ActorCriticPolicy
from .networks.mlp import MlpPolicy as MlpPolicy
from .networks.observations import ObservationLayout as ObservationLayout
from .networks.observations import encode_observations as encode_observations
from .networks.observations import observation_size as observation_size
from .networks.observations import sample_observations as sample_observations
from .networks.stacked import BoundPolicy as BoundPolicy
from .networks.stacked import StackedPolicy as StackedPolicy
from .ppo import PPO as PPO
from .reinforce import Reinforce as Reinforce
from .trpo import TRPO as TRPO

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
