"""What OptEx's own work costs in stable-baselines3's off-policy algorithms, and how well their gradients are predicted.

Milliseconds of CPU time for an environment step and its update, with the stock optimizer and with OptEx as the
optimizer class, where one evaluation makes N updates with predicted gradients. The difference is OptEx's own work,
which must take less than the N − 1 updates that it saves. Cosines are between prediction and gradient, medians over
the updates.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any, Final

import torch
from stable_baselines3 import DQN, SAC, TD3
from stable_baselines3.common.callbacks import BaseCallback

from optex_rl import OptEx
from optex_rl.sb3 import sb3_defaults
from optex_rl.sb3.callback import optex_optimizers

ALGORITHMS: Final[dict[str, tuple[Any, str]]] = {
    "DQN": (DQN, "CartPole-v1"),
    "SAC": (SAC, "Pendulum-v1"),
    "TD3": (TD3, "Pendulum-v1"),
}


class Meter(BaseCallback):
    """Processor seconds after the warm-up, and the cosines of each optimizer's predictions."""

    def __init__(self, warm_up: int) -> None:
        super().__init__()
        self.warm_up = warm_up
        self.started = 0.0
        self.cosines: dict[str, list[float]] = {}

    def _on_step(self) -> bool:
        if self.num_timesteps == self.warm_up:
            self.started = time.process_time()
        if self.num_timesteps > self.warm_up:
            for owner, optimizer in optex_optimizers(self.model).items():
                if "cosine" in optimizer.statistics:  # TD3's actor has fewer updates
                    self.cosines.setdefault(owner, []).append(optimizer.statistics["cosine"])
        return True


def measure(name: str, options: argparse.Namespace, policy_kwargs: dict[str, Any]) -> tuple[float, dict[str, float]]:
    """Milliseconds a step, and the median cosine for each optimizer."""
    algorithm, env = ALGORITHMS[name]
    model = algorithm(
        "MlpPolicy",
        env,
        learning_starts=50,
        buffer_size=10_000,
        batch_size=256,
        train_freq=1,
        policy_kwargs=policy_kwargs,
        seed=0,
        device="cpu",
    )
    meter = Meter(options.warm_up)
    model.learn(options.warm_up + options.steps, meter)
    milliseconds = 1e3 * (time.process_time() - meter.started) / options.steps
    return milliseconds, {owner: statistics.median(values) for owner, values in meter.cosines.items()}


def main() -> None:
    """Parse the flags and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1_000)
    parser.add_argument("--warm-up", type=int, default=200, help="steps before these, to fill the history")
    parser.add_argument("--parallelism", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(1)
    N = options.parallelism
    print(f"| algorithm | an update, ms | OptEx's own work, ms | {N - 1} updates, ms | cosine |\n|---|---|---|---|---|")
    for name in ALGORITHMS:
        stock, _ = measure(name, options, {})
        optimizer_kwargs = {**sb3_defaults(name), "parallelism": N}
        drop_in, cosines = measure(name, options, {"optimizer_class": OptEx, "optimizer_kwargs": optimizer_kwargs})
        said = ", ".join(f"{owner} {cosine:.2f}" for owner, cosine in cosines.items())
        print(f"| {name} | {stock:.1f} | {drop_in - stock:.1f} | {(N - 1) * stock:.1f} | {said} |", flush=True)


if __name__ == "__main__":
    main()
