"""Updates of a critic that all points share, from the samples that they have just collected."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from copy import deepcopy
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ..agents import Agent, Batch, StackedPolicy
from ..agents.losses import value_loss
from ..bases import fused_kwargs, make_base
from ..bases.flat import FlatBase
from .config import TrainConfig
from .rollouts.seeding import spawn_seeds


class CriticUpdates:
    """Fits one critic for all points to the samples just collected, by minibatch steps of its own Adam.

    Policy-gradient codes fit the critic much further than they move the policy: ``train_v_iters`` of Spinning Up's VPG,
    ``n_critic_updates`` of sb3-contrib's TRPO, which this follows: passes over all samples, in minibatches, towards
    targets computed once. Ours are the λ-returns of the old critic, over the samples of all N points, which share it:
    OptEx predicts gradients of the actor alone. Those codes fit after the step; here the passes come before the
    advantages are computed: gradients rest on a critic that knows their samples, and those of the history on critics
    that differ less.

    Args:
        agent: gives the targets.
        policy: the network, of which the critic is the shared part.
        critic: its parameters.
        config: gives ``n_critic_updates``, ``batch_size``, ``max_grad_norm`` and the seed of the order of the samples.
    """

    def __init__(
        self, agent: Agent, policy: StackedPolicy, critic: Sequence[nn.Parameter], config: TrainConfig
    ) -> None:
        self.agent, self.policy, self.config = agent, policy, config
        adam = make_base("adam", critic, config.critic_learning_rate, fused_kwargs("adam"))
        self.base = FlatBase(adam, config.max_grad_norm)
        own = {id(parameter) for parameter in critic}
        others = [parameter for parameter in policy.policy.parameters() if id(parameter) not in own]
        self.critic = policy.sharing(others)  # as a function of its own parameters
        self.generator = torch.Generator().manual_seed(spawn_seeds(config.seed, 5, 1)[0])

    def set_learning_rate(self, learning_rate: float) -> None:
        """Set the learning rate of the updates to come."""
        self.base.groups[0]["lr"] = learning_rate

    def undone_on_fault(self) -> AbstractContextManager[None]:
        """A block at whose end the critic is as before if it raises a `NumericalError`, or if the critic is not finite.

        Raises:
            NonFiniteError: a parameter of the critic became NaN or infinite.
        """
        return self.base.undone_on_fault()

    def fit(self, points: Tensor, batch: Batch, broken: npt.NDArray[np.bool_]) -> None:
        """All passes over the experience of the points none of whose environments broke.

        Args:
            points: ``[N, d]``, the actors that collected ``batch``.
            batch: their experience, E environments a point.
            broken: which environments gave NaN or infinite numbers, ``[N·E]``.
        """
        sound = torch.from_numpy(~broken.reshape(len(points), -1).any(1))
        if not sound.all():
            points, batch = points[sound], batch.at(sound)
        if len(points) == 0:
            return
        targets = self.agent.targets(self.policy.bind(points), batch).flatten()
        obs = batch.obs.flatten(0, 2)
        with self.base.committed_steps() as stepper:
            for _ in range(self.config.n_critic_updates):
                order = torch.randperm(len(obs), generator=self.generator).to(obs.device)
                for index in torch.split(order, self.config.batch_size):
                    point = stepper.point().detach()[None].requires_grad_()
                    values = self.critic.critic(point, obs[index][None])
                    (gradient,) = torch.autograd.grad(value_loss(values, targets[index][None]).sum(), point)
                    stepper.step(gradient[0])

    def state_dict(self) -> dict[str, Any]:
        """State of Adam, and the random numbers that the order of later samples depends on."""
        return {"optimizer": self.base.base.state_dict(), "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a copy of a state from `state_dict`: Adam alone would keep the tensors themselves."""
        self.base.base.load_state_dict(deepcopy(state["optimizer"]))
        self.generator.set_state(state["generator"])
