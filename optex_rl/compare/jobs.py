"""One run of a comparison: trained, evaluated on the way, and kept as one file."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import re
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

from ..common.errors import ConfigError, NumericalError, NumericalWarning, RunFolderError
from ..common.storage import read_regular, write_atomically
from ..envs import make_vec
from ..runner.folder import LONGEST_NAME
from ..training import Trainer
from ..training.config import TrainConfig
from .rl_zoo3 import Sb3Config
from .statistics import Curve, Point, hold_last, is_held

FIRST_TUNING_SEED: Final = 1_000_000  # final seeds begin at 0, so the two are disjoint
# What counts as solved. Gymnasium's own thresholds where the task can be expected to reach them with its presets.
THRESHOLDS: Final[dict[str, float]] = {
    "CartPole-v1": 475.0,
    "Acrobot-v1": -100.0,
    "MountainCar-v0": -120.0,
    "MountainCarContinuous-v0": 90.0,
    "Pendulum-v1": -200.0,
    "LunarLander-v3": 150.0,
    "InvertedPendulum-v5": 950.0,
}
MOST_BYTES: Final = 2**28  # of the file of a run
# Options of runs that are kept without folders of their own.
QUIET: Final[dict[str, Any]] = {"logdir": None, "run_name": None, "progress_bar": False, "checkpoint_freq": 0}

RunConfig: TypeAlias = TrainConfig | Sb3Config


class Job(NamedTuple):
    """What a run is, and its names in tables.

    Attributes:
        env: the task.
        method: as it was given, ``"optex"`` or ``"optex:stride=2"``.
        setting: the point of the tuning budget, ``"lr 0.003"``.
        config: every option of the run.
        until: the return at which the run stops once it holds it; None for a run of full length.
    """

    env: str
    method: str
    setting: str
    config: RunConfig
    until: float | None = None

    @classmethod
    def make(cls, method: str, setting: str, config: RunConfig, seed: int, until: float | None = None) -> Job:
        """The run of a setting with a seed.

        Raises:
            ConfigError: its name is too long for a file.
        """
        env = config.env_name if isinstance(config, TrainConfig) else config.env
        job = cls(env, method, setting, dataclasses.replace(config, seed=seed), until)
        if len(job.file_name.encode()) > LONGEST_NAME - len(".tmp"):
            raise ConfigError(f"the method {method!r} has more options than fit into the name of a file")
        return job

    @property
    def file_name(self) -> str:
        """Name of its file, readable."""
        parts = (self.env, self.method, self.setting, str(self.config.seed))
        return "_".join(re.sub(r"[^\w.,=+-]+", "-", part) for part in parts) + ".json"

    def shared_options(self) -> dict[str, Any]:
        """The options that decide the results of the run."""
        options = self.config.shared_options()
        if isinstance(self.config, TrainConfig):
            options |= {"iterations": self.config.iterations, "policy": self.config.policy}
        return json.loads(json.dumps(options | {"until": self.until}))  # type: ignore[no-any-return]


class Run(NamedTuple):
    """A finished run, as it was read from its file."""

    env: str
    method: str
    setting: str
    seed: int
    options: dict[str, Any]
    curve: Curve
    warnings: list[str]

    @property
    def tuning(self) -> bool:
        """Whether it served to choose a setting only."""
        return self.seed >= FIRST_TUNING_SEED


def follow_trainer(trainer: Trainer, until: float | None = None) -> Curve:
    """Train, and evaluate the iterate before the first iteration, every ``eval_freq`` ones, and after the last.

    A run that holds the return ``until``, or that a numerical fault stops, keeps its last policy for the iterations
    that are left. The trainer, a new one, is closed at the end.
    """
    config = trainer.config
    points: list[Point] = [(0, 0, 0.0, 0.0, trainer.evaluate())]
    wall = cpu = 0.0
    try:
        while trainer.iteration < config.iterations and not is_held(points, until):
            started = time.perf_counter(), time.process_time()
            trainer.iterate()
            wall, cpu = wall + time.perf_counter() - started[0], cpu + time.process_time() - started[1]
            if trainer.evaluation_due():
                points.append((trainer.iteration, trainer.env_steps, wall, cpu, trainer.evaluate()))
    except NumericalError as error:
        warnings.warn(f"stopped in iteration {trainer.iteration + 1}: {error}", NumericalWarning, stacklevel=2)
        last = trainer.env_steps, wall, cpu, trainer.evaluate()
    else:
        last = points[-1][1:]
    finally:
        trainer.close()
    return hold_last(points, last, config.iterations, config.eval_freq)


def threshold_of(env: str, thresholds: Mapping[str, float]) -> float:
    """The return to reach on a task: that in ``thresholds``, else that in `THRESHOLDS`.

    Raises:
        ConfigError: there is none.
    """
    try:
        return {**THRESHOLDS, **thresholds}[env]
    except KeyError:
        raise ConfigError(f"there is no threshold for {env}: give --threshold") from None


def check_can_run(config: RunConfig) -> None:
    """Find out early what would fail in a worker.

    Raises:
        ConfigError: the task, an option, or stable-baselines3 is not there.
    """
    if isinstance(config, TrainConfig):
        Trainer(config).close()
        return
    make_vec(config.env, 1).close()
    if importlib.util.find_spec("stable_baselines3") is None:
        raise ConfigError("the methods sb3-a2c and sb3-ppo need stable-baselines3: pip install 'optex-rl[sb3]'")


def follow(config: RunConfig, until: float | None = None) -> Curve:
    """The curve of a run, ours or one of stable-baselines3."""
    if isinstance(config, TrainConfig):
        return follow_trainer(Trainer(config), until)
    from .sb3_runs import follow_sb3  # needs the extra sb3, which other runs do without

    return follow_sb3(config, until)


def run_job(job: Job, folder: Path) -> float:
    """Do a run and write its file, whole or not at all; returns the seconds that it took."""
    started = time.perf_counter()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", NumericalWarning)
        curve = follow(job.config, job.until)
    content = {
        "env": job.env,
        "method": job.method,
        "setting": job.setting,
        "seed": job.config.seed,
        "settings": job.shared_options(),  # the key that folders of earlier versions have
        "curve": curve._asdict(),
        "warnings": sorted({str(warning.message) for warning in caught}),
    }
    write_atomically(folder / job.file_name, json.dumps(content).encode())
    return time.perf_counter() - started


def read_run(path: Path) -> Run:
    """A run from its file.

    Raises:
        RunFolderError: the file cannot be read, or does not hold a run.
    """
    data = read_regular(path, "a run of a comparison", MOST_BYTES)
    try:
        content = json.loads(data)
        curve = Curve(*(tuple(content["curve"][name]) for name in Curve._fields))
        lengths = set(map(len, curve))
        if len(lengths) != 1 or lengths <= {0, 1}:
            raise ValueError("a curve needs two evaluations or more")
        content["options"] = content.pop("settings")
        return Run(**content | {"curve": curve})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RunFolderError(f"{path} cannot be read as a run of a comparison: remove it") from error


def is_done(job: Job, folder: Path) -> bool:
    """Whether the run is in the folder already.

    Raises:
        RunFolderError: a run of this name is, with other options.
    """
    path = folder / job.file_name
    if not path.exists():
        return False
    saved, wanted = read_run(path).options, job.shared_options()
    for name in sorted(saved.keys() | wanted.keys()):
        if saved.get(name) != wanted.get(name):
            raise RunFolderError(
                f"{path} was made with {name} {saved.get(name)!r}, and {wanted.get(name)!r} is asked for: choose "
                "another folder, or remove the file"
            )
    return True
