"""The finished runs of a comparison, by task, method and setting."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..common.errors import RunFolderError
from .jobs import THRESHOLDS, Run, read_run, threshold_of
from .methods import NAMES
from .statistics import Array, Curve, Summary, area, normalize, stack_returns, summarize, tuning_score


@dataclass(frozen=True)
class Entry:
    """The final runs of a method with one setting on a task.

    Attributes:
        chosen: whether it is the method's setting on this task.
        curves: one for each seed.
        start: mean return on the task before training, over the runs of all methods.
        threshold: the return to reach.
        whole: whether the runs have their full length, none having stopped at its threshold.
    """

    env: str
    method: str
    setting: str
    chosen: bool
    curves: list[Curve]
    start: float
    threshold: float
    whole: bool = True

    def summary(self) -> Summary:
        """The figures of the runs; the same at every call."""
        return summarize(self.curves, self.threshold, self.start, np.random.default_rng(0))


def read_runs(folder: Path) -> list[Run]:
    """All finished runs of a comparison.

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
    runs = sorted(runs, key=_order)
    finals = [run for run in runs if not run.tuning]
    tuned = _grouped([run for run in runs if run.tuning], "env", "method")
    entries = []
    for (env, method), of_method in _grouped(finals, "env", "method").items():
        threshold = threshold_of(env, thresholds)
        start = float(np.mean([run.curve.returns[0] for run in finals if run.env == env]))
        chosen = best_setting(tuned.get((env, method), of_method), threshold)
        for setting, members in _grouped(of_method, "setting").items():
            curves = [run.curve for run in members]
            whole = all(run.options.get("until") is None for run in members)
            entries.append(Entry(env, method, setting, setting == chosen, curves, start, threshold, whole))
    return entries


class Trial(NamedTuple):
    """A setting that was tried on one task in the tuning of one method.

    Attributes:
        seeds: with how many seeds.
        score: geometric mean of the iterations to the threshold, see `tuning_score`.
        chosen: whether it is the method's setting on this task.
    """

    env: str
    method: str
    setting: str
    seeds: int
    score: float
    chosen: bool


def gather_trials(runs: Sequence[Run], thresholds: Mapping[str, float]) -> list[Trial]:
    """The settings that were tried, in the order of the tables."""
    trials = []
    tuned = sorted((run for run in runs if run.tuning), key=_order)
    for (env, method), of_method in _grouped(tuned, "env", "method").items():
        threshold = threshold_of(env, thresholds)
        chosen = best_setting(of_method, threshold)
        for setting, members in _grouped(of_method, "setting").items():
            score, _ = tuning_score([run.curve for run in members], threshold)
            trials.append(Trial(env, method, setting, len(members), score, setting == chosen))
    return trials


def best_setting(runs: Sequence[Run], threshold: float) -> str:
    """The setting that needs the fewest iterations, see `tuning_score`, among those with the most runs."""
    grouped: dict[str, list[Run]] = _grouped(runs, "setting")
    settings = {name: [run.curve for run in of_setting] for name, of_setting in grouped.items()}
    most = max(map(len, settings.values()))
    complete = [name for name, curves in settings.items() if len(curves) == most]
    return min(complete, key=lambda name: tuning_score(settings[name], threshold))


def _order(run: Run) -> tuple[Any, ...]:
    """Known tasks and methods first, in the order of their tables; settings by number."""
    tasks, names = list(THRESHOLDS), NAMES
    name, rate = run.method.partition(":")[0], run.options.get("learning_rate")
    return (
        tasks.index(run.env) if run.env in tasks else len(tasks),
        run.env,
        names.index(name) if name in names else len(names),
        run.method,
        rate if isinstance(rate, float) else 0.0,
        run.setting,
        run.seed,
    )


def _grouped(runs: Sequence[Run], *attributes: str) -> dict[Any, list[Run]]:
    """Runs by one or more of their attributes, in the order in which the values come."""
    groups: dict[Any, list[Run]] = {}
    for run in runs:
        groups.setdefault(attrgetter(*attributes)(run), []).append(run)
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
