"""Restoring a trainer, or a policy, from the content of a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from gymnasium.vector import VectorEnv
from torch import nn
from torch.optim import Optimizer

from ..bases import RefreshedBase
from ..bases.flat import FlatBase
from ..common.errors import RunFolderError
from ..common.storage import check_like, must_fit
from ..training.builders import build_normalizer, build_policy
from ..training.config import TrainConfig
from ..training.rollouts.normalization import Normalizer
from ..training.tasks import check_policy
from ..training.trainer import Trainer
from .folder import check_network


def total_iterations(path: Path, content: dict[str, Any] | None, configured: int, asked: int | None) -> int:
    """How many iterations a resumed run is to have in all.

    The checkpoint knows; config.yml may lag behind it where a raised number was being written when the power went.

    Args:
        path: the checkpoint, for the messages.
        content: what is in it; None if there is none.
        configured: what config.yml says.
        asked: what the user says; None for nothing.

    Raises:
        RunFolderError: the numbers contradict each other, or the user wants fewer than before.
    """
    known: int = configured if content is None else content["iterations"]
    if asked is not None:
        if asked < known:
            raise RunFolderError(f"iterations can only be raised: the run has {known}, got {asked}")
        return asked
    if configured > known:
        raise RunFolderError(
            f"config.yml says {configured} iterations and {path} says {known}: give --iterations to say which"
        )
    return known


def restore(trainer: Trainer, path: Path, content: dict[str, Any]) -> None:
    """Load a checkpoint, whose options have been compared already, into a new trainer.

    Raises:
        RunFolderError: the checkpoint is from another run or is not built as it must be.
    """
    name = type(trainer.agent).__name__
    if content.get("agent") != name:
        raise RunFolderError(f"{path} is from a run with the agent {content.get('agent')}, not {name}: give it, too")
    with must_fit(path):
        check_network(path, content, trainer.policy)
        template = trainer.state_dict() | {"wall_time": 0.0}
        template["optimizer"]["param_groups"] = []  # whose entries depend on whether there was a step: see _check_base
        for name, like in template.items():
            if name not in content:
                raise RunFolderError(f"{path}.{name} is missing")
            check_like(f"{path}.{name}", content[name], like)
        _check_base(f"{path}.optimizer", content["optimizer"], trainer.optimizer.base)
        if trainer.critic is not None:
            _check_base(f"{path}.critic.optimizer", content["critic"]["optimizer"], trainer.critic.base.base)
        pending = content.get("pending")
        if pending is not None and not (isinstance(pending, dict) and pending):
            raise RunFolderError(f"{path}.pending must be the metrics of an iteration, or None")
        trainer.load_state_dict(content)


def _check_base(path: str, state: dict[str, Any], base: Optimizer) -> None:
    """Refuse groups and state that are built differently from those of the base after construction or a step."""
    flat = FlatBase(base)
    zero = torch.zeros_like(flat.point())
    with flat.rewound():
        if state["state"] or any(group.get("step") for group in state["param_groups"]):
            if isinstance(base, RefreshedBase):
                base.reset()
            flat.step(zero, lambda _: zero)
        template = base.state_dict()
        for name in ("param_groups", "state"):
            check_like(f"{path}.{name}", state[name], template[name])


def restore_policy(
    config: TrainConfig, envs: VectorEnv[Any, Any, Any], path: Path, content: dict[str, Any], policy: nn.Module | None
) -> tuple[nn.Module, Normalizer]:
    """The policy of a checkpoint and the normalisation that it is used with.

    Args:
        config: the options of the run.
        envs: its task.
        path: the checkpoint, for the messages.
        content: what is in it.
        policy: a custom network, which gets the parameters; None for the one that the options describe.

    Raises:
        RunFolderError: the checkpoint holds another network, or is not built as it must be.
        ConfigError: the custom network is none, or that of the options cannot be made.
    """
    spaces = envs.single_observation_space, envs.single_action_space
    normalizer = build_normalizer(config, spaces[0], envs.num_envs)
    with must_fit(path):
        # A custom agent, which is not needed here, may have had no critic where the agent of the options has one.
        critic = any(str(name).startswith("critic") for name in content["policy"])
    policy = build_policy(config, critic, *spaces) if policy is None else check_policy(policy)
    with must_fit(path):
        check_network(path, content, policy)
        policy.load_state_dict(content["policy"])
        for name in ("obs", "returns"):
            check_like(f"{path}.normalizer.{name}", content["normalizer"][name], normalizer.state_dict()[name])
        normalizer.load_state_dict(content["normalizer"])
    return policy, normalizer
