"""PPO's epochs: minibatch steps of the base optimizer on the experience that was just collected."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .agents import PPO, AgentLosses, Batch, Rows, StackedPolicy
from .errors import NonFiniteError
from .flat import FlatBase


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
