"""What a run reports: progress.csv, TensorBoard events and a progress bar, all against sequential iterations."""

from __future__ import annotations

import csv
import math
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from tqdm import tqdm

from .checkpoints import read_regular
from .errors import RunFolderError
from .rollout import Episode

WINDOW: Final = 100  # episodes in ep_rew_mean, as in stable-baselines3

# The columns of progress.csv and the TensorBoard tags of the same values.
COLUMNS: Final[dict[str, str]] = {
    "env_steps": "time/env_steps",
    "wall_time": "time/wall_time",
    "episodes": "rollout/episodes",
    "cumulative_average_reward": "rollout/cumulative_average_reward",
    "ep_rew_mean": "rollout/ep_rew_mean",
    "ep_len_mean": "rollout/ep_len_mean",
    "fps": "time/fps",
    "learning_rate": "train/learning_rate",
    "policy_loss": "train/policy_loss",
    "value_loss": "train/value_loss",
    "entropy": "train/entropy",
    "explained_variance": "train/explained_variance",
    "steps": "optex/steps",
    "history": "optex/history",
    "cosine": "optex/cosine",
    "lengthscale": "optex/lengthscale",
    "noise": "optex/noise",
    "variance": "optex/variance",
    "dropped_points": "train/dropped_points",
    "eval_return": "eval/mean_reward",
}


class EpisodeStatistics:
    """Running figures of all finished episodes, whichever point played them."""

    def __init__(self) -> None:
        self.count = 0
        self._sum = 0.0
        self._window: deque[tuple[float, int]] = deque(maxlen=WINDOW)

    def add(self, episodes: Sequence[Episode]) -> None:
        """Count finished episodes."""
        self.count += len(episodes)
        self._sum += math.fsum(e.ep_return for e in episodes)
        self._window.extend((e.ep_return, e.length) for e in episodes)

    @property
    def cumulative_average_reward(self) -> float:
        """Mean return of all episodes so far, the y axis of the paper; NaN before the first has ended."""
        return self._sum / self.count if self.count else math.nan

    @property
    def ep_rew_mean(self) -> float:
        """Mean return of the last 100 episodes; NaN before the first has ended."""
        return math.fsum(r for r, _ in self._window) / len(self._window) if self._window else math.nan

    @property
    def ep_len_mean(self) -> float:
        """Mean length in steps of the last 100 episodes; NaN before the first has ended."""
        return math.fsum(length for _, length in self._window) / len(self._window) if self._window else math.nan

    def metrics(self) -> dict[str, float]:
        """The figures under their TensorBoard tags."""
        names = ("cumulative_average_reward", "ep_rew_mean", "ep_len_mean")
        return {"rollout/episodes": self.count} | {f"rollout/{name}": getattr(self, name) for name in names}

    def state_dict(self) -> dict[str, Any]:
        """Copy as plain values."""
        return {"count": self.count, "sum": self._sum, "window": [list(entry) for entry in self._window]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.count, self._sum = state["count"], state["sum"]
        self._window = deque(((float(r), int(length)) for r, length in state["window"]), maxlen=WINDOW)


class RunLog:
    """Writes the metrics of each sequential iteration to a run folder.

    Args:
        run_dir: an existing folder.
        iteration: sequential iterations done; what is on record of later ones is taken back.
        position: bytes of progress.csv that belong to them, as `sync` gave them; None for a new log.

    Raises:
        RunFolderError: the files cannot be written, or progress.csv is not what it was at ``position``.
    """

    def __init__(self, run_dir: Path, iteration: int = 0, position: int | None = None) -> None:
        # Imported here: it takes longer than everything else in the package together.
        from torch.utils.tensorboard.writer import SummaryWriter

        self._run_dir = run_dir
        with self._one_sentence():
            if position is not None:
                self._take_back(iteration, position)
            self._file = (run_dir / "progress.csv").open("w" if position is None else "a", newline="")
            self._rows = csv.writer(self._file)
            if position is None:
                self._rows.writerow(["iteration", *COLUMNS])
                self._file.flush()
            before = set(run_dir.glob("events.out.tfevents.*"))
            self._events = SummaryWriter(str(run_dir), purge_step=iteration + 1 if before else None)
            self._event_files = set(run_dir.glob("events.out.tfevents.*")) - before

    def _take_back(self, iteration: int, position: int) -> None:
        """Cut progress.csv to its first ``position`` bytes, which must hold so many iterations."""
        path = self._run_dir / "progress.csv"
        whole = read_regular(path, "the progress of a run")
        lines = whole[:position].split(b"\r\n")
        numbers = [line.split(b",")[0] for line in lines]
        expected = [b"iteration", *(str(i).encode() for i in range(1, iteration + 1)), b""]
        complete = position <= len(whole) and numbers == expected
        if not complete or lines[0].decode(errors="replace").split(",") != ["iteration", *COLUMNS]:
            raise RunFolderError(f"{path} does not hold the {iteration} iterations that the checkpoint knows of")
        with path.open("r+b") as file:
            file.truncate(position)

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
        with self._one_sentence():
            self._rows.writerow([iteration, *(known.get(tag, "") for tag in COLUMNS.values())])
            self._file.flush()
            for tag, value in known.items():
                self._events.add_scalar(tag, value, iteration)

    def sync(self) -> int:
        """Bring everything to the disk; returns the size of progress.csv in bytes."""
        with self._one_sentence():
            self._file.flush()
            self._events.flush()
            os.fsync(self._file.fileno())
            for path in self._event_files:
                with path.open("rb") as file:
                    os.fsync(file.fileno())
            return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        """Write out what is pending."""
        with self._one_sentence():
            self._file.close()
            self._events.close()


class ProgressBar:
    """Progress, return, steps per second and time left, on standard error."""

    def __init__(self, total: int, *, initial: int = 0, show: bool = True) -> None:
        self._bar = tqdm(total=total, initial=initial, disable=not show, unit="it", dynamic_ncols=True)

    def update(self, metrics: Mapping[str, float]) -> None:
        """One iteration more."""
        postfix = f"return {metrics['rollout/ep_rew_mean']:.1f}, {metrics['time/fps']:,.0f} steps/s"
        self._bar.set_postfix_str(postfix, refresh=False)
        self._bar.update()

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()
