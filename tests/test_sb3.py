"""OptEx as the optimizer class of unmodified stable-baselines3 algorithms."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
import torch
import yaml
from sb3_contrib import QRDQN, TQC, TRPO, MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import FakeImageEnv, SimpleMultiObsEnv
from stable_baselines3.common.logger import configure

from optex_rl import ConfigError, OptEx
from optex_rl.sb3 import OptExCallback, sb3_defaults
from optex_rl.sb3.callback import optex_optimizers

from .helpers import reloaded, same, weights

SMALL: dict[str, dict[str, Any]] = {
    "ppo": {"n_steps": 64, "batch_size": 32, "n_epochs": 2},
    "recurrentppo": {"n_steps": 32, "batch_size": 32, "n_epochs": 2},
    "trpo": {"n_steps": 64, "batch_size": 32, "n_critic_updates": 2},
    "dqn": {"learning_starts": 20, "buffer_size": 500},
    "qrdqn": {"learning_starts": 20, "buffer_size": 500},
    "sac": {"learning_starts": 20, "buffer_size": 500, "batch_size": 16},
    "td3": {"learning_starts": 20, "buffer_size": 500, "batch_size": 16},
}
CLASSES: dict[str, type[BaseAlgorithm]] = {
    "a2c": A2C,
    "ppo": PPO,
    "recurrentppo": RecurrentPPO,
    "trpo": TRPO,
    "dqn": DQN,
    "qrdqn": QRDQN,
    "sac": SAC,
    "td3": TD3,
}


def drop_in(algorithm: str, *, env: str | None = None, model: dict[str, Any] | None = None, **options: Any) -> Any:
    """The algorithm with OptEx over the base it would have used by itself."""
    env_id = env or ("Pendulum-v1" if algorithm in ("sac", "td3") else "CartPole-v1")
    policy = "MlpLstmPolicy" if algorithm == "recurrentppo" else "MlpPolicy"
    policy_kwargs = {"optimizer_class": OptEx, "optimizer_kwargs": {**sb3_defaults(algorithm), **options}}
    arguments: dict[str, Any] = {"seed": 0, "device": "cpu", **SMALL.get(algorithm, {}), **(model or {})}
    cls: Any = CLASSES[algorithm]
    return cls(policy, env_id, policy_kwargs=policy_kwargs, **arguments)


@pytest.mark.parametrize("algorithm", ["a2c", "ppo"])
@pytest.mark.parametrize(("steps", "sizes"), [(500, SMALL), pytest.param(10_000, {}, marks=pytest.mark.slow)])
def test_one_point_is_stock_bit_for_bit(algorithm: str, steps: int, sizes: dict[str, dict[str, Any]]) -> None:
    cls: Any = CLASSES[algorithm]
    arguments = {"seed": 0, "device": "cpu", **sizes.get(algorithm, {})}
    policy_kwargs = {"optimizer_class": OptEx, "optimizer_kwargs": {**sb3_defaults(algorithm), "parallelism": 1}}
    stock = cls("MlpPolicy", "CartPole-v1", **arguments).learn(steps)
    ours = cls("MlpPolicy", "CartPole-v1", policy_kwargs=policy_kwargs, **arguments).learn(steps)
    assert stock.num_timesteps >= steps
    assert same(weights(ours), weights(stock))
    assert same(ours.policy.optimizer.base.state_dict(), stock.policy.optimizer.state_dict())


@pytest.mark.parametrize(
    ("algorithm", "cls"), [*CLASSES.items(), ("ddpg", DDPG), ("tqc", TQC), ("maskableppo", MaskablePPO)]
)
def test_defaults_are_those_of_the_algorithm(algorithm: str, cls: Any) -> None:
    env_id = "Pendulum-v1" if algorithm in ("sac", "td3", "ddpg", "tqc") else "CartPole-v1"
    policy = "MlpLstmPolicy" if algorithm == "recurrentppo" else "MlpPolicy"
    options = {**sb3_defaults(algorithm), "parallelism": 4}
    stock, ours = (
        cls(policy, env_id, policy_kwargs=policy_kwargs, device="cpu", **SMALL.get(algorithm, {}))
        for policy_kwargs in (None, {"optimizer_class": OptEx, "optimizer_kwargs": options})
    )
    for owner, optimizer in optex_optimizers(ours).items():
        expected = getattr(stock, owner).optimizer
        assert type(optimizer.base) is type(expected)
        assert same(optimizer.state_dict()["param_groups"], expected.state_dict()["param_groups"])


def test_defaults_are_fresh_plain_values() -> None:
    first = sb3_defaults("a2c")
    first["base_kwargs"]["eps"] = 1.0
    assert sb3_defaults("A2C") == {"base": "rmsprop", "base_kwargs": {"alpha": 0.99, "eps": 1e-5, "weight_decay": 0}}
    assert sb3_defaults("qrdqn", batch_size=64)["base_kwargs"] == {"eps": 0.01 / 64}
    assert sb3_defaults("ppo_lstm") == sb3_defaults("ppo")
    with pytest.raises(ConfigError, match="no defaults are known for 'a3c'"):
        sb3_defaults("a3c")


def test_arguments_survive_cloudpickle_and_yaml() -> None:
    kwargs = {"optimizer_class": OptEx, "optimizer_kwargs": {**sb3_defaults("a2c"), "parallelism": 4}}
    assert cloudpickle.loads(cloudpickle.dumps(kwargs)) == kwargs
    assert yaml.load(yaml.dump(kwargs), Loader=yaml.UnsafeLoader) == kwargs


def test_the_package_does_not_import_stable_baselines3() -> None:
    code = "import sys, optex_rl, optex_rl.cli; assert not any(m.startswith('stable_baselines3') for m in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_says_what_to_install() -> None:
    code = "import sys; sys.modules['stable_baselines3'] = None; import optex_rl.sb3"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "optex_rl.sb3 needs stable-baselines3: pip install 'optex-rl[sb3]'" in result.stderr


@pytest.mark.parametrize(
    ("algorithm", "steps", "N", "position"),
    # A2C makes one update in five steps, PPO (see SMALL) four in 64.
    [
        *(("a2c", 5 * updates, 4, updates % 4) for updates in range(8, 12)),
        *(("ppo", 64 * rollouts, 3, 4 * rollouts % 3) for rollouts in range(3, 6)),
    ],
)
def test_goes_on_bit_for_bit_from_every_position_of_a_cycle(algorithm: str, steps: int, N: int, position: int) -> None:
    one = drop_in(algorithm, without_closure="emulate", parallelism=N).learn(steps)
    two = reloaded(one, env=make_vec_env("CartPole-v1", 1))
    under_way = one.policy.optimizer.state_dict()["optex"]["proposal"]
    assert (0 if under_way is None else len(under_way["gradients"])) == position
    for model in (one, two):
        model.set_random_seed(1)
        model._last_obs = None  # both from a fresh episode: the environment is not part of the file
        model.learn(130, reset_num_timesteps=False)
    assert same(weights(one), weights(two))
    assert same(one.policy.optimizer.state_dict(), two.policy.optimizer.state_dict())


@pytest.mark.parametrize("without_closure", ["extrapolate", "emulate"])
def test_learning_rate_follows_the_schedule_after_loading(without_closure: str) -> None:
    model = drop_in("a2c", without_closure=without_closure, model={"learning_rate": lambda progress: 1e-3 * progress})
    model.learn(100)
    assert model.policy.optimizer.base.param_groups[0]["lr"] == pytest.approx(0.0)
    other = reloaded(model, env=make_vec_env("CartPole-v1", 1))
    rates: list[float] = []

    class Watch(BaseCallback):
        def _on_step(self) -> bool:
            rates.append(other.policy.optimizer.base.param_groups[0]["lr"])
            return True

    before = weights(other)
    other.learn(25, callback=Watch())
    assert rates[5] == pytest.approx(1e-3 * 0.8)
    assert rates[-1] == pytest.approx(1e-3 * 0.2)
    assert not same(weights(other), before)


def test_a_policy_of_its_own_saves_and_loads(tmp_path: Path) -> None:
    """`BasePolicy.load` builds the optimizer anew, with a learning rate of 0."""
    model = drop_in("a2c", parallelism=4).learn(60)
    model.policy.save(tmp_path / "policy")
    policy = type(model.policy).load(tmp_path / "policy", device="cpu")
    assert same(policy.state_dict(), model.policy.state_dict())
    assert policy.optimizer.param_groups[0]["lr"] == 0.0


@pytest.mark.parametrize("without_closure", ["extrapolate", pytest.param("emulate", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "algorithm",
    [pytest.param(name, marks=() if name in ("a2c", "ppo", "dqn") else pytest.mark.slow) for name in CLASSES],
)
def test_trains_saves_loads_and_continues(algorithm: str, without_closure: str) -> None:
    steps = 128 if algorithm in ("ppo", "recurrentppo", "trpo") else 60
    model = drop_in(algorithm, parallelism=3, history_size=10, without_closure=without_closure)
    before = weights(model)
    model.learn(steps)
    assert not same(weights(model), before)
    other = reloaded(model, env=model.get_env())
    assert same(weights(other), weights(model))
    for owner, optimizer in optex_optimizers(other).items():
        assert same(optimizer.state_dict(), optex_optimizers(model)[owner].state_dict())
        assert optimizer.state_dict()["optex"]["history"] is not None
        assert optimizer.param_groups is optimizer.base.param_groups
    other.learn(steps, reset_num_timesteps=False)
    assert not same(weights(other), weights(model))
    assert all(value.isfinite().all() for value in weights(other).values())


@pytest.mark.parametrize("cls", [A2C, PPO])
@pytest.mark.parametrize(
    ("policy", "env", "arguments"),
    [
        ("MultiInputPolicy", SimpleMultiObsEnv, {}),
        ("CnnPolicy", lambda: FakeImageEnv(screen_height=36, screen_width=36), {}),
        ("MlpPolicy", "Pendulum-v1", {"use_sde": True}),
    ],
    ids=["dictionaries", "images", "gSDE"],
)
def test_any_policy(cls: Any, policy: str, env: Any, arguments: dict[str, Any]) -> None:
    kwargs = {"optimizer_class": OptEx, "optimizer_kwargs": {"parallelism": 3, "history_size": 4}}
    model = cls(policy, make_vec_env(env, 2), policy_kwargs=kwargs, n_steps=32, seed=0, device="cpu", **arguments)
    before = weights(model)
    model.learn(192)
    assert not same(weights(model), before)
    assert all(value.isfinite().all() for value in weights(model).values())


@pytest.mark.parametrize("without_closure", ["extrapolate", "emulate"])
def test_the_natural_gradient_step_of_trpo_is_kept(without_closure: str) -> None:
    """TRPO moves the actor itself and leaves it no gradients: OptEx must not move it back or on."""
    model = drop_in("trpo", parallelism=3, without_closure=without_closure)
    actor = [p for n, p in model.policy.named_parameters() if "policy_net" in n or "action_net" in n]
    seen: list[tuple[bool, bool]] = []
    optimizer, step = model.policy.optimizer, model.policy.optimizer.step

    def watched() -> None:
        before = [p.detach().clone() for p in actor]
        without = all(p.grad is None for p in actor)
        step()
        seen.append((without, all(torch.equal(a, b) for a, b in zip(before, actor, strict=True))))

    optimizer.step = watched
    before = [p.detach().clone() for p in actor]
    model.learn(256)
    assert seen.count((True, True)) == len(seen) == 16  # 4 rollouts of 2 updates on 2 minibatches
    assert not any(torch.equal(a, b) for a, b in zip(before, actor, strict=True))


class Points(BaseCallback):
    """Records the policy at every step."""

    def __init__(self) -> None:
        super().__init__()
        self.points: list[torch.Tensor] = []

    def _on_step(self) -> bool:
        self.points.append(torch.cat([p.detach().reshape(-1) for p in self.model.policy.parameters()]))
        return True


def test_callbacks_run_at_the_iterate_and_training_does_not_notice() -> None:
    bare, inner, outer = Points(), Points(), Points()
    plain = drop_in("a2c", without_closure="emulate", parallelism=4).learn(5 * 22, callback=bare)
    model = drop_in("a2c", without_closure="emulate", parallelism=4).learn(5 * 22, [OptExCallback(inner), outer])
    assert all(torch.equal(a, b) for a, b in zip(bare.points, outer.points, strict=True))
    iterates = [outer.points[20 * (k // 20)] for k in range(len(inner.points))]  # four rollouts of five steps a cycle
    assert all(torch.equal(a, b) for a, b in zip(inner.points, iterates, strict=True))
    assert not torch.equal(inner.points[-1], outer.points[-1])
    with plain.policy.optimizer.at_iterate():
        assert same(weights(model), weights(plain))
    assert not same(weights(model), weights(plain))


def test_learning_goes_on_from_the_proxy_with_the_same_callback() -> None:
    """The iterate is where `predict` and `save` find the policy between two calls of `learn`."""
    whole = drop_in("a2c", without_closure="emulate", parallelism=4).learn(5 * 22)
    model = drop_in("a2c", without_closure="emulate", parallelism=4)
    callback = OptExCallback()
    model.learn(5 * 10, callback).learn(5 * 12, callback, reset_num_timesteps=False)
    with whole.policy.optimizer.at_iterate():
        assert same(weights(model), weights(whole))


def test_evaluation_and_checkpoints_hold_the_iterate(tmp_path: Path) -> None:
    evaluation = EvalCallback(
        make_vec_env("CartPole-v1", 1, seed=1),
        eval_freq=7,
        n_eval_episodes=2,
        best_model_save_path=str(tmp_path),
        verbose=0,
    )
    callback = OptExCallback([CheckpointCallback(7, str(tmp_path)), evaluation])
    model = drop_in("a2c", without_closure="emulate", parallelism=4).learn(5 * 10, callback)
    saved = A2C.load(tmp_path / "rl_model_49_steps", device="cpu")
    # 49 steps are nine updates: the second cycle's iterate, which the tenth update has not left yet.
    assert same(weights(saved), weights(model))
    assert (tmp_path / "best_model.zip").exists()


@pytest.mark.parametrize("without_closure", ["extrapolate", "emulate"])
def test_history_starts_anew_with_each_rollout_of_ppo_only(without_closure: str) -> None:
    options: dict[str, Any] = {"parallelism": 3, "without_closure": without_closure, "history_size": 40}
    sizes: list[float] = []

    class Sizes(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            (optimizer,) = optex_optimizers(self.model).values()
            history = optimizer.state_dict()["optex"]["history"]
            sizes.append(0 if history is None else len(history["gradients"]))

    drop_in("ppo", **options).learn(256, OptExCallback(Sizes()))
    assert sizes == [0, 0, 0, 0]
    sizes.clear()
    drop_in("ppo", **options).learn(256, OptExCallback(Sizes(), reset_history=False))
    assert sizes[0] == 0 < sizes[1] < sizes[2] < sizes[3]
    sizes.clear()
    drop_in("a2c", **options).learn(60, OptExCallback(Sizes()))
    assert sizes[-1] > 5


def test_statistics_are_logged(tmp_path: Path) -> None:
    model = drop_in("a2c", parallelism=4)
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(100, OptExCallback(), log_interval=5)
    model.logger.close()
    columns = (tmp_path / "progress.csv").read_text().splitlines()[0].split(",")
    assert {"optex/cosine", "optex/history", "optex/lengthscale", "optex/noise", "optex/steps"} <= set(columns)


def test_two_optimizers_are_logged_apart() -> None:
    model = drop_in("td3", parallelism=2)
    model.learn(60, OptExCallback())
    assert {"optex/actor/history", "optex/critic/history"} <= model.logger.name_to_value.keys()


def test_callback_refuses_a_model_without_optex() -> None:
    model = A2C("MlpPolicy", "CartPole-v1", device="cpu")
    with pytest.raises(ConfigError, match="A2C has no OptEx optimizer"):
        model.learn(10, OptExCallback())


def test_extrapolation_moves_further_than_one_base_step() -> None:
    """N updates for one rollout: the base has counted them."""
    model = drop_in("a2c", parallelism=4).learn(5 * 10)
    steps = next(iter(model.policy.optimizer.base.state.values()))["step"]
    assert float(steps) == 1 + 4 * 9  # the first gradient makes one step: there is nothing to predict with
    assert np.isfinite(model.policy.optimizer.statistics["cosine"])
