"""Epochs over the experience that was just collected: PPO's, and those of a critic that all points share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from .agents import PPO, Agent, AgentLosses, Batch, Rows, StackedPolicy
from .bases import fused_kwargs, make_base
from .config import TrainConfig
from .errors import NonFiniteError
from .flat import FlatBase, Walker
from .losses import value_loss
from .rollout import spawn_seeds


class Epochs:
    """Moves the parameters from the iterate by the epochs of PPO.

    With several points all their samples serve, each with the probability under the policy that took it: the points are
    behaviour policies along the predicted path.

    Args:
        agent: gives loss, number of epochs and size of minibatches.
        policy: the network's architecture.
        base: the optimizer's base, at the iterate.
        seed: of the order of the samples.
    """

    def __init__(self, agent: PPO, policy: StackedPolicy, base: FlatBase, seed: int) -> None:
        self.agent, self.policy, self.base = agent, policy, base
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, points: Tensor, batch: Batch, usable: Tensor | None = None) -> AgentLosses:
        """All epochs on the experience of ``points [N, d]``, or of those in the mask ``usable [N]``.

        Returns:
            Losses, means over all minibatches, ``[1]`` each.

        Raises:
            NonFiniteError: a gradient or a parameter became NaN or infinite; the parameters are back at the iterate.
        """
        rows = self.agent.rows(self.policy.bind(points), batch, usable)
        with self.base.undone_on_trouble():
            losses = self._run(rows)
        return AgentLosses(*(torch.stack(column).mean(0) for column in zip(*losses, strict=True)))

    def _run(self, rows: Rows) -> list[AgentLosses]:
        """The steps; the losses before each of them."""
        history: list[AgentLosses] = []
        for _ in range(self.agent.n_epochs):
            order = torch.randperm(len(rows.obs), generator=self.generator).to(rows.obs.device)
            for index in torch.split(order, self.agent.batch_size):
                point = self.base.point()[None].requires_grad_()
                losses, divergence = self.agent.surrogate(self.policy.bind(point), rows.at(index))
                history.append(losses._replace(total=losses.total.detach()))
                if self.agent.target_kl is not None and divergence > 1.5 * self.agent.target_kl:
                    return history
                (gradient,) = torch.autograd.grad(losses.total.sum(), point)
                if not gradient.isfinite().all():
                    raise NonFiniteError("the gradient of a minibatch is not finite; the epochs are taken back")
                self.base.step(gradient[0])
        return history

    def state_dict(self) -> dict[str, Any]:
        """The random numbers that the order of later samples depends on."""
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.generator.set_state(state["generator"])


class CriticUpdates:
    """Fits one critic for all points to what they have just collected, by minibatch steps of an Adam of its own.

    Policy-gradient codes fit the critic much further than they move the policy: ``train_v_iters`` of Spinning Up's VPG,
    ``n_critic_updates`` of sb3-contrib's TRPO, which this follows: passes over all samples, in minibatches, towards
    targets made once. Ours are the λ-returns of the old critic, over the samples of all N points, which share it: what
    OptEx looks ahead with is the actor alone.

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
        self.critic = StackedPolicy(policy.policy, shared=others)  # as a function of its own parameters
        self.generator = torch.Generator().manual_seed(spawn_seeds(config.seed, 5, 1)[0])

    def set_learning_rate(self, learning_rate: float) -> None:
        """Learning rate of the updates to come."""
        self.base.groups[0]["lr"] = learning_rate

    @contextmanager
    def fitted(self, points: Tensor, batch: Batch, usable: Tensor | None = None) -> Iterator[None]:
        """The critic after its updates, in the block and, unless that fails numerically, beyond it.

        Args:
            points: ``[N, d]``, the actors that collected ``batch``.
            batch: their experience.
            usable: mask ``[N]`` of the points whose samples count; all by default.

        Raises:
            NonFiniteError: a parameter became NaN or infinite; the critic is as before.
        """
        targets = self.agent.targets(self.policy.bind(points), batch)
        rows = slice(None) if usable is None else usable
        with self.base.undone_on_trouble():
            with self.base.walk() as walker:
                self._update(walker, batch.obs[rows].flatten(0, 2), targets[rows].flatten())
            yield

    def _update(self, walker: Walker, obs: Tensor, targets: Tensor) -> None:
        """All passes over ``obs [B, O]`` and ``targets [B]``."""
        for _ in range(self.config.n_critic_updates):
            order = torch.randperm(len(obs), generator=self.generator).to(obs.device)
            for index in torch.split(order, self.config.batch_size):
                point = walker.point().detach()[None].requires_grad_()
                values = self.critic.critic(point, obs[index][None])
                (gradient,) = torch.autograd.grad(value_loss(values, targets[index][None]).sum(), point)
                with torch.no_grad():
                    walker.step(gradient[0])

    def state_dict(self) -> dict[str, Any]:
        """State of Adam, and the random numbers that the order of later samples depends on."""
        return {"optimizer": self.base.base.state_dict(), "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`, which stays as it is: torch's Adam alone would take its tensors over."""
        self.base.base.load_state_dict(deepcopy(state["optimizer"]))
        self.generator.set_state(state["generator"])
