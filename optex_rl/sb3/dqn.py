"""`OptExDQN`: stable-baselines3's DQN with gradients at N parameter sets at once.

Axes: N points (parameter sets), B transitions of a minibatch, d parameters of the Q-network.
"""

from __future__ import annotations

from typing import Any, TypeVar, cast

import torch
from stable_baselines3 import DQN
from stable_baselines3.common.type_aliases import MaybeCallback, ReplayBufferSamples
from stable_baselines3.dqn.policies import DQNPolicy
from torch import Tensor
from torch.nn.functional import smooth_l1_loss

from ..common.validation import check_at_least
from ..optimizer import OptEx
from .model import record_statistics, with_optex
from .networks import StackedQNetwork, can_batch

SelfOptExDQN = TypeVar("SelfOptExDQN", bound="OptExDQN")


class OptExDQN(DQN):
    """DQN whose gradient steps are sequential iterations of OptEx with N evaluations in parallel.

    In each of the ``gradient_steps`` that follow ``train_freq`` environment steps, N minibatches are drawn from the
    replay buffer, one for each of the N points; one forward and one backward pass give the N gradients. All points have
    one target network, which sees their minibatches as one batch and moves when that of DQN does. `policy` is always
    the iterate: exploration, evaluation, `predict` and `save` need no care, and a saved model is a model of DQN, too.

    With ``parallelism=1`` it is DQN, bit for bit. With more, ``n_updates`` and ``optex/iterations`` count sequential
    iterations, ``train/loss`` is the mean over all points, and gradients are clipped within OptEx, point by point and
    the estimates too; the history has them whole.

    Args:
        policy: as in DQN. Q-networks that override how they compute are refused for N > 1.
        env: as in DQN.
        *args: further arguments of DQN, in its order.
        parallelism: N.
        optex_kwargs: further arguments of `OptEx`, such as ``history_size``.
        policy_kwargs: as in DQN. ``optimizer_class`` and ``optimizer_kwargs`` are the base and its arguments; Adam by
            default.
        **kwargs: further arguments of DQN by name.

    Raises:
        ConfigError: an argument is not supported, or what the Q-network draws, changes or keeps in its forward pass
            would be shared by the points.

    Warns:
        PerformanceWarning: `torch.func.vmap` cannot batch the Q-network, so the points are evaluated one after another.
    """

    def __init__(
        self,
        policy: str | type[DQNPolicy],
        env: Any,
        *args: Any,
        parallelism: int = 4,
        optex_kwargs: dict[str, Any] | None = None,
        policy_kwargs: dict[str, Any] | None = None,
        _init_setup_model: bool = True,
        **kwargs: Any,
    ) -> None:
        check_at_least("parallelism", parallelism, 1)
        kwargs |= {"policy_kwargs": policy_kwargs, "_init_setup_model": False}
        super().__init__(policy, env, *args, **kwargs)
        self.parallelism = parallelism
        self.optex_kwargs = dict(optex_kwargs or {})
        self._batched = True
        if _init_setup_model:
            self._setup_model()

    def _setup_model(self) -> None:
        # With a fixed horizon N steps are too many at rl_zoo3's rate for CartPole, see docs/paper.md.
        self.policy_kwargs = with_optex(
            self.policy_kwargs, self.parallelism, self.max_grad_norm, self.optex_kwargs, horizon="auto"
        )
        super()._setup_model()
        if self.parallelism > 1:
            self._batched = can_batch(StackedQNetwork, self.q_net, self.parallelism, stacklevel=4)

    @property
    def _optimizer(self) -> OptEx:
        return cast(OptEx, self.policy.optimizer)  # by `with_optex`

    def train(self, gradient_steps: int, batch_size: int = 100) -> None:
        """Sequential iterations, each with N minibatches of B = ``batch_size`` transitions."""
        if self.parallelism == 1:
            super().train(gradient_steps, batch_size)
            return
        self.policy.set_training_mode(True)
        self._update_learning_rate(self._optimizer)
        losses = [self._iterate(batch_size) for _ in range(gradient_steps)]
        self._n_updates += gradient_steps
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/loss", torch.stack(losses).mean().item())
        self.logger.record("optex/iterations", self._n_updates)
        record_statistics(self.logger, self._optimizer)

    def _iterate(self, batch_size: int) -> Tensor:
        """One sequential iteration; returns the losses at the points, ``[N]``."""
        assert self.replay_buffer is not None
        points = self._optimizer.ask().requires_grad_()
        batch: Any = self.replay_buffer.sample(self.parallelism * batch_size, env=self._vec_normalize_env)
        losses = self._losses(StackedQNetwork(self.q_net, points, self._batched), batch)
        (gradients,) = torch.autograd.grad(losses.sum(), points)
        self._optimizer.tell(gradients, losses.detach())
        return losses.detach()

    def _losses(self, q_net: StackedQNetwork, batch: ReplayBufferSamples) -> Tensor:
        """Huber losses of the temporal differences, ``[N]``; rows n·B … of the batch ``[N·B, ...]`` are point n's."""
        with torch.no_grad():
            following = self.q_net_target(batch.next_observations).max(dim=1, keepdim=True).values
            # Those of n-step returns, which may end early, come with the batch.
            discounts = self.gamma if batch.discounts is None else batch.discounts
            targets = batch.rewards + (1 - batch.dones) * discounts * following
        values = q_net(batch.observations).gather(1, batch.actions.long())
        return smooth_l1_loss(values, targets, reduction="none").reshape(self.parallelism, -1).mean(1)

    def learn(
        self: SelfOptExDQN,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 4,
        tb_log_name: str = "OptExDQN",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
    ) -> SelfOptExDQN:
        """As in DQN; TensorBoard runs are ``OptExDQN_1`` …."""
        return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)
