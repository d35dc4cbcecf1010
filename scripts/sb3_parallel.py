"""OptExA2C on CartPole-v1: rollouts and gradients of four parameter sets at once."""

from __future__ import annotations

import argparse

from stable_baselines3.common.evaluation import evaluate_policy

from optex_rl.sb3 import OptExA2C, make_sb3_vec_env


def main() -> None:
    """Parse the flags, train and evaluate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rollouts", type=int, default=60)
    parser.add_argument("--parallelism", type=int, default=4)
    options = parser.parse_args()
    model = OptExA2C(
        "MlpPolicy", "CartPole-v1", n_steps=128, parallelism=options.parallelism, seed=0, device="cpu", verbose=1
    )
    model.learn(options.rollouts * model.n_steps * model.n_envs, log_interval=10)
    mean, std = evaluate_policy(model, make_sb3_vec_env("CartPole-v1", 20, seed=1), n_eval_episodes=20)
    print(f"return of the iterate: {mean:.0f} ± {std:.0f}")


if __name__ == "__main__":
    main()
