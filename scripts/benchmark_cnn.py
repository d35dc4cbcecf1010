"""CNN policies at N points: batched by hand (`CnnPolicy`), by `torch.func.vmap`, and with one pass per point.

Any other module gets one of the last two, see `convolves_on_cpu`. All take turns in one process and one thread; the
clock is the CPU time of that thread. Figures are medians over rounds in milliseconds: a step of a rollout (8 rows per
point, the actor, without gradients), and actor and critic with gradients (256 rows per point).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from optex_rl.agents import CnnPolicy, StackedPolicy
from optex_rl.agents.networks.batching import evaluate

ROLLOUT_ROWS, LOSS_ROWS = 8, 256
Outputs = tuple[Tensor, ...]
Way = Callable[[Tensor, Tensor, bool], Outputs]


class Both(nn.Module):
    """The inputs of the distribution and the values, or without a critic the inputs alone, of features made once."""

    def __init__(self, policy: CnnPolicy, critic: bool) -> None:
        super().__init__()
        self.policy, self.with_critic = policy, critic

    def forward(self, rows: Tensor) -> Outputs:
        """[B, O] -> [B, A] and [B, 1], as a tuple."""
        features = self.policy.features(rows)
        inputs = self.policy.actor_net(features)
        return (inputs, self.policy.critic_net(features)) if self.with_critic else (inputs,)


def ways(policy: CnnPolicy) -> dict[str, Way]:
    """Outputs at points [N, d] of rows [N, B, O], with or without the critic's."""
    stacked = StackedPolicy(policy)

    def by_hand(points: Tensor, rows: Tensor, critic: bool) -> Outputs:
        bound = stacked.bind(points)
        return (bound.actor(rows), bound.critic(rows)) if critic else (bound.actor(rows),)

    def general(batched: bool) -> Way:
        def call(points: Tensor, rows: Tensor, critic: bool) -> Outputs:
            parameters = {f"policy.{name}": value for name, value in stacked.unflatten(points).items()}
            outputs: Outputs = evaluate(Both(policy, critic), parameters, rows, batched)
            return outputs

        return call

    return {"by hand": by_hand, "vmap": general(True), "pass for each": general(False)}


def seconds(way: Way, points: Tensor, rows: Tensor, gradients: bool) -> float:
    """CPU time of one call."""
    start = time.thread_time()
    with torch.set_grad_enabled(gradients):
        outputs = way(points, rows, gradients)
        if gradients:
            torch.autograd.grad(torch.stack([part.square().sum() for part in outputs]).sum(), points)
    return time.thread_time() - start


def medians(image: tuple[int, int, int], cnn: str, num_points: int, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of a rollout's step and of the gradients, by way."""
    policy = CnnPolicy(Box(0, 255, image, np.uint8), Discrete(4), cnn=cnn)
    start = parameters_to_vector(policy.parameters()).detach()
    points = start.expand(num_points, -1).clone().requires_grad_()
    times: dict[str, list[tuple[float, ...]]] = {name: [] for name in ways(policy)}
    for _ in range(rounds + 1):
        for name, way in ways(policy).items():
            pairs = ((ROLLOUT_ROWS, False), (LOSS_ROWS, True))
            rows = [torch.randint(256, (num_points, B, policy.layout.size), dtype=torch.uint8) for B, _ in pairs]
            times[name].append(tuple(seconds(way, points, r, g) for r, (_, g) in zip(rows, pairs, strict=True)))
    return {
        name: [statistics.median(column) * 1e3 for column in zip(*rows[1:], strict=True)]
        for name, rows in times.items()
    }


def main() -> None:
    """Parse the flags, run, and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parallelism", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    names = ("by hand", "vmap", "pass for each")
    print(
        f"| image | cnn | N | {' | '.join(f'step, {n}' for n in names)} | {' | '.join(f'grads, {n}' for n in names)} |"
    )
    print("|---" * 9 + "|")
    for image, cnn in (((36, 36, 1), "nature"), ((84, 84, 4), "nature"), ((21, 21, 3), "small")):
        for N in options.parallelism:
            found = medians(image, cnn, N, options.rounds)
            figures = " | ".join(f"{found[name][i]:.1f}" for i in range(2) for name in names)
            print(f"| {' × '.join(map(str, image))} | {cnn} | {N} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
