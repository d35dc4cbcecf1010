"""`OptExA2C`: stable-baselines3's A2C with rollouts and gradients at N parameter sets at once.

Axes: N points (parameter sets), M sub-environments a point, E = N·M, T steps; sub-environment ``n·M + m`` is point n's.
"""

from __future__ import annotations

from collections import deque
from copy import deepcopy
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from stable_baselines3 import A2C
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.utils import explained_variance, obs_as_tensor, safe_mean
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

from ..common.errors import ConfigError
from ..common.validation import check_at_least
from ..envs import NATIVE
from ..optimizer import OptEx
from .model import record_statistics, with_optex
from .networks import StackedNetworks, can_batch
from .vec_env import make_sb3_vec_env

SelfOptExA2C = TypeVar("SelfOptExA2C", bound="OptExA2C")


class OptExA2C(A2C):
    """A2C whose updates are sequential iterations of OptEx with N evaluations in parallel.

    One ``VecEnv`` of N·M sub-environments: each of the N points rolls out in M of them, by one batched forward pass per
    step, and one backward pass gives the N gradients. Every rollout is one iteration. `policy` is always the iterate:
    evaluation, checkpoints, `predict` and `save` need no care, and a saved model is a model of A2C, too.

    With ``parallelism=1`` it is A2C, bit for bit. ``num_timesteps`` counts the samples of all points; ``n_steps`` and M
    are per point. Gradients are clipped within OptEx, point by point and the estimates too; the history has them whole.
    The log has, beside A2C's entries, ``optex/…`` and ``optex/ep_rew_mean_iterate``, the returns at the iterate alone:
    ``rollout/ep_rew_mean`` mixes all points.

    Args:
        policy: as in A2C. gSDE and policies that override how they compute are refused for N > 1.
        env: a ``VecEnv`` with N·M sub-environments, or the name of a task.
        *args: further arguments of A2C, in its order.
        parallelism: N.
        envs_per_point: M, where ``env`` is a name; a native environment is made if there is one.
        optex_kwargs: further arguments of `OptEx`, such as ``history_size``; ``horizon`` is ``"fixed"`` by default.
        policy_kwargs: as in A2C. ``optimizer_class`` and ``optimizer_kwargs`` are the base and its arguments; A2C's
            RMSprop by default.
        **kwargs: further arguments of A2C by name.

    Raises:
        ConfigError: the sub-environments cannot be shared out among N points, an argument is not supported, or what the
            networks draw, change or keep in their forward pass would be shared by the points.

    Warns:
        PerformanceWarning: `torch.func.vmap` cannot batch the networks, so the points are evaluated one after another.
    """

    def __init__(
        self,
        policy: str | type[ActorCriticPolicy],
        env: Any,
        *args: Any,
        parallelism: int = 4,
        envs_per_point: int = 8,
        optex_kwargs: dict[str, Any] | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        _init_setup_model: bool = True,
        **kwargs: Any,
    ) -> None:
        check_at_least("parallelism", parallelism, 1)
        check_at_least("envs_per_point", envs_per_point, 1)
        if isinstance(env, str):
            env = (make_sb3_vec_env if env in NATIVE else make_vec_env)(env, parallelism * envs_per_point)
        # A copy, since A2C writes into the dictionary it is given.
        kwargs |= {"policy_kwargs": dict(policy_kwargs or {}), "_init_setup_model": False}
        super().__init__(policy, env, *args, **kwargs)
        self.parallelism = parallelism
        self.optex_kwargs = dict(optex_kwargs or {})
        self._points: Tensor | None = None
        self._batched = True
        self._iterate_returns: deque[float] = deque(maxlen=self._stats_window_size)
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        if self.n_envs % self.parallelism:
            raise ConfigError(
                f"{self.n_envs} sub-environments cannot be shared out among parallelism={self.parallelism} points; "
                "their number must be a multiple of it"
            )
        # As ActorCriticPolicy does for Adam without arguments.
        adam_kwargs = {"eps": 1e-5}
        # N steps are not too many for the rates of rl_zoo3, see docs/stable-baselines3.md.
        self.policy_kwargs = with_optex(
            self.policy_kwargs,
            self.parallelism,
            self.max_grad_norm,
            self.optex_kwargs,
            horizon="fixed",
            adam_kwargs=adam_kwargs,
        )
        super()._setup_model()
        if self.parallelism > 1:
            self._batched = can_batch(StackedNetworks, self.policy, self.parallelism, stacklevel=4)

    def _excluded_save_params(self) -> list[str]:
        return [*super()._excluded_save_params(), "_points"]

    @property
    def _optimizer(self) -> OptEx:
        return cast(OptEx, self.policy.optimizer)  # by `with_optex`

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """T steps of all E sub-environments, each with the parameters of its point, into the buffer ``[T, E]``.

        Returns:
            False if the callback ended the training.
        """
        if self.parallelism == 1:
            return super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)
        assert self._last_obs is not None
        self.policy.set_training_mode(False)
        n_steps = 0
        rollout_buffer.reset()
        callback.on_rollout_start()
        self._points = self._optimizer.ask()
        networks = StackedNetworks(self.policy, self._points, self._batched)
        while n_steps < n_rollout_steps:
            actions, values, log_probs = self._act(networks)
            new_obs, rewards, dones, infos = env.step(self._within_bounds(actions))
            self.num_timesteps += env.num_envs
            callback.update_locals(locals())
            if not callback.on_step():
                return False
            self._update_info_buffer(infos, dones)
            n_steps += 1
            self._bootstrap(networks, rewards, dones, infos, new_obs)
            # Discrete actions have no axis of their own, which the buffer needs.
            actions = actions.reshape(env.num_envs, -1)
            starts: Any = self._last_episode_starts
            rollout_buffer.add(self._last_obs, actions, rewards, starts, values, log_probs)  # type: ignore[arg-type]
            self._last_obs, self._last_episode_starts = new_obs, dones  # type: ignore[assignment]
        values = self._values(networks, new_obs)
        rollout_buffer.compute_returns_and_advantage(last_values=values, dones=dones)
        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

    @torch.no_grad()
    def _act(self, networks: StackedNetworks) -> tuple[npt.NDArray[Any], Tensor, Tensor]:
        """Actions ``[E, ...]``, values ``[E]`` and log-probabilities ``[E]`` at the last observations."""
        distribution, values = networks(obs_as_tensor(self._last_obs, self.device))  # type: ignore[arg-type]
        actions = distribution.get_actions()
        log_probs = distribution.log_prob(actions)
        shape = self.action_space.shape or ()
        return actions.reshape(-1, *shape).cpu().numpy(), values, log_probs

    def _within_bounds(self, actions: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Actions as the environments take them: those of a Gaussian may lie outside the box."""
        if isinstance(self.action_space, spaces.Box):
            actions = np.clip(actions, self.action_space.low, self.action_space.high)
        return actions

    @torch.no_grad()
    def _values(self, networks: StackedNetworks, obs: Any) -> Tensor:
        """Values ``[E]`` by each point's own critic."""
        return networks(obs_as_tensor(obs, self.device))[1]

    def _bootstrap(
        self,
        networks: StackedNetworks,
        rewards: npt.NDArray[Any],
        dones: npt.NDArray[Any],
        infos: list[dict[str, Any]],
        new_obs: Any,
    ) -> None:
        """Add what each point's own critic expects after an episode that only the time limit ended."""
        cut = [int(i) for i in np.flatnonzero(dones) if infos[i].get("TimeLimit.truncated", False)]
        cut = [i for i in cut if infos[i].get("terminal_observation") is not None]
        if cut:
            last = deepcopy(new_obs)
            for i in cut:
                _put_row(last, i, infos[i]["terminal_observation"])
            rewards[cut] += self.gamma * self._values(networks, last)[cut].cpu().numpy()

    def _update_info_buffer(self, infos: list[dict[str, Any]], dones: npt.NDArray[Any] | None = None) -> None:
        super()._update_info_buffer(infos, dones)
        at_iterate = infos[: len(infos) // self.parallelism]
        self._iterate_returns.extend(info["episode"]["r"] for info in at_iterate if "episode" in info)

    def train(self) -> None:
        """One sequential iteration: N gradients from the buffer by one backward pass, and the step they make."""
        if self.parallelism == 1:
            super().train()
            return
        assert self._points is not None, "collect_rollouts comes before train"
        self.policy.set_training_mode(True)
        self._update_learning_rate(self._optimizer)
        points = self._points.requires_grad_()
        policy_losses, value_losses, entropy_losses = self._losses(StackedNetworks(self.policy, points, self._batched))
        losses = policy_losses + self.ent_coef * entropy_losses + self.vf_coef * value_losses
        (gradients,) = torch.autograd.grad(losses.sum(), points)
        self._points = None
        self._optimizer.tell(gradients, losses.detach())
        self._n_updates += 1
        self.logger.record("train/policy_loss", policy_losses.mean().item())
        self.logger.record("train/value_loss", value_losses.mean().item())
        self.logger.record("train/entropy_loss", entropy_losses.mean().item())
        self._log_iteration()

    def _losses(self, networks: StackedNetworks) -> tuple[Tensor, Tensor, Tensor]:
        """Policy, value and entropy losses at the points, each ``[N]``."""
        buffer = self.rollout_buffer
        actions = self._rows(buffer.actions.astype(np.float32, copy=False))  # as the buffer's own samples are
        if isinstance(self.action_space, spaces.Discrete):
            actions = actions.long().flatten()
        obs = buffer.observations
        rows = {k: self._rows(v) for k, v in obs.items()} if isinstance(obs, dict) else self._rows(obs)
        distribution, values = networks(rows)
        log_probs, entropy = distribution.log_prob(actions), distribution.entropy()
        assert entropy is not None, "only gSDE has none"
        advantages = self._by_point(self._rows(buffer.advantages))
        if self.normalize_advantage:
            advantages = (advantages - advantages.mean(1, keepdim=True)) / (advantages.std(1, keepdim=True) + 1e-8)
        policy_losses = -(advantages * self._by_point(log_probs)).mean(1)
        value_losses = (self._by_point(self._rows(buffer.returns)) - self._by_point(values)).square().mean(1)
        return policy_losses, value_losses, -self._by_point(entropy).mean(1)

    def _rows(self, array: npt.NDArray[Any]) -> Tensor:
        """``[T, E, ...]`` as ``[E·T, ...]``: all rows of the first point, then all of the second, and so on."""
        rows = array.swapaxes(0, 1)
        return self.rollout_buffer.to_torch(rows.reshape(-1, *rows.shape[2:]))

    def _by_point(self, rows: Tensor) -> Tensor:
        """``[E·T]`` as ``[N, M·T]``."""
        return rows.reshape(self.parallelism, -1)

    def _log_iteration(self) -> None:
        buffer = self.rollout_buffer
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        explained = explained_variance(buffer.values.flatten(), buffer.returns.flatten())
        self.logger.record("train/explained_variance", explained)
        if hasattr(self.policy, "log_std"):
            self.logger.record("train/std", torch.exp(self.policy.log_std).mean().item())
        self.logger.record("optex/iterations", self._n_updates)
        record_statistics(self.logger, self._optimizer)
        if self._iterate_returns:
            self.logger.record("optex/ep_rew_mean_iterate", safe_mean(self._iterate_returns))

    def learn(
        self: SelfOptExA2C,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 100,
        tb_log_name: str = "OptExA2C",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfOptExA2C:
        """As in A2C; ``total_timesteps`` counts the samples of all points, TensorBoard runs are ``OptExA2C_1`` …."""
        return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)


def _put_row(batch: Any, row: int, value: Any) -> None:
    """Write one observation into a batch; both may be dictionaries of arrays."""
    if isinstance(batch, dict):
        for key, part in value.items():
            batch[key][row] = part
    else:
        batch[row] = value
