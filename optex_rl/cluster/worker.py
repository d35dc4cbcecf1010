"""What runs in each process of a cluster: the evaluation of a share of the parts, fused.

Axes: k parts of the share, E environments per part, d parameters.
"""

from __future__ import annotations

import importlib.metadata
import platform
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import numpy.typing as npt
import torch
from gymnasium import Space

from ..agents import Agent, Batch, StackedPolicy
from ..envs import NATIVE
from ..envs.registry import Task
from ..training.builders import build_collector
from ..training.config import TrainConfig
from ..training.rollouts.episodes import Episode
from ..training.rollouts.evaluator import FusedEvaluator, keep_freed_memory
from ..training.rollouts.normalization import Report
from .shares import Share

Array = npt.NDArray[Any]


class Spec(NamedTuple):
    """What a worker is made from.

    Attributes:
        config: the options of the run.
        agent: gives the loss.
        policy: the network's architecture.
        task: what is known of it, which may be registered in the learner's process only.
        share: the parts.
        gradients: whether the worker differentiates; else it collects, and the learner does.
        rows: whether the learner needs the experience.
    """

    config: TrainConfig
    agent: Agent
    policy: StackedPolicy
    task: Task
    share: Share
    gradients: bool
    rows: bool


class Order(NamedTuple):
    """What a worker is sent for an evaluation.

    Attributes:
        points: ``[k, d]``, or ``[1, d]`` for groups of environments of one point.
        buffers: of the network, by name.
        statistics: of the normalisation; None without any.
        state: of the collector, to be loaded first; None to go on.
    """

    points: Array
    buffers: Mapping[str, Array]
    statistics: dict[str, Any] | None
    state: dict[str, Any] | None


class Reply(NamedTuple):
    """What it answers.

    Attributes:
        gradients: ``[k, d]``; None where the learner differentiates.
        losses: the fields of `AgentLosses`, ``[k]`` each; likewise.
        batch: the fields of `Batch`, where the learner needs them or a number is not finite.
        episodes: that ended, their points counted from the first of the share.
        broken: which environments gave numbers that are not finite, ``[k·E]``.
        report: for the learner's statistics; None without normalisation.
        state: of the collector afterwards.
        seconds: that it took.
    """

    gradients: Array | None
    losses: tuple[Array, ...] | None
    batch: tuple[Array, ...] | None
    episodes: list[Episode]
    broken: Array
    report: Report | None
    state: dict[str, Any]
    seconds: float


class Info(NamedTuple):
    """What a worker says of itself when it starts: its versions, its environments, the collector's first state."""

    versions: dict[str, str]
    description: str
    is_exact: bool
    observations: Space[Any]
    state: dict[str, Any]


def versions() -> dict[str, str]:
    """The versions that learner and workers must share, by name."""
    packages = {name: importlib.metadata.version(name) for name in ("optex-rl", "torch", "numpy", "gymnasium")}
    return {"Python": ".".join(platform.python_version_tuple()[:2])} | packages


class Worker:
    """Evaluates its share of the parts; lives in a process of its own, with one thread."""

    def __init__(self, spec: Spec) -> None:
        torch.set_num_threads(1)
        keep_freed_memory()
        if spec.task.spec is not None:
            gymnasium.registry.setdefault(spec.task.spec.id, spec.task.spec)
            if spec.task.batch is not None:
                NATIVE.setdefault(spec.task.batch.env_id, spec.task.batch)
        self.spec, share = spec, spec.share
        # No processes for each environment: workers are what the machine's cores are for.
        backend = "sync" if spec.task.batch is None or spec.config.env_wrapper else "auto"
        collector = build_collector(spec.config, share.size, share.envs_per_part, share.first, backend)
        self.evaluator = FusedEvaluator(spec.policy, spec.agent, collector)

    def info(self) -> Info:
        """What it is."""
        evaluator = self.evaluator
        space = evaluator.collector.envs.single_observation_space
        return Info(versions(), evaluator.description, evaluator.is_exact, space, evaluator.state_dict())

    def evaluate(self, order: Order) -> Reply:
        """Collect and, where that is not left to the learner, differentiate."""
        started = time.perf_counter()
        evaluator, share = self.evaluator, self.spec.share
        self._take(order)
        points = torch.from_numpy(order.points.copy())
        gradients = losses = None
        if self.spec.gradients:
            evaluation = evaluator(points)
            gradients, losses = evaluation.gradients.numpy(), tuple(part.numpy() for part in evaluation.losses)
            batch, episodes, broken = evaluation.batch, evaluation.episodes, evaluation.broken
        else:
            bound = self.spec.policy.bind(points.expand(share.size, -1))  # one point, or as many as there are parts
            batch, episodes = evaluator.collector.collect(bound)
            broken = evaluator.collector.broken
        report = None if order.statistics is None else evaluator.normalizer.report()
        wanted = self.spec.rows or broken.any() or not _is_finite(gradients, losses)
        return Reply(
            gradients,
            losses,
            tuple(column.numpy() for column in batch) if wanted else None,
            episodes,
            broken,
            report,
            evaluator.state_dict(),
            time.perf_counter() - started,
        )

    def _take(self, order: Order) -> None:
        """Load buffers, statistics and state."""
        buffers = dict(self.spec.policy.policy.named_buffers())
        for name, values in order.buffers.items():
            buffers[name].copy_(torch.from_numpy(values.copy()))
        if order.statistics is not None:
            self.evaluator.normalizer.load_state_dict(order.statistics)
        if order.state is not None:
            self.evaluator.load_state_dict(order.state)


def _is_finite(gradients: Array | None, losses: tuple[Array, ...] | None) -> bool:
    """Whether gradients and total losses are."""
    return gradients is None or losses is None or bool(np.isfinite(gradients).all() and np.isfinite(losses[0]).all())


def batch_of(reply: Reply | None) -> Batch | None:
    """The experience in a reply, if any; copied, since arrays that came from elsewhere must not be written."""
    if reply is None or reply.batch is None:
        return None
    return Batch(*(torch.from_numpy(column.copy()) for column in reply.batch))
