"""The finished runs of a race, by task, method and setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from .comparison import Array, Curve, Summary, area, normalize, stack_returns, summarize
from .errors import ConfigError, RunFolderError
from .race import best_setting
from .race_methods import NAMES
from .race_runs import Run, read_run

# What counts as solved. Gymnasium's own thresholds where the task can be expected to reach them within the settings.
THRESHOLDS: Final[dict[str, float]] = {
    "CartPole-v1": 475.0,
    "Acrobot-v1": -100.0,
    "MountainCar-v0": -120.0,
    "MountainCarContinuous-v0": 90.0,
    "Pendulum-v1": -200.0,
    "LunarLander-v3": 150.0,
}


@dataclass(frozen=True)
class Entry:
    """The final runs of a method with one setting on a task.

    Attributes:
        chosen: whether it is the method's setting on this task.
        curves: one for each seed.
        start: mean return on the task before training, over the runs of all methods.
        threshold: the return to reach.
    """

    env: str
    method: str
    setting: str
    chosen: bool
    curves: list[Curve]
    start: float
    threshold: float

    def summary(self) -> Summary:
        """The figures of the runs; the same at every call."""
        return summarize(self.curves, self.threshold, self.start, np.random.default_rng(0))


def read_runs(folder: Path) -> list[Run]:
    """All finished runs of a race.

    Raises:
        RunFolderError: there are none, or a file is damaged.
    """
    runs = [read_run(path) for path in sorted(folder.glob("*.json"))]
    if not runs:
        raise RunFolderError(f"{folder} holds no finished run")
    return runs


def gather(runs: Sequence[Run], thresholds: Mapping[str, float]) -> list[Entry]:
    """The final runs by task, method and setting, in the order of the tables.

    Args:
        runs: tuning and final runs.
        thresholds: the return to reach on each task; they win over `THRESHOLDS`.

    Raises:
        ConfigError: there is no threshold for a task.
    """
    thresholds = {**THRESHOLDS, **thresholds}
    finals = sorted((run for run in runs if not run.tuning), key=_order)
    missing = sorted({run.env for run in finals} - thresholds.keys())
    if missing:
        raise ConfigError(f"there is no threshold for {', '.join(missing)}: give --threshold")
    entries = []
    for env, of_task in _grouped(finals, "env").items():
        start = float(np.mean([run.curve.returns[0] for run in of_task]))
        for method, of_method in _grouped(of_task, "method").items():
            tuned = [run for run in runs if run.tuning and (run.env, run.method) == (env, method)]
            chosen = best_setting(tuned or of_method)
            for setting, members in _grouped(of_method, "setting").items():
                curves = [run.curve for run in members]
                entries.append(Entry(env, method, setting, setting == chosen, curves, start, thresholds[env]))
    return entries


def _order(run: Run) -> tuple[Any, ...]:
    """Known tasks and methods first, in the order of their tables; settings by number."""
    tasks, names = list(THRESHOLDS), NAMES
    name, rate = run.method.partition(":")[0], run.settings.get("learning_rate")
    return (
        tasks.index(run.env) if run.env in tasks else len(tasks),
        run.env,
        names.index(name) if name in names else len(names),
        run.method,
        rate if isinstance(rate, float) else 0.0,
        run.setting,
        run.seed,
    )


def _grouped(runs: Sequence[Run], attribute: str) -> dict[str, list[Run]]:
    """Runs by one of their attributes, in the order in which its values come."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(getattr(run, attribute), []).append(run)
    return groups


def chosen_by_method(entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    """For each method its entries with the chosen setting, one a task; methods that ran on every task only."""
    tasks = {entry.env for entry in entries}
    methods: dict[str, list[Entry]] = {}
    for entry in entries:
        if entry.chosen:
            methods.setdefault(entry.method, []).append(entry)
    return {method: of_method for method, of_method in methods.items() if {e.env for e in of_method} == tasks}


def normalized_scores(entry: Entry) -> tuple[Array, Array]:
    """Mean over the curve, and return at the end, of each run, as shares of the way from start to threshold."""
    areas, finals = [area(curve) for curve in entry.curves], stack_returns(entry.curves)[:, -1]
    return normalize(areas, entry.start, entry.threshold), normalize(finals, entry.start, entry.threshold)
