"""Options that name a user's own code, tasks, wrappers and networks: checked here, imported when they are used.

Nothing is imported by a check, because the options of a run folder are checked before it is known whether to trust it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, Final

import gymnasium
import torch
import yaml
from gymnasium import Space
from torch import nn

from ..common.errors import ConfigError
from ..common.imports import find_named, name_of
from ..common.validation import shown
from ..envs import task_name

# Arguments of `make_vec` itself.
RESERVED: Final = ("num_envs", "seed", "backend", "render_mode", "wrappers", "frame_stack")

Wrapper = Callable[[gymnasium.Env[Any, Any]], gymnasium.Env[Any, Any]]


def check_env(env: Any, on_disk: bool) -> None:
    """Refuse an ``env`` that is no id and no function, which must have a name that a run folder can record.

    Raises:
        ConfigError: it is neither, or cannot be recorded and ``on_disk`` says that it is to be.
    """
    if isinstance(env, str):
        return
    if not callable(env):
        raise ConfigError(f"env must be an id or a function that makes an environment, got {shown(env)}")
    if on_disk and name_of(env) is None:
        raise ConfigError(
            f"env must be a function or class at the top level of a module, so that the run can be resumed, got "
            f"{task_name(env)}: move it there, or use logdir=None to write nothing"
        )


def check_env_kwargs(value: Any) -> dict[str, Any] | None:
    """Return a copy of the arguments of a task: names, and values that a YAML file holds; None for none.

    Raises:
        ConfigError: they are something else.
    """
    if value is None:
        return None
    if not isinstance(value, Mapping) or not all(isinstance(name, str) and name not in RESERVED for name in value):
        raise ConfigError(
            f"env_kwargs must be a dictionary of names other than {', '.join(RESERVED)}, got {shown(value)}"
        )
    return dict(_plain("env_kwargs", dict(value))) or None


def check_env_wrapper(value: Any) -> list[str | dict[str, Any]] | None:
    """Return wrappers as rl_zoo3 spells them: each a name, "module.Class", or a dictionary from it to its arguments.

    Args:
        value: one of these, a class, or a list of them; None for none.

    Raises:
        ConfigError: it is something else, or a class that cannot be found by its name.
    """
    if value is None:
        return None
    entries = [_wrapper(entry) for entry in (value if isinstance(value, (list, tuple)) else [value])]
    return entries or None


def _wrapper(entry: Any) -> str | dict[str, Any]:
    if isinstance(entry, str) and entry:
        return entry
    if isinstance(entry, type) and name_of(entry) is not None:
        return str(name_of(entry))
    if isinstance(entry, Mapping) and len(entry) == 1:
        ((wrapper, kwargs),) = entry.items()
        name = _wrapper(wrapper)
        if isinstance(name, str) and isinstance(kwargs, Mapping):
            return {name: _plain("env_wrapper", dict(kwargs))}
    raise ConfigError(
        "env_wrapper must be 'module.Class', a class at the top level of a module, {either: arguments}, or a list of "
        f"these, got {shown(entry)}"
    )


def _plain(name: str, value: Any) -> Any:
    """A copy as it comes back from a YAML file."""
    try:
        return yaml.safe_load(yaml.safe_dump(value))
    except yaml.YAMLError as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{name} must hold numbers, text, lists and dictionaries only ({reason})") from error


def wrapper_names(wrappers: list[str | dict[str, Any]] | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """The name, "module:Class", and the arguments of each wrapper."""
    for entry in wrappers or ():
        name, kwargs = (entry, {}) if isinstance(entry, str) else next(iter(entry.items()))
        yield name if ":" in name else ":".join(name.rsplit(".", 1)), kwargs


def find_wrappers(wrappers: list[str | dict[str, Any]] | None) -> list[Wrapper]:
    """The wrappers that the names mean.

    Raises:
        ConfigError: one of them cannot be found, or cannot be called with an environment and its arguments.
    """
    return [_bound(name, kwargs) for name, kwargs in wrapper_names(wrappers)]


def _bound(name: str, kwargs: dict[str, Any]) -> Wrapper:
    wrapper = find_named(name, "env_wrapper")
    try:
        with suppress(ValueError):  # some of C have no signature
            inspect.signature(wrapper).bind(None, **kwargs)
    except TypeError as error:
        raise ConfigError(f"env_wrapper {name} cannot be called with an environment and {kwargs}: {error}") from error

    def wrap(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
        wrapped = wrapper(env, **kwargs)
        if not isinstance(wrapped, gymnasium.Env):
            raise ConfigError(f"env_wrapper {name} must make a gymnasium.Env, and it made a {type(wrapped).__name__}")
        return wrapped

    return wrap


def check_policy(policy: Any) -> nn.Module:
    """Return ``policy`` if it is a network.

    Raises:
        ConfigError: it is something else, such as the class or the name of one.
    """
    if isinstance(policy, nn.Module):
        return policy
    raise ConfigError(
        "policy must be an instance of torch.nn.Module, or 'module:factory' in the options, in load and in resume, got "
        f"{shown(policy)}"
    )


def make_own_policy(name: str, observations: Space[Any], actions: Space[Any], seed: int) -> nn.Module:
    """The network that the function or class ``name``, "module:factory", makes for a task.

    It is called with the two spaces, with the global generator of torch seeded and afterwards as it was.

    Raises:
        ConfigError: there is no such factory, it takes other arguments, or it makes no module.
    """
    factory = find_named(name, "policy")
    try:
        inspect.signature(factory).bind(observations, actions)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"policy {name} must take an observation space and an action space: {error}") from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        policy = factory(observations, actions)
    if not isinstance(policy, nn.Module):
        raise ConfigError(f"policy {name} must make a torch.nn.Module, and it made a {type(policy).__name__}")
    return policy
