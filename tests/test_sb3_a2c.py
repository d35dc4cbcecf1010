"""OptExA2C: rollouts at N parameter sets, N gradients at once, and all that A2C can do besides."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import A2C
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import (
    FakeImageEnv,
    IdentityEnvMultiBinary,
    IdentityEnvMultiDiscrete,
    SimpleMultiObsEnv,
)
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecNormalize
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from optex_rl import ConfigError, OptEx, PerformanceWarning
from optex_rl.agents import sample_observations
from optex_rl.sb3 import OptExA2C, OptExCallback, make_sb3_vec_env
from optex_rl.sb3.networks import StackedNetworks

from .helpers import reloaded, same, weights
from .networks import BATCHED, ONE_BY_ONE, REFUSED
from .sb3_extractors import SLOW, extracting


def make(env: Any = "CartPole-v1", policy: Any = "MlpPolicy", **arguments: Any) -> OptExA2C:
    defaults: dict[str, Any] = {"parallelism": 3, "n_steps": 8, "seed": 0, "device": "cpu"}
    if isinstance(env, str):
        defaults["envs_per_point"] = 2
    return OptExA2C(policy, env, **defaults | arguments)


def at(policy: ActorCriticPolicy, point: Tensor) -> ActorCriticPolicy:
    """Another policy with the parameters of a point; copied by hand, since a used one does not deepcopy."""
    other: Any = type(policy)(**policy._get_constructor_parameters())
    torch.nn.utils.vector_to_parameters(point, other.parameters())
    return other  # type: ignore[no-any-return]


class Recorder(BaseCallback):
    """Keeps what `collect_rollouts` saw at each step, and the points it rolled out at."""

    def __init__(self) -> None:
        super().__init__()
        self.points: list[Tensor] = []
        self.infos: list[list[dict[str, Any]]] = []
        self.rewards: list[Any] = []

    def _on_rollout_end(self) -> None:
        points = self.model._points  # type: ignore[attr-defined]
        self.points.append(points.clone())

    def _on_step(self) -> bool:
        self.infos.append(copy.deepcopy(self.locals["infos"]))
        self.rewards.append(self.locals["rewards"].copy())
        return True


class Normed(ActorCriticPolicy):
    """MLPs but for one weight, which is no parameter."""

    def _build_mlp_extractor(self) -> None:
        super()._build_mlp_extractor()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            nn.utils.weight_norm(self.mlp_extractor.policy_net[0])


SPACES: dict[str, tuple[Callable[[], Any], Any, dict[str, Any]]] = {
    "Box to Discrete": (lambda: make_sb3_vec_env("CartPole-v1", 6), "MlpPolicy", {}),
    "Box to Box": (lambda: make_sb3_vec_env("Pendulum-v1", 6), "MlpPolicy", {"log_std_init": -0.5}),
    "own extractors": (lambda: make_sb3_vec_env("CartPole-v1", 6), "MlpPolicy", {"share_features_extractor": False}),
    "ReLU": (
        lambda: make_sb3_vec_env("CartPole-v1", 6),
        "MlpPolicy",
        {"activation_fn": torch.nn.ReLU, "net_arch": [8]},
    ),
    "Discrete to Discrete": (lambda: make_vec_env("FrozenLake-v1", 6), "MlpPolicy", {}),
    "MultiDiscrete": (lambda: make_vec_env(IdentityEnvMultiDiscrete, 6), "MlpPolicy", {}),
    "MultiBinary": (lambda: make_vec_env(IdentityEnvMultiBinary, 6), "MlpPolicy", {}),
    "Dict": (lambda: make_vec_env(SimpleMultiObsEnv, 6), "MultiInputPolicy", {"net_arch": [8]}),
    "images": (
        lambda: make_vec_env(FakeImageEnv, 6, env_kwargs={"screen_height": 36, "screen_width": 36}),
        "CnnPolicy",
        {"features_extractor_kwargs": {"features_dim": 16}},
    ),
    "a weight that is no parameter": (lambda: make_sb3_vec_env("CartPole-v1", 6), Normed, {"net_arch": [8]}),
}
SPACES |= {
    kind: (lambda: make_sb3_vec_env("CartPole-v1", 6), "MlpPolicy", extracting(kind))
    for kind in (*ONE_BY_ONE, *BATCHED)
}


def reference_losses(model: OptExA2C, points: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Loss and gradient at each point, by A2C's own formulas on a policy of its own and the point's columns.

    Values and log-probabilities in the buffer are those of that policy at what it saw and did.
    """
    buffer, M = model.rollout_buffer, model.n_envs // model.parallelism
    results = []
    for n, point in enumerate(points):
        policy, columns = at(model.policy, point), slice(n * M, (n + 1) * M)

        def rows(array: Any, steps: slice = slice(None), columns: slice = columns) -> Tensor:
            part = array[steps, columns]
            return torch.as_tensor(part.reshape(-1, *part.shape[2:]))

        def evaluated(steps: slice, policy: ActorCriticPolicy = policy, rows: Any = rows) -> tuple[Any, ...]:
            obs, actions = buffer.observations, rows(buffer.actions, steps).float()
            actions = actions.long().flatten() if isinstance(model.action_space, spaces.Discrete) else actions
            seen = {k: rows(v, steps) for k, v in obs.items()} if isinstance(obs, dict) else rows(obs, steps)
            return policy.evaluate_actions(seen, actions)

        for step in (slice(0, 1), slice(7, 8)):
            values, log_prob, _ = evaluated(step)
            torch.testing.assert_close(rows(buffer.values, step), values.detach().flatten(), rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(rows(buffer.log_probs, step), log_prob.detach(), rtol=1e-3, atol=1e-5)
        values, log_prob, entropy = evaluated(slice(None))
        policy_loss = -(rows(buffer.advantages) * log_prob).mean()
        value_loss = mse_loss(rows(buffer.returns), values.flatten())
        loss = policy_loss - model.ent_coef * entropy.mean() + model.vf_coef * value_loss
        gradients = torch.autograd.grad(loss, list(policy.parameters()))
        results.append((loss.detach(), torch.cat([g.reshape(-1) for g in gradients])))
    return results


@pytest.mark.filterwarnings(*SLOW)
@pytest.mark.parametrize("case", SPACES.values(), ids=SPACES)
def test_one_backward_pass_gives_the_gradients_of_separate_policies(case: Any) -> None:
    make_env, policy, policy_kwargs = case
    model = make(make_env(), policy, ent_coef=0.01, policy_kwargs=policy_kwargs)
    recorder = Recorder()
    evaluations: list[tuple[Tensor, Tensor]] = []
    optimizer: Any = model.policy.optimizer
    tell = optimizer.tell

    def watched(gradients: Tensor, losses: Tensor) -> None:
        evaluations.append((gradients, losses))
        expected = reference_losses(model, recorder.points[-1])
        torch.testing.assert_close(losses, torch.stack([loss for loss, _ in expected]), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(gradients, torch.stack([g for _, g in expected]), rtol=1e-3, atol=1e-5)
        tell(gradients, losses)

    optimizer.tell = watched
    model.learn(3 * 8 * 6, recorder)
    assert len(evaluations) == len(recorder.points) == 3
    assert torch.unique(recorder.points[-1], dim=0).shape[0] == 3


def test_an_episode_cut_short_is_valued_by_its_own_points_critic() -> None:
    env = make_sb3_vec_env("CartPole-v1", 6, max_episode_steps=5)
    model = make(env, learning_rate=0.05, gamma=0.9)
    recorder = Recorder()
    model.learn(4 * 8 * 6, recorder)
    infos, rewards = recorder.infos[-8:], recorder.rewards[-8:]
    found = 0
    for t, step in enumerate(infos):
        for i, info in enumerate(step):
            expected = rewards[t][i]
            if info["TimeLimit.truncated"]:
                last = torch.as_tensor(info["terminal_observation"])[None]
                critics = torch.stack([at(model.policy, p).predict_values(last)[0, 0] for p in recorder.points[-1]])
                assert len(set(critics.tolist())) == 3
                expected += 0.9 * float(critics[i // 2].detach())
                found += 1
            assert model.rollout_buffer.rewards[t, i] == pytest.approx(expected, rel=1e-4)
    assert found >= 6


@pytest.mark.parametrize(
    ("steps", "arguments"),
    [
        (400, {}),
        (400, {"use_rms_prop": False}),
        (400, {"normalize_advantage": True, "ent_coef": 0.01}),
        pytest.param(10_000, {}, marks=pytest.mark.slow),
    ],
)
def test_one_point_is_a2c_bit_for_bit(steps: int, arguments: dict[str, Any]) -> None:
    stock = A2C("MlpPolicy", make_vec_env("CartPole-v1", 4), seed=0, device="cpu", **arguments).learn(steps)
    ours = make(make_vec_env("CartPole-v1", 4), parallelism=1, **{"n_steps": 5} | arguments).learn(steps)
    assert same(weights(ours), weights(stock))
    optimizer: Any = ours.policy.optimizer
    assert same(optimizer.base.state_dict(), stock.policy.optimizer.state_dict())
    assert stock.num_timesteps == ours.num_timesteps >= steps


def test_the_base_is_the_optimizer_of_policy_kwargs() -> None:
    given = {"optimizer_class": torch.optim.SGD, "optimizer_kwargs": {"momentum": 0.5}}
    before = copy.deepcopy(given)
    optimizer: Any = make(policy_kwargs=given, optex_kwargs={"history_size": 7}).policy.optimizer
    assert given == before
    assert isinstance(optimizer, OptEx)
    assert type(optimizer.base) is torch.optim.SGD
    assert optimizer.base.defaults["momentum"] == 0.5
    assert optimizer.options.history_size == 7
    assert optimizer.options.max_grad_norm == 0.5
    rms: Any = make().policy.optimizer
    assert (rms.base.defaults["alpha"], rms.base.defaults["eps"]) == (0.99, 1e-5)
    adam: Any = make(use_rms_prop=False).policy.optimizer
    assert adam.base.defaults["eps"] == 1e-5


@pytest.mark.parametrize("selection", ["last", "loss", "grad_norm", "refine"])
def test_every_selection_learns(selection: str) -> None:
    model = make(optex_kwargs={"selection": selection, "history_size": 9}, normalize_advantage=True)
    before = weights(model)
    model.learn(6 * 8 * 6)
    assert not same(weights(model), before)
    assert all(value.isfinite().all() for value in weights(model).values())


def test_frozen_parameters_stay() -> None:
    model = make()
    model.policy.value_net.requires_grad_(False)
    before = weights(model)
    model.learn(4 * 8 * 6)
    moved = {name for name, value in weights(model).items() if not torch.equal(value, before[name])}
    assert moved == before.keys() - {"value_net.weight", "value_net.bias"}


def test_the_policy_is_the_iterate_throughout() -> None:
    model = make()
    seen: list[bool] = []

    class Watch(BaseCallback):
        def _on_step(self) -> bool:
            here = torch.nn.utils.parameters_to_vector(self.model.policy.parameters())
            seen.append(torch.equal(here, model._points[0]))  # type: ignore[index]
            return True

    model.learn(4 * 8 * 6, Watch())
    assert len(seen) == 32
    assert all(seen)


def test_a_callback_may_end_the_training() -> None:
    class Stop(BaseCallback):
        def _on_step(self) -> bool:
            return self.n_calls < 11

    model = make().learn(10_000, Stop())
    assert model.num_timesteps == 11 * 6


def test_saved_and_loaded_it_goes_on_bit_for_bit() -> None:
    one = make(optex_kwargs={"history_size": 9}).learn(6 * 8 * 6)
    two = reloaded(one, env=make_sb3_vec_env("CartPole-v1", 6))
    assert same(two.policy.optimizer.state_dict(), one.policy.optimizer.state_dict())
    assert len(two.policy.optimizer.state_dict()["optex"]["history"]["gradients"]) == 9
    assert two.parallelism == 3
    for model in (one, two):
        model.set_random_seed(1)
        model._last_obs = None
        model.learn(3 * 8 * 6, reset_num_timesteps=False)
        assert model.num_timesteps == 9 * 8 * 6
    assert same(weights(one), weights(two))


def test_loads_for_another_number_of_points_and_as_plain_a2c(tmp_path: Path) -> None:
    model = make().learn(4 * 8 * 6)
    model.save(tmp_path / "model")
    wider = OptExA2C.load(
        tmp_path / "model", env=make_sb3_vec_env("CartPole-v1", 10), device="cpu", parallelism=5, n_steps=4
    )
    wider.learn(4 * 10 * 2, reset_num_timesteps=False)
    assert wider._optimizer.options.parallelism == 5
    observation = np.array([0.01, 0.02, 0.03, 0.04], dtype=np.float32)
    for cls in (OptExA2C, A2C):
        without_env = cls.load(tmp_path / "model", device="cpu")
        assert same(weights(without_env), weights(model))
        assert without_env.predict(observation, deterministic=True) == model.predict(observation, deterministic=True)


def test_loads_for_one_point_as_if_made_for_one() -> None:
    one = reloaded(make().learn(4 * 8 * 6), env=make_sb3_vec_env("CartPole-v1", 6), parallelism=1)
    plain = reloaded(one, env=make_sb3_vec_env("CartPole-v1", 6))
    assert one.policy.optimizer.options.max_grad_norm is None
    stock = A2C("MlpPolicy", make_sb3_vec_env("CartPole-v1", 6), n_steps=8, device="cpu")
    stock.policy.load_state_dict(weights(plain))
    base: Any = plain.policy.optimizer.base
    stock.policy.optimizer.load_state_dict(copy.deepcopy(base.state_dict()))
    for model in (plain, stock):
        model.set_random_seed(2)
        model.learn(3 * 8 * 6)
    assert same(weights(plain), weights(stock))


def test_the_history_may_be_reset_at_each_rollout() -> None:
    model = make().learn(3 * 8 * 6, OptExCallback(reset_history=True))
    assert len(model._optimizer.state_dict()["optex"]["history"]["gradients"]) == 3


def test_set_env_and_a_second_learn() -> None:
    model = make().learn(2 * 8 * 6)
    model.set_env(make_sb3_vec_env("CartPole-v1", 6, seed=3))
    model.learn(2 * 8 * 6, reset_num_timesteps=False)
    assert model.num_timesteps == 4 * 8 * 6
    model.learn(2 * 8 * 6)
    assert model.num_timesteps == 2 * 8 * 6


def test_normalised_with_evaluation_and_checkpoints(tmp_path: Path) -> None:
    env = VecNormalize(make_sb3_vec_env("Acrobot-v1", 6, max_episode_steps=20))
    evaluation = EvalCallback(
        VecNormalize(make_sb3_vec_env("Acrobot-v1", 2, max_episode_steps=20), training=False, norm_reward=False),
        n_eval_episodes=2,
        eval_freq=16,
        best_model_save_path=str(tmp_path),
        log_path=str(tmp_path),
        verbose=0,
    )
    checkpoint = CheckpointCallback(16, str(tmp_path), save_vecnormalize=True)
    model = make(env).learn(6 * 8 * 6, [evaluation, checkpoint])
    assert np.load(tmp_path / "evaluations.npz")["results"].tolist() == [[-20.0, -20.0]] * 3
    assert evaluation.eval_env.obs_rms.count > 100  # type: ignore[attr-defined]
    assert (tmp_path / "rl_model_vecnormalize_288_steps.pkl").exists()
    saved = OptExA2C.load(tmp_path / "rl_model_288_steps", env=env, device="cpu")
    assert same(weights(saved), weights(OptExA2C.load(tmp_path / "best_model", env=env, device="cpu"))) is False
    assert evaluate_policy(model, evaluation.eval_env, n_eval_episodes=2) == (-20.0, 0.0)


def test_logs_names_of_a2c_and_of_optex(tmp_path: Path) -> None:
    model = make(tensorboard_log=str(tmp_path))
    model.learn(10 * 8 * 6, log_interval=11)
    expected = {"n_updates", "explained_variance", "entropy_loss", "policy_loss", "value_loss", "learning_rate"}
    names = set(model.logger.name_to_value)
    assert {f"train/{name}" for name in expected} <= names
    assert {"optex/iterations", "optex/cosine", "optex/history", "optex/ep_rew_mean_iterate"} <= names
    assert model.logger.name_to_value["optex/iterations"] == 10
    model.logger.close()
    assert [path.name for path in tmp_path.iterdir()] == ["OptExA2C_1"]
    continuous = make("Pendulum-v1").learn(8 * 6)
    assert continuous.logger.name_to_value["train/std"] == pytest.approx(1.0, abs=0.01)


def test_returns_at_the_iterate_are_those_of_the_first_sub_environments() -> None:
    env = make_sb3_vec_env("CartPole-v1", 6)
    model, recorder = make(env), Recorder()
    model.learn(10 * 8 * 6, recorder)
    first = [info["episode"]["r"] for step in recorder.infos for info in step[:2] if "episode" in info]
    assert len(first) > 3
    assert list(model._iterate_returns) == first


def test_learning_rate_follows_the_schedule() -> None:
    model = make(learning_rate=lambda progress: 1e-3 * progress).learn(4 * 8 * 6)
    assert model.policy.optimizer.param_groups[0]["lr"] == pytest.approx(0.0)
    assert same(weights(make(seed=1).learn(500)), weights(make(seed=1).learn(500)))


def test_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ConfigError, match="4 sub-environments cannot be shared out among parallelism=3"):
        make(make_sb3_vec_env("CartPole-v1", 4))
    with pytest.raises(ConfigError, match="gSDE draws its noise"):
        make("Pendulum-v1", use_sde=True)
    with pytest.raises(ConfigError, match="parallelism must be a whole number"):
        make(parallelism=0)

    class Own(ActorCriticPolicy):
        def predict_values(self, obs: Any) -> Tensor:
            return 2 * super().predict_values(obs)

    with pytest.raises(ConfigError, match="Own has its own predict_values"):
        make(policy=Own)
    with pytest.raises(ConfigError, match="ActorCriticPolicy draws random numbers in its forward pass"):
        make(policy_kwargs={"activation_fn": torch.nn.Dropout})
    assert make("Pendulum-v1", use_sde=True, parallelism=1).learn(64).num_timesteps >= 64


@pytest.mark.parametrize("kind", REFUSED)
def test_refuses_networks_that_points_cannot_share(kind: str) -> None:
    with pytest.raises(ConfigError, match=f"ActorCriticPolicy {REFUSED[kind][1]}"):
        make(policy_kwargs=extracting(kind))
    assert make(policy_kwargs=extracting(kind), parallelism=1).learn(8).num_timesteps >= 8


@pytest.mark.parametrize("kind", ONE_BY_ONE)
def test_one_warning_of_what_the_points_cost(kind: str) -> None:
    with pytest.warns(PerformanceWarning) as caught:
        model = make(policy_kwargs=extracting(kind)).learn(2 * 8 * 6)
    (warning,) = caught
    assert warning.filename == __file__  # where the model is made
    assert str(warning.message).startswith("torch.func.vmap cannot batch ActorCriticPolicy (RuntimeError: ")
    assert str(warning.message).endswith("one after the other: 3 forward passes in place of one each time")
    with pytest.warns(PerformanceWarning):
        again = reloaded(model, env=make_sb3_vec_env("CartPole-v1", 6))
    again.learn(8 * 6)
    assert make(policy_kwargs=extracting(kind), parallelism=1).learn(8).num_timesteps >= 8


def test_dictionaries_of_observations_point_after_point() -> None:
    """Against the same by vmap."""
    model = make(make_vec_env(SimpleMultiObsEnv, 6), "MultiInputPolicy", policy_kwargs={"net_arch": [8]})
    points = torch.randn(3, sum(p.numel() for p in model.policy.parameters()))
    obs = obs_as_tensor(sample_observations(model.observation_space, 6), torch.device("cpu"))
    together, separately = (StackedNetworks(model.policy, points, batched)(obs) for batched in (True, False))
    torch.testing.assert_close(separately[1], together[1])
    actions = torch.zeros(6)
    torch.testing.assert_close(separately[0].log_prob(actions), together[0].log_prob(actions))


@pytest.mark.parametrize("case", ["counter", "images"])
def test_the_policy_keeps_its_parameters(case: str) -> None:
    """The extractor has several names in it: it must hold afterwards what the optimizer moves."""
    make_env, policy, policy_kwargs = SPACES[case]
    model = make(make_env(), policy, policy_kwargs=policy_kwargs)
    own = [*model.policy.parameters()]
    model.learn(3 * 8 * 6)
    assert all(new is old for new, old in zip(model.policy.parameters(), own, strict=True))
    saved, obs = reloaded(model), sample_observations(model.observation_space, 6)
    actions = [each.predict(obs, deterministic=True)[0].tolist() for each in (model, saved)]
    assert actions[0] == actions[1]


def test_any_task_by_name() -> None:
    model = make("FrozenLake-v1")
    assert model.n_envs == 6
    assert model.learn(2 * 8 * 6).num_timesteps == 96


def test_mlps_go_through_batched_products_and_others_through_vmap() -> None:
    for policy_kwargs, batched in (({}, True), ({"activation_fn": torch.nn.Softmax}, False)):
        policy = make(policy_kwargs=policy_kwargs).policy
        networks = StackedNetworks(policy, torch.randn(3, sum(p.numel() for p in policy.parameters())))
        assert (networks._mlps() is not None) is batched


@pytest.mark.slow
def test_learns_cart_pole_in_fewer_rollouts() -> None:
    """The mean of the last 100 training episodes, from 20 at random, after 40 rollouts of 1,024 samples a point."""
    returns = []
    for model in (
        A2C("MlpPolicy", make_sb3_vec_env("CartPole-v1", 8), n_steps=128, seed=0, device="cpu"),
        OptExA2C("MlpPolicy", "CartPole-v1", n_steps=128, seed=0, device="cpu"),
    ):
        model.learn(40 * 128 * model.n_envs)
        returns.append(np.mean([info["r"] for info in model.ep_info_buffer or []]))
    assert returns[1] > 2 * returns[0] > 100
