"""Tuned options for known tasks, from ``presets.yml`` beside this file."""

from __future__ import annotations

from typing import Any, Final

from ..common.errors import ConfigError
from ..common.storage import packaged_table
from ..envs.registry import NAMESPACE

TUNED_BASE: Final = "adam"  # the base optimizer that the learning rates, and the default one, are for


def tuned_options(env: str, algo: str) -> dict[str, Any]:
    """The tuned options of an agent on a task; empty where there are none, which leaves the defaults."""
    table = packaged_table("optex_rl.training", "presets.yml")
    return dict(table.get(env.removeprefix(NAMESPACE), {}).get(algo, {}))


def check_tuned_rate(optimizer: str, learning_rate: float) -> None:
    """Refuse a learning rate that nobody gave where it is another optimizer's.

    Raises:
        ConfigError: ``optimizer`` is not `TUNED_BASE`.
    """
    if optimizer != TUNED_BASE:
        raise ConfigError(
            f"learning_rate must be given with the optimizer {optimizer!r} (--learning-rate): {learning_rate:g} is for "
            f"{TUNED_BASE}; docs/optimizers.md has a rate for each"
        )
