"""The methods that `optex-rl compare` knows: names for overrides of `TrainConfig`.

``NAME`` or ``NAME:option=value,option=value``, where the options are fields of `TrainConfig`: ``optex:stride=2``.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Final, get_type_hints

from .config import TrainConfig
from .errors import ConfigError
from .flags import flag_reader

METHODS: Final[dict[str, dict[str, Any]]] = {
    "vanilla": {"method": "vanilla"},
    "data-parallel": {"method": "data-parallel"},
    "target": {"method": "target"},
    "optex": {"method": "optex"},
    "mean": {"method": "optex", "predictor": "mean"},
    "last": {"method": "optex", "predictor": "last"},
    "ppo": {"algo": "ppo", "method": "data-parallel"},  # as many samples an iteration as the N points take together
}


def method_overrides(method: str) -> dict[str, Any]:
    """The options of a method.

    Raises:
        ConfigError: the name, an option or its value cannot be used.
    """
    name, _, options = method.partition(":")
    if name not in METHODS:
        raise ConfigError(f"methods must be among {', '.join(METHODS)}, got {name!r}")
    return METHODS[name] | dict(_read_option(method, pair) for pair in options.split(",") if pair)


def _read_option(method: str, pair: str) -> tuple[str, Any]:
    """Name and value of ``option=value``."""
    name, equals, text = pair.partition("=")
    name = name.strip().replace("-", "_")
    fields = {spec.name for spec in dataclasses.fields(TrainConfig)} - {"env", "method", "seed", "net_arch"}
    if not equals or name not in fields:
        raise ConfigError(f"method {method!r} must be NAME:option=value,… with options of train, got {pair!r}")
    hint = get_type_hints(TrainConfig)[name]
    if hint is bool:
        if text not in ("yes", "no"):
            raise ConfigError(f"{name} in method {method!r} must be yes or no, got {text!r}")
        return name, text == "yes"
    try:
        return name, flag_reader(hint)(text)
    except ValueError as error:
        raise ConfigError(f"{name} in method {method!r} cannot be {text!r}") from error
