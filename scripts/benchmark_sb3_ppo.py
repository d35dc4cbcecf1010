"""Would PPO gain from N gradients of one surrogate at once? Milliseconds of N updates one by one, and by OptEx.

The networks are stable-baselines3's defaults for CartPole-v1, the history is full, all figures are medians.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch
from stable_baselines3 import PPO
from torch import Tensor

from optex_rl import OptEx
from optex_rl.sb3 import sb3_defaults
from optex_rl.sb3.networks import StackedNetworks

CLIP_RANGE, VF_COEF, LOG_HALF = 0.2, 0.5, -0.6931


def milliseconds(run: Callable[[], object], warm_up: int, repeats: int) -> float:
    """Median time of a call."""
    times = []
    for _ in range(warm_up + repeats):
        start = time.perf_counter()
        run()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[warm_up:])


def surrogate(values: Tensor, log_prob: Tensor, advantages: Tensor, returns: Tensor) -> Tensor:
    """PPO's loss of each row; the data were sampled by a policy that chose evenly."""
    ratio = (log_prob - LOG_HALF).exp()
    clipped = ratio.clamp(1 - CLIP_RANGE, 1 + CLIP_RANGE)
    return -torch.minimum(advantages * ratio, advantages * clipped) + VF_COEF * (returns - values).square()


def compare(batch_size: int, N: int, repeats: int) -> tuple[float, float]:
    """Milliseconds of N updates of PPO's own kind, and of one iteration of OptEx."""
    torch.manual_seed(0)
    policy = PPO("MlpPolicy", "CartPole-v1", device="cpu", seed=0).policy
    obs, actions = torch.randn(batch_size, 4), torch.randint(0, 2, (batch_size,))
    data = torch.randn(batch_size), torch.randn(batch_size)

    def update() -> None:
        values, log_prob, _ = policy.evaluate_actions(obs, actions)
        policy.optimizer.zero_grad()
        surrogate(values.flatten(), log_prob, *data).mean().backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 0.5)
        policy.optimizer.step()

    options = {**sb3_defaults("ppo"), "parallelism": N, "max_grad_norm": 0.5, "horizon": "fixed"}
    optimizer = OptEx(policy.parameters(), lr=3e-4, **options)

    def iteration() -> None:
        points = optimizer.ask().requires_grad_()
        distribution, values = StackedNetworks(policy, points)(obs.repeat(N, 1))
        repeated = (part.repeat(N) for part in data)
        rows = surrogate(values, distribution.log_prob(actions.repeat(N)), *repeated)
        (gradients,) = torch.autograd.grad(rows.sum() / batch_size, points)
        optimizer.tell(gradients)

    return N * milliseconds(update, 5, repeats), milliseconds(iteration, 15, repeats)


def main() -> None:
    """Parse the flags and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[64, 512, 2048])
    parser.add_argument("--parallelism", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--repeats", type=int, default=50)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{' '.join(sys.argv)}\n")
    print("| minibatch | N | N updates, ms | one iteration, ms |")
    print("|---|---|---|---|")
    for batch_size in options.batch_sizes:
        for N in options.parallelism:
            sequential, parallel = compare(batch_size, N, options.repeats)
            print(f"| {batch_size} | {N} | {sequential:.1f} | {parallel:.1f} |")


if __name__ == "__main__":
    main()
