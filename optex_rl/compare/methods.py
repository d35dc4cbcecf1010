"""The methods that `optex-rl compare` knows: names for options of a run.

``NAME`` or ``NAME:option=value,option=value``, where the options are fields of `TrainConfig`: ``optex:stride=2``. Those
of sb3-a2c and sb3-ppo are ``steps`` and ``evaluations``, see `Sb3Config`. Of several numbers, ``ppo:n_epochs=5/10/20``,
tuning chooses one.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Final, get_type_hints

from ..common.errors import ConfigError
from ..common.validation import flag_reader
from ..training.config import CLUSTER, TrainConfig
from .rl_zoo3 import Sb3Config

METHODS: Final[dict[str, dict[str, Any]]] = {
    "vanilla": {"method": "vanilla"},
    "data-parallel": {"method": "data-parallel"},
    "target": {"method": "target"},
    "optex": {"method": "optex"},
    "mean": {"method": "optex", "predictor": "mean"},
    "last": {"method": "optex", "predictor": "last"},
    # As many samples an iteration as the N points take together.
    "ppo": {"algo": "ppo", "method": "data-parallel"},
    "trpo": {"algo": "trpo", "method": "data-parallel"},
}
SB3_METHODS: Final[dict[str, dict[str, Any]]] = {"sb3-a2c": {"algo": "a2c"}, "sb3-ppo": {"algo": "ppo"}}
NAMES: Final = (*METHODS, *SB3_METHODS)
SB3_OPTIONS: Final = frozenset({"steps", "evaluations"})
TRAIN_OPTIONS: Final = frozenset(spec.name for spec in dataclasses.fields(TrainConfig)) - {
    *("env", "method", "seed", "net_arch", "logdir", "run_name", "progress_bar", "checkpoint_freq"),
    *(*CLUSTER, "step_delay"),
}


def is_sb3(method: str) -> bool:
    """Whether ``method`` is one of stable-baselines3's."""
    return method.partition(":")[0] in SB3_METHODS


def method_options(method: str) -> tuple[dict[str, Any], dict[str, tuple[float, ...]]]:
    """What ``method`` stands for: options of `Sb3Config` if `is_sb3`, else of `TrainConfig`, and those to be tuned.

    Raises:
        ConfigError: the name, an option or its value cannot be used.
    """
    name, _, options = method.partition(":")
    known = METHODS | SB3_METHODS
    if name not in known:
        raise ConfigError(f"methods must be among {', '.join(NAMES)}, got {name!r}")
    fixed, tuned = dict(known[name]), {}
    for pair in filter(None, options.split(",")):
        option, values = _read_option(method, pair)
        if len(values) == 1:
            fixed[option] = values[0]
        elif is_sb3(method) or not all(type(value) in (int, float) and value > 0 for value in values):
            raise ConfigError(f"{option} in method {method!r} cannot be tuned: that takes numbers above 0 of our own")
        else:
            tuned[option] = tuple(sorted(set(values)))
    return fixed, tuned


def _read_option(method: str, pair: str) -> tuple[str, list[Any]]:
    """Name and values of ``option=value`` or ``option=value/value``."""
    name, equals, texts = pair.partition("=")
    name = name.strip().replace("-", "_")
    config, allowed = (Sb3Config, SB3_OPTIONS) if is_sb3(method) else (TrainConfig, TRAIN_OPTIONS)
    if not equals or name not in allowed:
        words = ", ".join(sorted(allowed)) if is_sb3(method) else "those of train"
        raise ConfigError(f"method {method!r} must be NAME:option=value,… with options {words}, got {pair!r}")
    hint = get_type_hints(config)[name]
    if hint is bool:
        if texts not in ("yes", "no"):
            raise ConfigError(f"{name} in method {method!r} must be yes or no, got {texts!r}")
        return name, [texts == "yes"]
    try:
        return name, [flag_reader(hint)(text) for text in texts.split("/")]
    except ValueError as error:
        raise ConfigError(f"{name} in method {method!r} cannot be {texts!r}") from error
