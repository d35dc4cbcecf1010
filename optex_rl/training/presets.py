"""Tuned options for known tasks, from ``presets.yml`` beside this file."""

from __future__ import annotations

import functools
from importlib import resources
from typing import Any, Final

import yaml

NAMESPACE: Final = "optex_rl/"  # natively vectorised tasks may be named with or without it


@functools.cache
def _table() -> dict[str, dict[str, dict[str, Any]]]:
    """Options by task and agent."""
    text = resources.files(__package__ or "optex_rl.training").joinpath("presets.yml").read_text(encoding="utf-8")
    table: dict[str, dict[str, dict[str, Any]]] = yaml.safe_load(text)
    return table


def tuned_options(env: str, algo: str) -> dict[str, Any]:
    """The tuned options of an agent on a task; empty where there are none, which leaves the defaults."""
    return dict(_table().get(env.removeprefix(NAMESPACE), {}).get(algo, {}))
