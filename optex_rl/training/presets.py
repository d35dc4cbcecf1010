"""Tuned options for known tasks, from ``presets.yml`` beside this file."""

from __future__ import annotations

from typing import Any, Final

from ..common.storage import packaged_table

NAMESPACE: Final = "optex_rl/"  # natively vectorised tasks may be named with or without it


def tuned_options(env: str, algo: str) -> dict[str, Any]:
    """The tuned options of an agent on a task; empty where there are none, which leaves the defaults."""
    table = packaged_table("optex_rl.training", "presets.yml")
    return dict(table.get(env.removeprefix(NAMESPACE), {}).get(algo, {}))
