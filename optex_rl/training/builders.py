"""The parts of a trainer, built from its options: network, normalisation, parameter groups; and their sizes."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Final, TypeAlias

import torch
from gymnasium import Space
from gymnasium.vector import VectorEnv
from torch import Tensor, nn

from ..agents import Agent, Batch, CnnPolicy, MlpPolicy, ObservationLayout, StackedPolicy, agent_options
from ..bases import Objective, fused_kwargs
from ..common.errors import ConfigError
from ..common.images import describe_doubt
from ..envs import SlowVectorEnv, make_vec
from .config import TrainConfig
from .rollouts.collector import Collector
from .rollouts.evaluator import Evaluator, FusedEvaluator
from .rollouts.normalization import Normalizer
from .rollouts.seeding import spawn_seeds
from .tasks import check_policy, find_wrappers, make_own_policy

MOST_NUMBERS: Final = 2 * 10**9  # of an array: 8 GB in single precision

EvaluatorFactory: TypeAlias = Callable[[TrainConfig, Agent, StackedPolicy], Evaluator]


def fuse(config: TrainConfig, agent: Agent, policy: StackedPolicy) -> Evaluator:
    """The evaluator in this process, which steps all environments at once.

    Args:
        config: the options.
        agent: gives the loss.
        policy: the network's architecture, as a function of the points; what these share has the values of each call.
    """
    return FusedEvaluator(policy, agent, build_collector(config, config.num_points, config.envs_per_point))


def build_collector(
    config: TrainConfig, num_points: int, envs_per_point: int, first_point: int = 0, backend: str = "auto"
) -> Collector:
    """What collects at some of the points of a run.

    Args:
        config: the options.
        num_points: how many.
        envs_per_point: environments of each.
        first_point: number of the first.
        backend: of the environments, see `make_vec`.
    """
    envs = make_envs(config, num_points * envs_per_point, backend=backend)
    normalizer = build_normalizer(config, envs.single_observation_space, envs.num_envs)
    if config.step_delay:
        envs = SlowVectorEnv(envs, config.step_delay * envs.num_envs / config.n_envs)
    sizes = num_points, config.n_steps, config.seed
    return Collector(envs, *sizes, normalizer, config.noise_repeat, first_point)


def make_envs(
    config: TrainConfig, num_envs: int, *, render_mode: str | None = None, backend: str = "auto"
) -> VectorEnv[Any, Any, Any]:
    """The task that the options describe, ``num_envs`` times.

    Raises:
        ConfigError: there is no such task, wrapper or argument.
    """
    wrappers, kwargs = find_wrappers(config.env_wrapper), config.env_kwargs or {}
    options: Any = {"render_mode": render_mode, "backend": backend, "frame_stack": config.frame_stack}
    return make_vec(config.env, num_envs, wrappers=wrappers, **options, **kwargs)


def build_policy(config: TrainConfig, critic: bool, observations: Space[Any], actions: Space[Any]) -> nn.Module:
    """The network that the options describe, freshly initialised from the seed of the run.

    Args:
        config: the options.
        critic: whether an `MlpPolicy` or a `CnnPolicy` is to have a critic; of other networks their factory decides.
        observations: the space of a single observation.
        actions: the space of a single action.

    Raises:
        ConfigError: a space is not supported, or not with these options.
    """
    seed = spawn_seeds(config.seed, 2, 1)[0]
    if config.policy is not None:
        return make_own_policy(config.policy, observations, actions, seed)
    options: dict[str, Any] = {
        "activation": config.activation,
        "critic": critic,
        "log_std_init": config.log_std_init,
        "generator": torch.Generator().manual_seed(seed),
        "squash_output": config.squash_output,
    }
    if config.cnn == "none" or not ObservationLayout(observations).images:
        net_arch = (64, 64) if config.net_arch is None else config.net_arch
        return MlpPolicy(observations, actions, net_arch, **options)
    policy = CnnPolicy(
        observations,
        actions,
        config.net_arch,
        cnn=config.cnn,
        features_dim=config.features_dim,
        share_features_extractor=config.share_features_extractor,
        **options,
    )
    if config.n_critic_updates and policy.shares_features:
        raise ConfigError(
            f"n_critic_updates must be 0 where actor and critic share the CNN, got {config.n_critic_updates}: "
            "set share_features_extractor to false"
        )
    return policy


def choose_policy(
    config: TrainConfig,
    policy: nn.Module | None,
    critic: bool,
    observations: Space[Any],
    actions: Space[Any],
    stacklevel: int,
) -> nn.Module:
    """The custom network, or without one that of the options, see `build_policy`.

    Raises:
        ConfigError: the custom one is none, or a space is not supported.

    Warns:
        UserWarning: what looks like an image is flattened, or its channels may be in another axis; at ``stacklevel``.
    """
    if policy is not None:
        return check_policy(policy)
    policy = build_policy(config, critic, observations, actions)
    if config.policy is None and config.cnn != "none":
        for part in ObservationLayout(observations).parts:
            doubt = describe_doubt(part.space)
            if doubt is not None:
                warnings.warn(doubt if part.key is None else f"{part.key!r}: {doubt}", UserWarning, stacklevel)
    return policy


def base_kwargs(config: TrainConfig) -> dict[str, Any]:
    """Further arguments of the base optimizer: a fused implementation, and a limit that is not the agent's own."""
    kwargs = fused_kwargs(config.optimizer)
    if config.optimizer == "natural" and "target_kl" not in agent_options(config.algo):
        kwargs["target_kl"] = config.target_kl
    return kwargs


def build_objective(agent: Agent, policy: StackedPolicy) -> Objective:
    """The agent's loss on the batch of one point, ``[1, T, E, …]``, for bases that need more of it than gradients."""

    def loss(point: Tensor, batch: Batch) -> Tensor:
        return agent.loss(policy.bind(point[None], transforms=True), batch).total[0]

    return Objective(loss, policy.policy, lambda batch: batch.obs[0].flatten(0, 1))


def build_normalizer(config: TrainConfig, observations: Space[Any], num_envs: int) -> Normalizer:
    """The normalisation that the options describe, before it has seen anything.

    Args:
        config: the options.
        observations: the space of a single observation.
        num_envs: environments of all points together.

    Raises:
        ConfigError: observations are to be normalised, and there are no numbers in them.
    """
    features = ObservationLayout(observations).box_numbers
    if config.normalize_obs and not features:
        raise ConfigError(
            "normalize_obs must be false: it is for the numbers of a Box, and there are none in "
            f"{observations} (images are divided by 255 in any case)"
        )
    flags = {"obs": config.normalize_obs, "reward": config.normalize_reward}
    return Normalizer(features, num_envs, config.gamma, **flags)


def parameter_groups(policy: nn.Module) -> list[dict[str, Any]]:
    """One named group for each part that a policy names (actor, critic), else one for all parameters."""
    parts = getattr(policy, "parameter_groups", None)
    if parts is None:
        return [{"params": list(policy.parameters())}]
    return [{"params": parameters, "name": name} for name, parameters in parts()]


def split_critic(policy: nn.Module) -> tuple[list[dict[str, Any]], list[nn.Parameter]]:
    """The groups of a policy but the one named "critic", and the parameters of that one.

    Raises:
        ConfigError: there is none.
    """
    groups = parameter_groups(policy)
    critic = [parameter for group in groups if group.get("name") == "critic" for parameter in group["params"]]
    if not critic:
        name = type(policy).__name__
        raise ConfigError(f"n_critic_updates needs a part 'critic' in {name}.parameter_groups(): name it, or use 0")
    return [group for group in groups if group["name"] != "critic"], critic


def check_sizes(config: TrainConfig, features: int, d: int) -> None:
    """Refuse options with which an iteration would not fit into memory.

    Args:
        config: the options.
        features: of an observation.
        d: number of parameters.

    Raises:
        ConfigError: naming the first array that would be too large.
    """
    options = config.optex_options()
    sizes = {"samples × features of an observation": config.samples * features}
    if options.parallelism > 1:
        sizes["history_size × parameters"] = options.history_size * d
        sizes["parallelism × stride × parameters"] = options.parallelism * options.stride * d
    for words, size in sizes.items():
        if size > MOST_NUMBERS:
            raise ConfigError(f"{words} must be at most {MOST_NUMBERS} numbers, got {size}")
