"""OptEx as the optimizer of unmodified A2C: a checkpoint and an evaluation at the iterate, then on from that file."""

from __future__ import annotations

import argparse
import tempfile

from stable_baselines3 import A2C
from stable_baselines3.common.callbacks import CheckpointCallback, EvalCallback

from optex_rl import OptEx
from optex_rl.sb3 import OptExCallback, make_sb3_vec_env, sb3_defaults


def main() -> None:
    """Parse the flags and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--total-timesteps", type=int, default=100_000)
    parser.add_argument("--parallelism", type=int, default=4)
    options = parser.parse_args()
    model = A2C(
        "MlpPolicy",
        make_sb3_vec_env("CartPole-v1", 8),
        n_steps=128,
        max_grad_norm=float("inf"),  # OptEx clips, so that its history has the gradients whole
        policy_kwargs={
            "optimizer_class": OptEx,
            "optimizer_kwargs": {**sb3_defaults("a2c"), "parallelism": options.parallelism, "max_grad_norm": 0.5},
        },
        seed=0,
        device="cpu",
    )
    with tempfile.TemporaryDirectory() as folder:
        evaluation = EvalCallback(make_sb3_vec_env("CartPole-v1", 8, seed=1), eval_freq=128 * 10, n_eval_episodes=8)
        callback = OptExCallback([evaluation, CheckpointCallback(128 * 10, folder)])
        model.learn(options.total_timesteps, callback)
        model.save(f"{folder}/model")
        loaded = A2C.load(f"{folder}/model", env=model.get_env(), device="cpu")
    loaded.learn(128 * 8, reset_num_timesteps=False)
    print(f"{loaded.num_timesteps} steps, the history went along: {loaded.policy.optimizer.statistics}")  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()
