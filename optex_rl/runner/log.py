"""What a run reports: progress.csv, TensorBoard events and its progress, all against sequential iterations."""

from __future__ import annotations

import csv
import io
import logging
import math
import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from tqdm.auto import tqdm

from ..common.errors import RunFolderError
from ..common.storage import read_regular, write_atomically
from .events import EVENT_TAGS, Events

# The columns of progress.csv to begin with; any other metric gets one when it is first reported.
COLUMNS: Final = (
    *("env_steps", "wall_time", "episodes", "cumulative_average_reward", "ep_rew_mean", "ep_len_mean", "fps"),
    *("learning_rate", "policy_loss", "value_loss", "entropy", "explained_variance"),
    *("steps", "history", "cosine", "ceiling", "lengthscale", "noise", "variance", "dropped_points", "eval_return"),
)

LOG: Final = logging.getLogger("optex_rl")
LINE_SECONDS: Final = 30.0  # between two lines of progress where no terminal shows a bar
LINE: Final = "{percentage:.0f}% {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"


NOT_A_COLUMN: Final = "cluster/"  # tags of where and how fast a run was computed, which differ where the run does not


def column_of(tag: str) -> str:
    """The column of progress.csv for a TensorBoard tag: its name in its section."""
    return "eval_return" if tag == "eval/mean_reward" else tag.partition("/")[2]


class RunLog:
    """Writes the metrics of each sequential iteration to a run folder.

    Args:
        run_dir: an existing folder.
        iteration: sequential iterations done, records of later ones are removed; None for a new log.
        options: those of the run, which TensorBoard shows.

    Raises:
        RunFolderError: the files cannot be written, or progress.csv does not hold as many iterations.
    """

    def __init__(self, run_dir: Path, iteration: int | None = None, options: Mapping[str, Any] | None = None) -> None:
        self._run_dir, self._path = run_dir, run_dir / "progress.csv"
        with self._one_sentence():
            if iteration is None:
                self._columns = ["iteration", *COLUMNS]
                self._path.write_bytes((",".join(self._columns) + "\r\n").encode())
            else:
                self._columns = self._take_back(iteration)
            self._open()
            self._events = Events(run_dir, purge_step=(iteration or 0) + 1)
            if options is not None:
                self._events.options(options, shlex.join(sys.argv))

    def _open(self) -> None:
        self._file = self._path.open("a", newline="")
        self._rows = csv.DictWriter(self._file, self._columns, restval="")

    def _take_back(self, iteration: int) -> list[str]:
        """Cut progress.csv off after ``iteration`` rows; returns its columns."""
        lines = read_regular(self._path, "the progress of a run").split(b"\r\n")
        kept = lines[: max(iteration, 0) + 1]
        expected = [b"iteration", *(str(i).encode() for i in range(1, iteration + 1))]
        columns = kept[0].decode(errors="replace").split(",")
        whole = 0 <= iteration < len(lines) - 1 and len({line.count(b",") for line in kept}) == 1
        if [line.split(b",")[0] for line in kept] != expected or not whole:
            raise RunFolderError(f"{self._path} does not hold the {iteration} iterations that the checkpoint knows of")
        with self._path.open("r+b") as file:
            file.truncate(sum(len(line) + 2 for line in kept))
        return columns

    def _extend(self, columns: Sequence[str]) -> None:
        """Give progress.csv more columns, empty in the rows that it has."""
        self._file.close()
        header, *rows = self._path.read_bytes().split(b"\r\n")[:-1]
        added = "".join(f",{column}" for column in columns).encode()
        whole = [header + added, *(row + b"," * len(columns) for row in rows), b""]
        write_atomically(self._path, b"\r\n".join(whole))
        self._columns += columns
        self._open()

    @contextmanager
    def _one_sentence(self) -> Iterator[None]:
        """Turn errors of the file system, such as a full disk, into one that says which folder."""
        try:
            yield
        except OSError as error:
            if isinstance(error, RunFolderError):
                raise
            raise RunFolderError(f"the log in {self._run_dir} cannot be written: {error.strerror}") from error

    def write(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """Write one row and one event per metric; what is unknown (NaN or absent) is left empty.

        Args:
            iteration: sequential iterations done.
            metrics: values by TensorBoard tag.
        """
        known = {tag: value for tag, value in metrics.items() if not math.isnan(value)}
        columns = {column_of(tag): value for tag, value in known.items() if not tag.startswith(NOT_A_COLUMN)}
        row = {"iteration": iteration, **columns}
        with self._one_sentence():
            if not row.keys() <= set(self._columns):
                self._extend([column for column in row if column not in self._columns])
            self._rows.writerow(row)
            self._file.flush()
            for tag, value in known.items():
                self._events.scalar(EVENT_TAGS.get(tag, tag), value, iteration)

    def sync(self) -> None:
        """Bring everything to the disk."""
        with self._one_sentence():
            self._file.flush()
            self._events.flush()
            os.fsync(self._file.fileno())
            for path in self._events.files:
                with path.open("rb") as file:
                    os.fsync(file.fileno())

    def close(self) -> None:
        """Write out what is pending."""
        with self._one_sentence():
            self._file.close()
            self._events.close()


def progress_bar(show: bool, **options: Any) -> Any:
    """A bar of tqdm on a terminal or in a notebook; elsewhere a line every `LINE_SECONDS`, in the log if that is on.

    Args:
        show: whether to show any of it.
        **options: those of ``tqdm.tqdm``.
    """
    if show and not shows_bars():
        seconds: dict[str, Any] = {"mininterval": LINE_SECONDS, "delay": LINE_SECONDS, "miniters": 1}
        options |= {"file": _Lines(), "bar_format": LINE, "dynamic_ncols": False, **seconds}
    return tqdm(disable=not show, **options)


def shows_bars() -> bool:
    """Whether standard error is a terminal, or a notebook's, where a bar is text if ipywidgets is not installed."""
    in_notebook = any(cls.__module__ == "tqdm.notebook" for cls in tqdm.__mro__)
    in_notebook |= type(sys.stderr).__module__.startswith("ipykernel")
    return in_notebook or (sys.stderr is not None and sys.stderr.isatty())


class _Lines(io.TextIOBase):
    """A file for tqdm whose every update is a line of the log, or of standard error if the log is silent."""

    def write(self, text: str) -> int:
        line = text.strip()
        if line and LOG.isEnabledFor(logging.INFO):
            LOG.info("%s", line)
        elif line and sys.stderr is not None:
            print(line, file=sys.stderr, flush=True)
        return len(text)
