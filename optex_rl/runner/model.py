"""A trained policy, back from its run folder: to act, to be evaluated, to be trained further, to be exported."""

from __future__ import annotations

import dataclasses
from contextlib import closing
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import Space, spaces
from torch import nn

from ..agents import ActionDistribution, StackedPolicy, encode_observations
from ..common.errors import ConfigError, RunFolderError
from ..common.storage import load_checkpoint, must_fit
from ..common.validation import check_between
from ..envs import EnvFactory
from ..training.builders import make_envs
from ..training.config import LARGEST_SEED, MOST_EPISODES, TrainConfig, load_config
from ..training.rollouts.evaluation import evaluate_policy
from ..training.rollouts.normalization import Normalizer
from ..training.rollouts.seeding import spawn_seeds
from .export import export_policy
from .folder import IDENTITY, check_shared_options
from .loop import TrainResult, resume
from .restore import restore_policy
from .trust import check_trust


@dataclass
class Model:
    """A trained policy with all that it is used with; `load` makes it.

    Attributes:
        policy: the network.
        normalizer: the statistics of the observations, which `predict` applies.
        config: the options of the run.
        run_dir: the run folder.
        iteration: sequential iterations that the policy was trained for.
        observation_space: of one environment.
        action_space: of one environment.
        generator: of the random numbers of `predict` with ``deterministic=False``.
        trust: whether code that the run folder names may be run, see `load`.
    """

    policy: nn.Module
    normalizer: Normalizer
    config: TrainConfig
    run_dir: Path
    iteration: int
    observation_space: Space[Any]
    action_space: Space[Any]
    generator: np.random.Generator
    trust: bool

    @property
    def distribution(self) -> ActionDistribution:
        """What the outputs of the policy's actor are inputs of."""
        return StackedPolicy(self.policy).distribution

    @torch.no_grad()
    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = True
    ) -> tuple[Any, Any]:
        """Actions for observations, with the arguments and results of stable-baselines3's ``predict``.

        Unlike there, the default is the most likely action.

        Args:
            observation: of one environment, or of B as a batch ``[B, …]``, as the task gives it: not normalised.
            state: passed through: the policies have none.
            episode_start: likewise without a meaning here.
            deterministic: take the most likely actions; else draw them, with random numbers from ``generator``.

        Returns:
            The action of one environment or the actions ``[B, …]``, as the task takes them; and ``state``.

        Raises:
            ConfigError: the observation is not one of the task's.
        """
        rows, single = as_batch(self.observation_space, observation)
        seen = self.normalizer.observations(encode_observations(self.observation_space, rows))
        distribution = self.distribution
        actor: Any = self.policy.actor
        inputs = actor(torch.from_numpy(seen))
        if deterministic:
            actions = distribution.mode(inputs)
        else:
            noise = distribution.noise(self.generator, (len(inputs),))
            actions = distribution.sample(inputs, torch.from_numpy(noise))
        taken = distribution.to_env(actions.numpy())
        return (taken[0] if single else taken), state

    def evaluate(self, episodes: int = 100, env: str | EnvFactory | None = None, seed: int = 0) -> list[float]:
        """Undiscounted returns of episodes with the most likely actions, one for each.

        Args:
            episodes: how many; each has an environment of its own.
            env: another task than the run's, as `TrainConfig` takes it; the run's ``env_kwargs`` and ``env_wrapper``
                do not apply to it.
            seed: of the environments.

        Raises:
            ConfigError: a number is outside what is allowed, or the other task has other spaces.
        """
        check_between("episodes", episodes, 1, MOST_EPISODES)
        check_between("seed", seed, 0, LARGEST_SEED)
        other: dict[str, Any] = {} if env is None else {"env": env, "env_kwargs": None, "env_wrapper": None}
        config = dataclasses.replace(self.config, **other, logdir=None)
        with closing(make_envs(config, episodes)) as envs:
            given = envs.single_observation_space, envs.single_action_space
            for name, new, own in zip(
                ("observations", "actions"), given, (self.observation_space, self.action_space), strict=True
            ):
                if not fits(new, own):
                    raise ConfigError(f"the {name} of {config.env_name} are {new}, and the policy is for {own}")
            return evaluate_policy(self.policy, envs, seed, self.normalizer)

    def resume(self, iterations: int | None = None, **options: Any) -> TrainResult:
        """Go on with the run, from its last checkpoint; the model is then the one trained further.

        Args:
            iterations: sequential iterations in all.
            **options: as of `optex_rl.resume`: ``agent``, ``evaluator``, ``callbacks``.

        Returns:
            As `optex_rl.resume`.
        """
        result = resume(self.run_dir, iterations, deepcopy(self.policy), trust=self.trust, **options)
        self.policy, self.normalizer, self.iteration = result.policy.cpu().eval(), result.normalizer, result.iterations
        return result

    def export(self, path: str | Path) -> None:
        """Write the policy with its normalisation as one program that needs only torch, and check it.

        ``torch.export.load("policy.pt2").module()(obs)`` or ``torch.jit.load("policy.pt")(obs)`` takes a batch of
        observations as the task gives them, a tensor ``[B, …]``, of a Dict a dictionary of such, and returns the most
        likely actions as the task takes them, ``[B, …]``.

        Args:
            path: the file, which ends in .pt2 for a program of ``torch.export``, or in .pt for one of TorchScript.

        Raises:
            ConfigError: the path ends differently; torch cannot export the network; the policy has an action
                distribution of one's own; or the program that was written and read again does not give the actions of
                `predict`.
            RunFolderError: the file cannot be written.
        """
        export_policy(self.policy, self.normalizer, self.observation_space, self.predict, Path(path))


def load(
    run_dir: str | Path, policy: nn.Module | str | None = None, best: bool = False, *, trust: bool = False
) -> Model:
    """The policy of a run, on the CPU.

    Args:
        run_dir: the run folder.
        policy: the network of one's own that the run was started with: an instance, which gets the parameters, or the
            "module:factory" that makes it. Not needed if the options of the run name it.
        best: the one of the best evaluation, in place of the last.
        trust: whether to import and call what the options of the run name, even if that is a function, or of a module
            that is neither installed nor imported already, see `optex_rl.runner.trust`.

    Raises:
        RunFolderError: the folder holds no such policy, or names code that is not trusted.
        ConfigError: an option of the run cannot be used here.
    """
    run_dir = Path(run_dir)
    config = load_config(run_dir / "config.yml", device="cpu")
    if not trust:
        check_trust(config, run_dir, policy is not None)
    path = run_dir / ("best_model.pt" if best else "checkpoint.pt")
    if best and not path.exists():
        raise RunFolderError(f"there is no {path}: no evaluation wrote it (eval_freq); use the last policy")
    content = load_checkpoint(path)
    with must_fit(path):
        check_shared_options(path, content, config, IDENTITY)
        iteration = int(content["iteration"])
    if isinstance(policy, str):
        config, policy = dataclasses.replace(config, policy=policy), None
    with closing(make_envs(config, 1)) as envs:
        policy, normalizer = restore_policy(config, envs, path, content, policy)
        seen_and_done = envs.single_observation_space, envs.single_action_space
    generator = np.random.default_rng(spawn_seeds(config.seed, 6, 1)[0])
    return Model(policy.cpu().eval(), normalizer, config, run_dir, iteration, *seen_and_done, generator, trust)


def as_batch(space: Space[Any], obs: Any) -> tuple[Any, bool]:
    """Observations as a batch ``[B, …]``, and whether it was a single one.

    Raises:
        ConfigError: they are neither.
    """
    if isinstance(space, spaces.Dict):
        if not isinstance(obs, dict) or obs.keys() != space.spaces.keys():
            raise ConfigError(f"an observation must have the entries {', '.join(space.spaces)}")
        parts = {name: as_batch(part, obs[name]) for name, part in space.spaces.items()}
        if len({(len(rows), single) for rows, single in parts.values()}) > 1:
            sizes = ", ".join(f"{name}: {'one' if single else len(rows)}" for name, (rows, single) in parts.items())
            raise ConfigError(f"the entries of an observation must all be of one, or batches of one size, got {sizes}")
        return {name: rows for name, (rows, _) in parts.items()}, all(single for _, single in parts.values())
    array, shape = as_numbers(space, obs), space.shape or ()
    single = array.shape == shape
    if not single and (array.shape[1:] != shape or array.ndim == 0):
        words = f"{list(shape)}, or a batch {['B', *shape]}"
        raise ConfigError(f"an observation must have the shape {words}, got {list(array.shape)}")
    rows = array[None] if single else array
    check_choices(space, rows)
    return rows, single


def as_numbers(space: Space[Any], obs: Any) -> npt.NDArray[Any]:
    """Observations as an array of numbers, of any shape.

    Raises:
        ConfigError: they are no numbers, or fractions where the space has whole ones, as of an image divided by 255.
    """
    try:
        array: npt.NDArray[Any] = np.asarray(obs)
    except ValueError as error:  # lists of unequal lengths
        raise ConfigError(f"an observation must be an array of {space.dtype}: {error}") from error
    if array.dtype.kind not in ("buif" if space.dtype is not None and space.dtype.kind == "f" else "bui"):
        raise ConfigError(f"an observation must be an array of {space.dtype}, got {array.dtype}")
    return array


def check_choices(space: Space[Any], rows: npt.NDArray[Any]) -> None:
    """Raise a ConfigError if rows ``[B, …]`` are beyond what a Discrete, MultiDiscrete or MultiBinary has."""
    start, count = getattr(space, "start", 0), getattr(space, "nvec", getattr(space, "n", None))
    if isinstance(space, spaces.MultiBinary):
        count = 2
    if count is not None and (outside := (rows < start) | (rows >= start + count)).any():
        raise ConfigError(f"an observation must be of {space}, got {rows[outside][0]}")


def fits(space: Space[Any], own: Space[Any]) -> bool:
    """Whether a policy for the space ``own`` can be used with another; bounds of a Box may differ."""
    if isinstance(space, spaces.Box) and isinstance(own, spaces.Box):
        return (space.shape, space.dtype) == (own.shape, own.dtype)
    return bool(space == own)
