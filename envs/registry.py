"""Which tasks there are: those of Gymnasium, batch tasks, and functions that make one environment."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias, TypeVar

import gymnasium
from gymnasium.envs.registration import EnvSpec

from ..common.errors import ConfigError
from ..common.imports import find_named, import_named, name_of
from .acrobot import Acrobot
from .cartpole import CartPole
from .catch import Catch
from .mountain_car import MountainCar, MountainCarContinuous
from .native import NativeVectorEnv
from .pendulum import Pendulum
from .single import SingleEnv

SingleFactory: TypeAlias = Callable[..., gymnasium.Env[Any, Any]]
EnvFactory: TypeAlias = SingleFactory | type[NativeVectorEnv]
BatchTask = TypeVar("BatchTask", bound=type[NativeVectorEnv])

NAMESPACE = "optex_rl/"  # natively vectorised tasks may be named with or without it
NATIVE: dict[str, type[NativeVectorEnv]] = {
    task.env_id: task for task in (CartPole, Acrobot, MountainCar, MountainCarContinuous, Pendulum, Catch)
}


class Task(NamedTuple):
    """What can be made of a task.

    Attributes:
        name: for messages and logs.
        batch: the class that steps all environments as one batch, or None.
        single: makes one environment, or None if there is no such thing.
        spec: as of Gymnasium; None for a function.
    """

    name: str
    batch: type[NativeVectorEnv] | None
    single: SingleFactory | None
    spec: EnvSpec | None


def register(task: BatchTask) -> BatchTask:
    """Make ``task``, a batch task of one's own, known by its ``env_id``; may be used as a decorator, returns the class.

    From then on `make_vec`, `TrainConfig` and, as ``--env module:Id``, the command line have it, and Gymnasium makes it
    with ``make_vec(..., vectorization_mode="vector_entry_point")``. A module that is loaded again replaces its tasks.

    Raises:
        ConfigError: the class is no `NativeVectorEnv` with an ``env_id`` and a ``default_max_episode_steps``, or the id
            is taken.
    """
    if not (isinstance(task, type) and issubclass(task, NativeVectorEnv)):
        raise ConfigError(f"register needs a subclass of NativeVectorEnv, got {task!r}.")
    spec = _spec_of(task)
    if (spec.id in gymnasium.registry or spec.id in NATIVE) and not _is_loaded_again(task, NATIVE.get(spec.id)):
        raise ConfigError(f"{task.__name__}.env_id must be new, and {spec.id!r} is taken.")
    gymnasium.registry[spec.id] = spec
    NATIVE[spec.id] = task
    return task


def _is_loaded_again(task: type[NativeVectorEnv], known: type[NativeVectorEnv] | None) -> bool:
    """Whether a class is the ``known`` one of a module that was reloaded, or that is also the program itself."""
    if known is None or known.__qualname__ != task.__qualname__:
        return False
    return known.__module__ == task.__module__ or "__main__" in (known.__module__, task.__module__)


def find_task(env: str | EnvFactory) -> Task:
    """The task that ``env`` means.

    Args:
        env: an id of Gymnasium's or of `register`, with or without "package:" before it; "module:function" or the
            function itself, which makes one environment; or a `NativeVectorEnv` class.

    Raises:
        ConfigError: there is none; it names the closest id.
    """
    if isinstance(env, str):
        return _find_by_name(env)
    if isinstance(env, type) and issubclass(env, NativeVectorEnv):
        return Task(env.env_id, env, None, _spec_of(env))
    if not callable(env):
        raise ConfigError(f"an environment must be an id or a function that makes one, got {env!r}.")
    single: Any = env
    return Task(task_name(single), None, single, None)


def task_name(env: str | EnvFactory) -> str:
    """The name of ``env``: its id, "module:function" if it is found again by that, or else what it is called."""
    return env if isinstance(env, str) else name_of(env) or str(getattr(env, "__name__", type(env).__name__))


def _find_by_name(env: str) -> Task:
    module, _, name = env.rpartition(":")
    imported = import_named(module, f"environment {env!r}") if module else None
    if name in NATIVE and name not in gymnasium.registry:  # a task of ours that Gymnasium does not have
        name = NAMESPACE + name
    if name in gymnasium.registry:
        spec = gymnasium.spec(name)
        # A task of `register` exists as a batch only.
        single = None if spec.entry_point is None else partial(gymnasium.make, spec.id)
        return Task(name, NATIVE.get(name.removeprefix(NAMESPACE)), single, spec)
    if hasattr(imported, name.partition(".")[0]):
        return find_task(find_named(env, f"environment {env!r}"))._replace(name=env)
    lower = {known.lower(): known for known in gymnasium.registry}
    closest = difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.0)[0]
    raise ConfigError(
        f"unknown environment {env!r}; the closest registered id is {lower[closest]!r} "
        "('package:Name-v0' imports a package that registers more, 'module:function' calls a function that makes one)."
    )


def _spec_of(task: type[NativeVectorEnv]) -> EnvSpec:
    """Gymnasium's description of a batch task."""
    make: Any = task
    try:
        return EnvSpec(task.env_id, vector_entry_point=make, max_episode_steps=task.default_max_episode_steps)
    except (AttributeError, gymnasium.error.Error) as error:
        words = "a batch task needs env_id, such as 'Name-v0', and default_max_episode_steps"
        raise ConfigError(f"{task.__name__}: {words} ({error}).") from error


def register_native() -> None:
    """Register `optex_rl/<id>` for every native task, unless done: our vector class, Gymnasium's scalar one or ours."""
    for task in (CartPole, Acrobot, MountainCar, MountainCarContinuous, Pendulum, Catch):
        if NAMESPACE + task.env_id not in gymnasium.registry:
            known = gymnasium.registry.get(task.env_id)
            gymnasium.register(
                NAMESPACE + task.env_id,
                entry_point=known.entry_point if known else partial(SingleEnv, task),
                vector_entry_point=f"{task.__module__}:{task.__name__}",
                reward_threshold=known.reward_threshold if known else None,
                max_episode_steps=task.default_max_episode_steps,
            )
