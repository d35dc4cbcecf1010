"""Tables, CSV files and TensorBoard events of a comparison, made from the runs that are finished so far."""

from __future__ import annotations

import csv
import io
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np

from ..common.storage import write_atomically
from ..runner.events import Events
from .jobs import Run
from .plots import draw_profiles, draw_task
from .results import Entry, Trial, chosen_by_method, gather, gather_trials, normalized_scores, read_runs
from .statistics import bands, figures_of, interquartile_mean, stratified_interval

CAPTION: Final = """\
A run is evaluated without noise (the most likely action at every step); evaluations and set-up are not timed.
It reaches the threshold at its first evaluation whose mean with the next one is at least the threshold (the last one
stands alone). Iterations, steps, processor seconds and seconds to it: medians over seeds, a run that never reaches it
counted as infinite. Area (mean return over the sequential iterations) and return at the end: interquartile means over
seeds with their 95 % bootstrap intervals; a run that stopped at its threshold counts as staying there, and has no end.
Late: the lowest interquartile mean of an evaluation in the last quarter, in per cent of the way from the start to the
threshold. Tuning: geometric means of the iterations to the threshold, a run that never gets there counting as twice its
length, and with how many seeds. * is the setting chosen, among those tried with the most seeds. An iteration of sb3-a2c
and sb3-ppo is a rollout with its updates, so their iterations and areas cannot be compared with the others'."""
# TensorBoard's page of custom scalars; a chart with margins has its middle, low and high.
LAYOUT: Final = {
    title: {"over seeds, 95 %": ["Margin", [f"comparison/{name}", f"interval/{name}_low", f"interval/{name}_high"]]}
    for title, name in (("cumulative average return", "cumulative_average_return"), ("return", "return"))
}
HEADER: Final = (
    "| method | setting | iterations | 10³ steps | CPU s | wall s | reached | area (95 %) | end (95 %) | late |\n"
    "|---|---|---|---|---|---|---|---|---|---|"
)


def figure(value: float, digits: int = 0) -> str:
    """A number for a table; a dash for what was never reached or is not known."""
    return f"{value:.{digits}f}" if math.isfinite(value) else "–"


def spread(value: float, interval: tuple[float, float], digits: int = 0) -> str:
    """A figure with its interval."""
    low, high = (figure(bound, digits) for bound in interval)
    return f"{figure(value, digits)} ({low} … {high})"


def task_row(entry: Entry) -> str:
    """One line of a task's table."""
    s = entry.summary()
    columns = [
        entry.method,
        entry.setting + (" *" if entry.chosen else ""),
        figure(s.iterations),
        figure(s.env_steps / 1e3),
        figure(s.cpu_seconds, 1),
        figure(s.seconds, 1),
        f"{s.reached}/{s.runs}",
        spread(s.area, s.area_interval),
        *([spread(s.final, s.final_interval), figure(100 * s.late)] if entry.whole else "––"),
    ]
    return f"| {' | '.join(columns)} |"


def overall_row(method: str, entries: Sequence[Entry]) -> str:
    """One line of the table over all tasks."""
    cells = []
    for strata in zip(*map(normalized_scores, entries), strict=True):
        middle = float(interquartile_mean(np.concatenate(strata)))
        cells.append(spread(middle, stratified_interval(strata, np.random.default_rng(0)), 2))
    return f"| {method} | {' | '.join(cells)} |"


def tuning_table(trials: Sequence[Trial]) -> str:
    """What was tried for each method on each task."""
    rows = ["**Tuning**\n", "| task | method | settings |", "|---|---|---|"]
    for env, method in dict.fromkeys((trial.env, trial.method) for trial in trials):
        of_method = [trial for trial in trials if (trial.env, trial.method) == (env, method)]
        words = [f"{t.setting}{' *' * t.chosen}: {t.score:.1f} ({t.seeds})" for t in of_method]
        rows.append(f"| {env} | {method} | {'; '.join(words)} |")
    return "\n".join(rows)


def make_tables(entries: Sequence[Entry], trials: Sequence[Trial] = ()) -> str:
    """The tables as Markdown: one a task, one over all tasks if there are several, and what tuning tried."""
    parts = []
    for env in dict.fromkeys(entry.env for entry in entries):
        rows = [entry for entry in entries if entry.env == env]
        iterations = " / ".join(str(n) for n in dict.fromkeys(e.curves[0].iterations[-1] for e in rows))
        title = f"{env}, threshold {rows[0].threshold:g}, {iterations} iterations, start {rows[0].start:.0f}"
        parts.append("\n".join([f"**{title}**\n", HEADER, *map(task_row, rows)]))
    methods = chosen_by_method(entries)
    if len({entry.env for entry in entries}) > 1 and methods:
        head = "| method | mean over the curve (95 %) | at the end (95 %) |\n|---|---|---|"
        title = "**All tasks**, returns as a share of the way from start to threshold, interquartile mean of all runs\n"
        parts.append("\n".join([title, head, *(overall_row(*item) for item in methods.items())]))
    if trials:
        parts.append(tuning_table(trials))
    return "\n\n".join([*parts, CAPTION]) + "\n"


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Rows of the same keys as a CSV file."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue().encode())


def curve_rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Every evaluation of every run."""
    return [
        {"env": r.env, "method": r.method, "setting": r.setting, "tuning": int(r.tuning), "seed": r.seed}
        | dict(zip(("iteration", "env_steps", "wall_time", "cpu_time", "return"), point, strict=True))
        for r in runs
        for point in zip(*r.curve, strict=True)
    ]


def summary_rows(entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """The figures of every entry."""
    rows = []
    for entry in entries:
        figures = asdict(entry.summary())
        for name in ("area", "final"):
            figures[f"{name}_low"], figures[f"{name}_high"] = figures.pop(f"{name}_interval")
        names = {name: getattr(entry, name) for name in ("env", "method", "setting", "threshold", "start")}
        rows.append(names | {"chosen": int(entry.chosen)} | figures)
    return rows


def write_events(folder: Path, entries: Sequence[Entry]) -> None:
    """The curves of each method for TensorBoard, one events folder each; "relative" time is that of training."""
    shutil.rmtree(folder, ignore_errors=True)
    for entry in entries:
        if not entry.chosen:
            continue
        events = Events(folder / entry.env / entry.method.replace(":", "_"))
        seconds = np.mean([curve.wall_time for curve in entry.curves], axis=0)
        for name, values in figures_of(entry.curves).items():
            tags = [f"comparison/{name}", f"interval/{name}_low", f"interval/{name}_high"]
            for tag, band in zip(tags, bands(values), strict=True):
                for step, value, when in zip(entry.curves[0].iterations, band, seconds, strict=True):
                    if math.isfinite(value):  # one seed has no interval
                        events.scalar(tag, float(value), step, float(when))
        events.layout(LAYOUT)
        events.close()


def write_report(folder: Path, thresholds: Mapping[str, float]) -> str:
    """Write tables, CSV files, plots and TensorBoard events into the folder of a comparison; returns the tables.

    Raises:
        ConfigError: Matplotlib is missing, or there is no threshold for a task.
        RunFolderError: the folder holds no finished run, or cannot be written.
    """
    runs = read_runs(folder)
    entries = gather(runs, thresholds)
    write_csv(folder / "curves.csv", curve_rows(runs))
    if not entries:
        return f"{len(runs)} tuning runs are done, none of the final ones\n"
    trials = gather_trials(runs, thresholds)
    if trials:
        write_csv(folder / "tuning.csv", [trial._asdict() for trial in trials])
    tables = make_tables(entries, trials)
    faults = [f"{run.env}, {run.method}, {run.setting}, seed {run.seed}: {w}" for run in runs for w in run.warnings]
    tables += "".join(f"\nNumerical fault: {line}\n" for line in faults)
    write_atomically(folder / "table.md", tables.encode())
    write_csv(folder / "summary.csv", summary_rows(entries))
    write_events(folder / "tensorboard", entries)
    chosen = [entry for entry in entries if entry.chosen]
    for env in dict.fromkeys(entry.env for entry in chosen):
        draw_task([entry for entry in chosen if entry.env == env], folder / f"{env.replace('/', '-')}.png")
    draw_profiles(chosen_by_method(entries), folder / "profiles.png")
    return tables
