"""The options of a training run: one flat dataclass, whose fields are the flags of the command line."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, get_type_hints

import yaml

from ..agents import AGENTS, Agent, agent_options, make_agent
from ..agents.networks.cnn import CNNS
from ..bases import check_name
from ..common.errors import ConfigError, RunFolderError
from ..common.storage import read_regular, write_atomically
from ..envs import EnvFactory, task_name
from ..optimizer.estimator.predictors import PREDICTORS
from ..optimizer.options import BLOCKS, HORIZONS, OptExOptions
from ..optimizer.selection import SELECTIONS
from .checks import check_device, check_option, check_workers, option
from .presets import check_tuned_rate, tuned_options
from .tasks import check_env, check_env_kwargs, check_env_wrapper

METHODS: Final = ("vanilla", "data-parallel", "target", "optex")
SCHEDULES: Final = ("constant", "linear")
CNN_NAMES: Final = (*CNNS, "none")
OPTEX: Final = OptExOptions  # which holds the defaults of the optimizer
LARGEST: Final = 1e38  # real number: single precision holds little more
LARGEST_SEED: Final = 2**32 - 1  # that NumPy, PyTorch and Gymnasium all take
MOST_EPISODES: Final = 10**5  # of an evaluation: each has an environment of its own
MOST_BYTES: Final = 2**20  # of config.yml
MOST_SAMPLES: Final = 10**7  # of an iteration, which has them all in memory
CLUSTER: Final = ("workers", "ray_address", "worker_timeout")  # options that say where points are evaluated
# Options that may differ between a run and its resumption: how long it is, and where and how it is written and shown.
FREE: Final = (
    *("iterations", "checkpoint_freq", "max_bad_iterations", "policy"),  # which the network's shapes identify
    *("device", "logdir", "run_name", "progress_bar", *CLUSTER, "step_delay"),
)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Options of a training run; names are those of stable-baselines3. Each field says in its metadata what it means.

    ``n_envs`` and ``n_steps`` are per point: one evaluation of N points takes N × n_envs × n_steps samples.

    Raises:
        ConfigError: an option is outside what is allowed; those of the agent and the policy are checked where these are
            made.
    """

    algo: str = option("a2c", "agent", tuple(AGENTS))
    env: str | EnvFactory = option("CartPole-v1", "task: a Gymnasium id, module:Id, or module:function that makes one")
    env_kwargs: Mapping[str, Any] | None = option(None, "arguments of the task", convert=check_env_kwargs)
    env_wrapper: Any = option(None, "wrappers, the innermost first: module.Class", convert=check_env_wrapper)
    policy: str | None = option(
        None, "network of your own: module:factory, called with observation and action space; none for MLPs"
    )
    method: str = option("optex", "how a sequential iteration uses its N evaluations", METHODS)
    optimizer: str = option("adam", "base optimizer, see optex_rl.bases.BASES")
    learning_rate: float = option(3e-3, "learning rate of the base optimizer", high=LARGEST)
    lr_schedule: str = option("linear", "learning rate over the run; linear falls to 0", SCHEDULES)
    iterations: int = option(100, "sequential iterations", low=1, high=10**9)
    seed: int = option(0, "seed of everything random", high=LARGEST_SEED)

    parallelism: int = option(
        OPTEX.parallelism, "N points (optex), steps (target) or batches (data-parallel) an iteration", low=1, high=1000
    )
    n_envs: int = option(8, "environments per point", low=1, high=10**6)
    n_steps: int = option(128, "steps per environment and evaluation", low=1, high=10**6)
    history_size: int | None = option(
        None,
        "pairs of parameters and gradient in the history; none for 20, or 3 for each point if more",
        low=2,
        high=10**4,
        other="none",
    )
    kernel: str = option(OPTEX.kernel, "kernel of the estimate: matern52, matern32, matern12 or rbf")
    lengthscale: float | str = option(
        OPTEX.lengthscale,
        "length scale: a number, 'median', or 'auto' by evidence",
        high=LARGEST,
        other="'auto' or 'median'",
    )
    noise: float | str = option(
        OPTEX.noise, "gradient noise: a number, or 'auto' by evidence", high=LARGEST, other="'auto'"
    )
    selection: str = option(OPTEX.selection, "how the next iterate is made", tuple(SELECTIONS))
    stride: int = option(OPTEX.stride, "base steps from one point to the next", low=1, high=1000)
    first_steps: int = option(OPTEX.first_steps, "base steps while nothing can be predicted", low=1, high=1000)
    horizon: str = option(OPTEX.horizon, "base steps of an iteration: N·stride, or what the slopes allow", HORIZONS)
    predictor: str = option(OPTEX.predictor, "what stands in for gradients not yet evaluated", tuple(PREDICTORS))
    blocks: str = option(OPTEX.blocks, "one estimate for all parameters, or one for each group", BLOCKS)

    gamma: float = option(0.99, "discount factor", high=1)
    gae_lambda: float = option(0.95, "bias-variance trade-off of the advantages (a2c, ppo)", high=1)
    ent_coef: float = option(0.01, "weight of the entropy bonus", high=LARGEST)
    vf_coef: float = option(0.5, "weight of the value loss", high=LARGEST)
    normalize_advantage: bool = option(True, "normalise the advantages of each point")
    clip_range: float = option(0.2, "how far the probability ratio may leave 1 (ppo)", high=LARGEST)
    n_epochs: int = option(10, "passes over the samples of an iteration (ppo)", low=1, high=10**6)
    batch_size: int = option(64, "samples of a minibatch (ppo, and the critic's updates)", low=1, high=10**9)
    target_kl: float | None = option(
        None,
        "limit on the divergence: epochs end beyond 1.5 times it (ppo); of a step (trpo, none: .01; the base natural)",
        high=LARGEST,
        other="none",
    )
    cg_max_steps: int = option(15, "steps of the conjugate gradients (trpo)", low=1, high=10**4)
    cg_damping: float = option(0.1, "added to the diagonal of the Fisher matrix (trpo)", high=LARGEST)
    line_search_shrinking_factor: float = option(0.8, "of the step from one attempt to the next (trpo)", high=1)
    line_search_max_iter: int = option(10, "attempts of the line search (trpo)", low=1, high=10**4)
    n_critic_updates: int = option(
        0,
        "passes of a critic that all points share over the samples of an iteration; 0: it is part of each point",
        high=10**6,
    )
    critic_learning_rate: float = option(
        1e-3, "learning rate of these passes, scheduled like the base's (Adam)", high=LARGEST
    )
    baseline: bool = option(True, "subtract a learned baseline (reinforce)")
    normalize_obs: bool = option(False, "normalise observations by running mean and variance")
    normalize_reward: bool = option(False, "divide rewards by the running standard deviation of discounted returns")
    frame_stack: int = option(1, "observations that are one, images along their channels", low=1, high=1000)
    noise_repeat: int = option(1, "steps for which the random numbers of exploration are held", low=1, high=10**6)
    log_std_init: float = option(0.0, "initial log standard deviation of continuous actions", low=-20, high=20)
    max_grad_norm: float | None = option(
        0.5, "clip gradients to this norm before a base step; none for no clipping", high=LARGEST, other="none"
    )
    squash_output: bool = option(False, "continuous actions through tanh, to the bounds of their space, not clipped")
    net_arch: tuple[int, ...] | None = option(
        None,
        "hidden layers of actor and critic; none for 64 64, or, behind the CNN of an image, no layer",
        low=1,
        high=4096,
    )
    activation: str = option("tanh", "activation of the hidden layers", ("tanh", "relu"))
    cnn: str = option("nature", "network on images: of Mnih et al. (2015), a small one, or none for MLPs", CNN_NAMES)
    features_dim: int | None = option(
        None, "features of each image; none for 512, or 256 in a Dict", low=1, high=10**5, other="none"
    )
    share_features_extractor: bool = option(True, "one CNN for actor and critic")

    eval_freq: int = option(
        20, "iterations between evaluations of the iterate, besides the last; 0 for never", high=10**9
    )
    eval_episodes: int = option(
        20, "episodes of an evaluation, with the policy's most likely actions", low=1, high=MOST_EPISODES
    )
    checkpoint_freq: int = option(
        100, "iterations between checkpoints, or a minute; 0: only before and after the run", high=10**9
    )
    max_bad_iterations: int = option(
        10, "attempts in a row with NaN or infinite numbers before the run stops", high=10**6
    )
    device: str = option("cpu", "torch device of parameters, history and batches")
    workers: int | None = option(
        None,
        "processes of a Ray cluster that evaluate the points, at most one for each; none: this process",
        low=1,
        high=1000,
        other="none",
    )
    ray_address: str | None = option(
        None, "cluster of the workers, 'auto' or HOST:PORT; none: one of their own on this machine"
    )
    worker_timeout: float = option(
        600.0, "seconds after which a worker that has not answered is replaced", low=1e-3, high=10**6
    )
    step_delay: float = option(
        0.0, "seconds asleep in each step of n_envs environments: a stand-in for a slow simulator", high=3600
    )
    logdir: str | None = option("runs", "folder of all run folders; none to write nothing")
    run_name: str | None = option(None, "name of the run folder; by default ENV_ALGO_METHOD_SEED, numbered if taken")
    progress_bar: bool = option(True, "show a progress bar")

    def __post_init__(self) -> None:
        hints = get_type_hints(TrainConfig)
        for spec in dataclasses.fields(self):
            value, convert = getattr(self, spec.name), spec.metadata["convert"]
            if convert is not None:
                object.__setattr__(self, spec.name, convert(value))
            elif spec.name != "env":
                check_option(spec.name, value, hints[spec.name], spec.metadata)
        check_env(self.env, on_disk=self.logdir is not None)
        if self.samples > MOST_SAMPLES:
            given = f"at most {MOST_SAMPLES} samples at once, got {self.samples}"
            raise ConfigError(f"parallelism, n_envs and n_steps must give {given}")
        if self.n_critic_updates and not self.make_agent().shares_critic:
            why = f"the critic of {self.algo}, with these options, cannot be fitted apart; use a2c"
            raise ConfigError(f"n_critic_updates must be 0, got {self.n_critic_updates}: {why}")
        check_workers(self.workers, self.ray_address, self.parts, self.method, self.parallelism)
        self.optex_options()
        check_name(self.optimizer)
        check_device(self.device)

    @classmethod
    def recommended(cls, env: str | EnvFactory = "CartPole-v1", algo: str = "a2c", **overrides: Any) -> TrainConfig:
        """The tuned options of agent ``algo`` on task ``env``, or the defaults where there are none; ``overrides`` win.

        Raises:
            ConfigError: as for the class; or another base optimizer than Adam is given without a learning rate.
        """
        unknown = sorted(overrides.keys() - {spec.name for spec in dataclasses.fields(cls)})
        if unknown:
            raise ConfigError(f"TrainConfig has no option {', '.join(unknown)}")
        config = cls(**{"env": env, "algo": algo, **tuned_options(task_name(env), algo), **overrides})
        if "learning_rate" not in overrides:
            check_tuned_rate(config.optimizer, config.learning_rate)
        return config

    @property
    def env_name(self) -> str:
        """The task by name: its id, or "module:function"."""
        return task_name(self.env)

    @property
    def num_points(self) -> int:
        """Parameter sets evaluated at once."""
        return self.parallelism if self.method == "optex" else 1

    @property
    def envs_per_point(self) -> int:
        """Environments of each parameter set: data-parallel gives its one point those of all."""
        return self.n_envs * (self.parallelism if self.method == "data-parallel" else 1)

    @property
    def parts(self) -> int:
        """What an evaluation can be divided into among workers: points, or groups of ``n_envs`` environments."""
        return self.num_points * self.envs_per_point // self.n_envs

    @property
    def samples(self) -> int:
        """Samples of an evaluation, of all points together."""
        return self.num_points * self.envs_per_point * self.n_steps

    @property
    def evaluations(self) -> int:
        """Evaluations one after the other in a sequential iteration: N in target, the ideal, else 1."""
        return self.parallelism if self.method == "target" else 1

    def optex_options(self) -> OptExOptions:
        """The options of the optimizer; methods other than optex are the base, which is OptEx with one point."""
        names = {spec.name for spec in dataclasses.fields(OptExOptions)} - {"parallelism", "without_closure"}
        options = {name: getattr(self, name) for name in names}
        if self.history_size is None:
            options["history_size"] = max(20, 3 * self.parallelism)
        return OptExOptions(parallelism=self.num_points, **options)

    def make_agent(self) -> Agent:
        """The agent that ``algo`` names, its hyper-parameters from the options of the same names that are not None."""
        own = {spec.name: getattr(self, spec.name) for spec in dataclasses.fields(self)}
        return make_agent(self.algo, **{n: own[n] for n in agent_options(self.algo) if own.get(n) is not None})

    def schedule_at(self, iteration: int) -> float:
        """Factor on the learning rates in an iteration, counted from 0."""
        return 1.0 - iteration / self.iterations if self.lr_schedule == "linear" else 1.0

    def values(self) -> dict[str, Any]:
        """The options as plain values."""
        net_arch = None if self.net_arch is None else list(self.net_arch)
        return dataclasses.asdict(self) | {"net_arch": net_arch, "env": self.env_name}

    def shared_options(self) -> dict[str, Any]:
        """The options that a run and its resumption must share."""
        return {name: value for name, value in self.values().items() if name not in FREE}

    def save(self, path: Path) -> None:
        """Write the options as YAML, whole or not at all.

        Raises:
            RunFolderError: the file cannot be written.
        """
        write_atomically(path, yaml.safe_dump(self.values(), sort_keys=False).encode())


def load_config(path: Path, **overrides: Any) -> TrainConfig:
    """Options from a file written by `TrainConfig.save`; ``overrides`` win.

    Raises:
        RunFolderError: the file is missing or does not hold options.
        ConfigError: an option is outside what is allowed.
    """
    data = read_regular(path, "the options of a run", MOST_BYTES)
    try:
        values = yaml.safe_load(data.decode())
    # PyYAML raises more than its own errors: for dates that are none, numbers that are none, and bottomless nests.
    except (ValueError, TypeError, LookupError, ArithmeticError, RecursionError, yaml.YAMLError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise RunFolderError(f"{path} cannot be read as the options of a run: {reason}") from error
    known = {spec.name for spec in dataclasses.fields(TrainConfig)}
    if not isinstance(values, dict) or not values.keys() <= known:
        raise RunFolderError(f"{path} does not hold the options of a run")
    if isinstance(values.get("net_arch"), list):
        values["net_arch"] = tuple(values["net_arch"])
    return TrainConfig(**values | overrides)
