"""Runs of DQN by the methods that are compared on the paper's Figure 3: made, followed, and as they are kept."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from typing import Any, Final, NamedTuple

import torch
from stable_baselines3 import DQN
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

from optex_rl import ConfigError, OptEx
from optex_rl.common.errors import NumericalError
from optex_rl.compare.rl_zoo3 import zoo_options
from optex_rl.sb3 import OptExDQN, sb3_defaults

SELECTIONS: Final = {  # of OptExDQN, by method
    "last": {"selection": "last"},
    "refine": {"selection": "refine", "horizon": "fixed"},
    "auto": {"selection": "refine", "horizon": "auto"},
}


class Row(NamedTuple):
    """Where a run is: what it has done, and the mean returns of its episodes so far and of the last 100 of them."""

    iterations: int
    env_steps: int
    seconds: float
    cumulative: float
    last: float


@dataclasses.dataclass(frozen=True)
class Job:
    """A run, and everything that decides what it gives."""

    env: str
    method: str
    rate: float
    seed: int
    parallelism: int
    steps: int
    every: int

    @property
    def file_name(self) -> str:
        """Name of its file."""
        return f"{self.env}_{self.method}_{self.rate:.3g}_{self.seed}.json"

    def options(self) -> dict[str, Any]:
        """All of it by name, with rl_zoo3's settings."""
        return dataclasses.asdict(self) | {"rl_zoo3": zoo_options("dqn", self.env)}


def make_model(job: Job) -> DQN:
    """The method of the job, with rl_zoo3's settings."""
    options, N = zoo_options("dqn", job.env), job.parallelism
    del options["n_timesteps"]
    steps = options["train_freq"] if options["gradient_steps"] == -1 else options["gradient_steps"]
    if steps % N:
        raise ConfigError(f"--parallelism must divide the {steps} gradient steps of {job.env}, got {N}")
    options["gradient_steps"] = steps // N * iterations_factor(job)
    options["batch_size"] *= N if job.method == "data-parallel" else 1
    options |= {"learning_rate": job.rate, "seed": job.seed, "device": "cpu"}
    env = make_vec_env(job.env, 1, seed=job.seed)
    if job.method in SELECTIONS:
        return OptExDQN("MlpPolicy", env, parallelism=N, optex_kwargs=SELECTIONS[job.method], **options)
    if job.method == "extrapolate":
        # Gradients are clipped by OptEx, at DQN's own norm, so that the history has them whole.
        optex = {"optimizer_kwargs": {**sb3_defaults("dqn"), "parallelism": N, "max_grad_norm": 10.0}}
        options["policy_kwargs"] = {**options.get("policy_kwargs", {}), "optimizer_class": OptEx, **optex}
        options["max_grad_norm"] = math.inf
    return DQN("MlpPolicy", env, **options)


def iterations_factor(job: Job) -> int:
    """How many updates of the model are one sequential iteration."""
    return job.parallelism if job.method == "target" else 1


class Follow(BaseCallback):
    """Notes where the run is every so many environment steps, and ends it."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.job = job
        self.rows: list[Row] = []
        self._returns: list[float] = []
        self._started = 0.0

    def _on_training_start(self) -> None:
        self._started = time.process_time()

    def _on_step(self) -> bool:
        self._returns += [info["episode"]["r"] for info in self.locals["infos"] if "episode" in info]
        if self.num_timesteps % self.job.every == 0:
            iterations = self.model._n_updates // iterations_factor(self.job)
            seconds = time.process_time() - self._started
            means = [statistics.fmean(part) if part else math.nan for part in (self._returns, self._returns[-100:])]
            self.rows.append(Row(iterations, self.num_timesteps, seconds, *means))
        return self.num_timesteps < self.job.steps

    def hold_last(self) -> list[Row]:
        """The rows, those that a fault has left out being as the last one but for the steps."""
        if not self.rows:
            raise ConfigError(f"{self.job.file_name} failed before its first {self.job.every} environment steps")
        last = self.rows[-1]
        ahead = range(last.env_steps + self.job.every, self.job.steps + 1, self.job.every)
        pace = last.iterations / last.env_steps
        return self.rows + [last._replace(env_steps=n, iterations=round(n * pace)) for n in ahead]


def train(job: Job) -> dict[str, Any]:
    """One run, as it is kept."""
    torch.set_num_threads(1)
    model, follow, fault = make_model(job), Follow(job), ""
    try:
        model.learn(zoo_options("dqn", job.env)["n_timesteps"], follow)
    except NumericalError as error:
        fault = str(error)
    return {"job": job.options(), "fault": fault, "rows": follow.hold_last()}
