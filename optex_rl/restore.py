"""From the content of a checkpoint to a trainer that goes on: everything is checked before anything is believed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from gymnasium.vector import VectorEnv
from torch import Tensor
from torch.optim import Optimizer

from .agents import MlpPolicy
from .checkpoints import check_like
from .config import TrainConfig
from .errors import OptExError, RunFolderError
from .estimator import GradientEstimator
from .flat import FlatBase
from .normalization import Normalizer
from .objective import RefreshedBase
from .runs import check_network
from .training import Trainer, build_normalizer, build_policy


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
    known = configured if content is None else content.get("iterations")
    if type(known) is not int or known < 1:
        raise RunFolderError(f"{path}.iterations must be a whole number of at least 1, it is {known!r}")
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
    """Bring a new trainer to where the checkpoint is, the settings having been compared.

    Raises:
        RunFolderError: the checkpoint is from another run, or not built as it must be; the message names the entry.
    """
    name = type(trainer.agent).__name__
    if content.get("agent") != name:
        raise RunFolderError(f"{path} is from a run with the agent {content.get('agent')}, not {name}: give it, too")
    check_network(path, content, trainer.policy)
    template = trainer.state_dict() | {"wall_time": 0.0}
    template["optimizer"]["param_groups"] = []  # what they hold depends on whether there was a step: see _check_base
    try:
        for name, like in template.items():
            if name not in content:
                raise RunFolderError(f"{path}.{name} is missing")
            check_like(f"{path}.{name}", content[name], like)
        _check_numbers(path, content)
        _check_base(f"{path}.optimizer", content["optimizer"], trainer.optimizer.base)
        if trainer.critic is not None:
            _check_base(f"{path}.critic.optimizer", content["critic"]["optimizer"], trainer.critic.base.base)
        _check_history(f"{path}.optimizer.optex", content["optimizer"]["optex"], trainer)
        trainer.load_state_dict(content)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError, OverflowError) as error:
        if isinstance(error, OptExError):
            raise
        reason = str(error).splitlines()[0] if str(error) else "wrong content"
        raise RunFolderError(f"{path} does not fit this run: {type(error).__name__}, {reason}") from error


def restore_policy(
    config: TrainConfig, envs: VectorEnv[Any, Any, Any], path: Path, content: dict[str, Any]
) -> tuple[MlpPolicy, Normalizer]:
    """The policy of a checkpoint and the normalisation that it is used with.

    Raises:
        RunFolderError: the checkpoint holds another network, or is not built as it must be.
    """
    spaces = envs.single_observation_space, envs.single_action_space
    policy, normalizer = build_policy(config, config.make_agent(), *spaces), build_normalizer(config, envs)
    check_network(path, content, policy)
    try:
        policy.load_state_dict(content["policy"])
        for name in ("obs", "returns"):
            check_like(f"{path}.normalizer.{name}", content["normalizer"][name], normalizer.state_dict()[name])
        normalizer.load_state_dict(content["normalizer"])
    except (RuntimeError, KeyError, TypeError, AttributeError) as error:
        raise RunFolderError(f"{path} does not hold the policy that it describes") from error
    return policy, normalizer


def _check_numbers(path: Path, content: dict[str, Any]) -> None:
    """Refuse counters below zero and times that are none."""
    counters = {name: content[name] for name in ("iteration", "env_steps", "wall_time")}
    counters |= {f"trouble.{name}": value for name, value in content["trouble"].items()}
    counters["episodes.count"] = content["episodes"]["count"]
    for name, value in counters.items():
        if not (0 <= value < math.inf):
            raise RunFolderError(f"{path}.{name} must be a number of at least 0, it is {value}")
    for entry in content["episodes"]["window"]:
        check_like(f"{path}.episodes.window", entry, [0.0, 0])
    for name in ("policy", "optimizer", "critic", "normalizer", "evaluator"):
        _check_finite(f"{path}.{name}", content[name])


def _check_finite(path: str, value: Any) -> None:
    """Refuse a nest with tensors that hold NaN or infinite values: training keeps none."""
    if isinstance(value, Tensor) and not value.isfinite().all():
        raise RunFolderError(f"{path} is not finite")
    if isinstance(value, (dict, list, tuple)):
        for key, entry in value.items() if isinstance(value, dict) else enumerate(value):
            _check_finite(f"{path}.{key}", entry)


def _check_base(path: str, state: dict[str, Any], base: Optimizer) -> None:
    """Refuse groups and a state of a base optimizer that neither its construction nor a step would have made."""
    flat = FlatBase(base)
    zero = torch.zeros_like(flat.point())
    with flat.rewound():
        if state["state"] or any(group.get("step") for group in state["param_groups"]):
            if isinstance(base, RefreshedBase):
                base.forget()
            flat.step(zero, lambda _: zero)
        template = base.state_dict()
        for name in ("param_groups", "state"):
            check_like(f"{path}.{name}", state[name], template[name])


def _check_history(path: str, state: dict[str, Any], trainer: Trainer) -> None:
    """Refuse a history of another shape than insertions make, and an iteration under way."""
    for name in ("proposal", "with_gradient"):
        if state[name] is not None:
            raise RunFolderError(f"{path}.{name} must be None, it is of type {type(state[name]).__name__}")
    for name, value in state["statistics"].items():
        check_like(f"{path}.statistics", [name, value], ["", 0.0])
    history = state["history"]
    if history is None:
        return
    options, groups = trainer.optimizer.options, FlatBase(trainer.optimizer.base).groups
    check_like(f"{path}.history", history, {})
    T = len(history["gradients"])
    if not 0 < T <= options.history_size:
        raise RunFolderError(f"{path}.history must have 1 to {options.history_size} pairs, it has {T}")
    sizes = [sum(p.numel() for p in group["params"]) for group in groups]
    template = GradientEstimator(
        sum(sizes),
        history_size=options.history_size,
        block_sizes=sizes if options.blocks == "groups" else None,
        dtype=torch.promote_types(groups[0]["params"][0].dtype, torch.float32),
    )
    template.insert(torch.zeros(T, sum(sizes)), torch.zeros(T, sum(sizes)))
    check_like(f"{path}.history", history, template.state_dict())
