"""OptExDQN: N minibatches at N parameter sets, and all that DQN can do besides."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import DQN
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import FakeImageEnv, SimpleMultiObsEnv
from stable_baselines3.common.vec_env import VecNormalize
from stable_baselines3.dqn.policies import DQNPolicy, QNetwork
from torch import Tensor, nn
from torch.nn.functional import smooth_l1_loss

from optex_rl import ConfigError, OptEx, PerformanceWarning
from optex_rl.sb3 import OptExCallback, OptExDQN, make_sb3_vec_env
from optex_rl.sb3.networks import StackedQNetwork

from .helpers import reloaded, same, weights
from .networks import BATCHED, ONE_BY_ONE, REFUSED
from .sb3_extractors import SLOW, extracting

SMALL: dict[str, Any] = {
    "learning_starts": 20,
    "buffer_size": 500,
    "batch_size": 8,
    "train_freq": 4,
    "gradient_steps": 2,
    "target_update_interval": 10,
    "seed": 0,
    "device": "cpu",
}


def make(env: Any = "CartPole-v1", policy: Any = "MlpPolicy", **arguments: Any) -> OptExDQN:
    return OptExDQN(policy, env, **{"parallelism": 3, **SMALL} | arguments)


class Dueling(DQNPolicy):
    """A Q-network that is no sequence of layers, but computes as DQN's does."""

    def make_q_net(self) -> QNetwork:
        net = super().make_q_net()
        net.q_net = Streams(net.features_dim, int(net.action_space.n))  # type: ignore[assignment]
        return net


class Streams(nn.Module):
    def __init__(self, inputs: int, actions: int) -> None:
        super().__init__()
        self.value, self.advantage = nn.Linear(inputs, 1), nn.Linear(inputs, actions)

    def forward(self, features: Tensor) -> Tensor:
        advantages: Tensor = self.advantage(features)
        values: Tensor = self.value(features) + advantages - advantages.mean(1, keepdim=True)
        return values


SPACES: dict[str, tuple[Callable[[], Any], Any, dict[str, Any]]] = {
    "Box": (lambda: make_vec_env("CartPole-v1", 1), "MlpPolicy", {}),
    "several environments": (lambda: make_sb3_vec_env("CartPole-v1", 3), "MlpPolicy", {}),
    "normalised": (lambda: VecNormalize(make_sb3_vec_env("CartPole-v1", 1)), "MlpPolicy", {}),
    "tanh": (lambda: make_vec_env("Acrobot-v1", 1), "MlpPolicy", {"activation_fn": nn.Tanh, "net_arch": [8]}),
    "Discrete": (lambda: make_vec_env("FrozenLake-v1", 1), "MlpPolicy", {}),
    "Dict": (lambda: make_vec_env(SimpleMultiObsEnv, 1), "MultiInputPolicy", {"net_arch": [8]}),
    "images": (
        lambda: make_vec_env(FakeImageEnv, 1, env_kwargs={"screen_height": 36, "screen_width": 36}),
        "CnnPolicy",
        {"features_extractor_kwargs": {"features_dim": 16}},
    ),
    "dueling": (lambda: make_vec_env("CartPole-v1", 1), Dueling, {}),
}
SPACES |= {
    kind: (lambda: make_vec_env("CartPole-v1", 1), "MlpPolicy", extracting(kind))
    for kind in (*ONE_BY_ONE, *BATCHED)
    if kind != "batch norm of the batch"  # the target network's batch is that of all points
}


def reference(model: OptExDQN, point: Tensor, batch: Any, rows: slice) -> tuple[Tensor, Tensor]:
    """Loss and gradient at a point by DQN's own formulas, on a Q-network of its own and the point's minibatch."""
    q_net = model.policy.make_q_net()  # one that vmap has been through may not deepcopy
    nn.utils.vector_to_parameters(point, q_net.parameters())

    def of(obs: Any) -> Any:
        return {k: v[rows] for k, v in obs.items()} if isinstance(obs, dict) else obs[rows]

    with torch.no_grad():
        best, _ = model.q_net_target(of(batch.next_observations)).max(dim=1)
        discounts = model.gamma if batch.discounts is None else batch.discounts[rows]
        targets = batch.rewards[rows] + (1 - batch.dones[rows]) * discounts * best.reshape(-1, 1)
    values = torch.gather(q_net(of(batch.observations)), dim=1, index=batch.actions[rows].long())
    loss = smooth_l1_loss(values, targets)
    gradients = torch.autograd.grad(loss, list(q_net.parameters()))
    return loss.detach(), torch.cat([g.reshape(-1) for g in gradients])


def assert_batched_is_separate(model: OptExDQN) -> None:
    """Train, and hold what the optimizer is told against separate networks."""
    optimizer: Any = model.policy.optimizer
    buffer: Any = model.replay_buffer
    tell, ask, sample = optimizer.tell, optimizer.ask, buffer.sample
    points: list[Tensor] = []
    batches: list[Any] = []

    def asked() -> Tensor:
        points.append(ask())
        return points[-1].clone()

    def sampled(size: int, env: Any = None) -> Any:
        batches.append(sample(size, env))
        return batches[-1]

    def told(gradients: Tensor, losses: Tensor) -> None:
        B = len(batches[-1].actions) // 3
        assert B == 8
        expected = [
            reference(model, point, batches[-1], slice(n * B, (n + 1) * B)) for n, point in enumerate(points[-1])
        ]
        torch.testing.assert_close(losses, torch.stack([loss for loss, _ in expected]), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(gradients, torch.stack([g for _, g in expected]), rtol=1e-3, atol=1e-5)
        tell(gradients, losses)

    optimizer.ask, optimizer.tell, buffer.sample = asked, told, sampled
    model.learn(60)
    assert len(points) == model._n_updates >= 6
    assert torch.unique(points[-1], dim=0).shape[0] == 3


@pytest.mark.filterwarnings(*SLOW)
@pytest.mark.parametrize("case", SPACES.values(), ids=SPACES)
def test_one_backward_pass_gives_the_gradients_of_separate_networks(case: Any) -> None:
    make_env, policy, policy_kwargs = case
    assert_batched_is_separate(make(make_env(), policy, policy_kwargs=policy_kwargs))


def test_returns_of_several_steps() -> None:
    model = make(n_steps=3, gamma=0.9)
    assert_batched_is_separate(model)
    assert model.replay_buffer is not None
    discounts = model.replay_buffer.sample(200).discounts
    assert {round(d, 3) for d in discounts.flatten().tolist()} >= {0.729}  # type: ignore[union-attr]


LONG = {"learning_starts": 1_000, "target_update_interval": 2_000, "seed": 0, "device": "cpu"}


@pytest.mark.parametrize(
    ("steps", "env", "arguments"),
    [
        (600, "CartPole-v1", SMALL),
        (
            600,
            "CartPole-v1",
            SMALL | {"tau": 0.1, "target_update_interval": 1, "max_grad_norm": 0.5, "gradient_steps": -1},
        ),
        (
            600,
            "CartPole-v1",
            SMALL | {"n_steps": 3, "policy_kwargs": {"optimizer_class": torch.optim.SGD, "net_arch": [8]}},
        ),
        pytest.param(20_000, "CartPole-v1", LONG, marks=pytest.mark.slow),
        pytest.param(20_000, "MountainCar-v0", LONG, marks=pytest.mark.slow),
    ],
    ids=["hard target", "soft target", "n steps, SGD", "long", "long, another task"],
)
def test_one_point_is_dqn_bit_for_bit(steps: int, env: str, arguments: dict[str, Any]) -> None:
    stock = DQN("MlpPolicy", env, **arguments).learn(steps)
    ours = OptExDQN("MlpPolicy", env, parallelism=1, **arguments).learn(steps)
    assert same(weights(ours), weights(stock))
    optimizer: Any = ours.policy.optimizer
    assert same(optimizer.base.state_dict(), stock.policy.optimizer.state_dict())
    assert stock.num_timesteps == ours.num_timesteps >= steps
    assert stock._n_updates == ours._n_updates > 0
    assert ours.exploration_rate == stock.exploration_rate


class StopAt(BaseCallback):
    """Ends the training in the middle of a rollout."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps

    def _on_step(self) -> bool:
        return self.num_timesteps < self.steps


def copied_with_buffer(model: OptExDQN, **arguments: Any) -> OptExDQN:
    """Model and replay buffer through files."""
    other: OptExDQN = reloaded(model, env=make_vec_env("CartPole-v1", 1), **arguments)
    file = io.BytesIO()
    model.save_replay_buffer(file)
    file.seek(0)
    other.load_replay_buffer(file)
    return other


# Gradients come every 4 steps, the target moves every 10: twenty steps have every position of both. Those before are
# without any gradient, and with a history that is not full.
@pytest.mark.parametrize(("steps", "parallelism"), [(5, 3), (25, 3), (61, 1), *((steps, 3) for steps in range(60, 80))])
def test_saved_and_loaded_it_goes_on_bit_for_bit_at_every_position_of_a_cycle(steps: int, parallelism: int) -> None:
    arguments: dict[str, Any] = {"optex_kwargs": {"history_size": 9}, "parallelism": parallelism}
    one = make(**arguments).learn(200, StopAt(steps))
    assert one.num_timesteps == steps
    two = copied_with_buffer(one)
    for model in (one, two):
        model.set_random_seed(1)
        model._last_obs = None  # both from a fresh episode: the environment is not part of the file
        model.learn(41, reset_num_timesteps=False)
    assert one._n_updates == two._n_updates
    assert one._n_calls == two._n_calls == one.num_timesteps - 1  # the step that a callback ends is not counted
    assert same(weights(one), weights(two))
    assert same(one.policy.optimizer.state_dict(), two.policy.optimizer.state_dict())


def test_loads_for_another_number_of_points_and_as_plain_dqn(tmp_path: Path) -> None:
    model = make().learn(60)
    model.save(tmp_path / "model")
    wider = copied_with_buffer(model, parallelism=5)
    wider.learn(40, reset_num_timesteps=False)
    assert wider._optimizer.options.parallelism == 5
    observation = np.array([0.01, 0.02, 0.03, 0.04], dtype=np.float32)
    for cls in (OptExDQN, DQN):
        without_env = cls.load(tmp_path / "model", device="cpu")
        assert same(weights(without_env), weights(model))
        assert without_env.predict(observation, deterministic=True) == model.predict(observation, deterministic=True)
    one = reloaded(model, env=make_vec_env("CartPole-v1", 1), parallelism=1)
    assert one.policy.optimizer.options.max_grad_norm is None


def test_the_target_network_is_that_of_dqn() -> None:
    """It holds the Q-network as it was when it moved last, with five gradients after it."""
    seen: list[tuple[int, Tensor, Tensor]] = []

    class Watch(BaseCallback):
        def _on_step(self) -> bool:
            policy: Any = self.model.policy
            values = [torch.cat([p.detach().reshape(-1) for p in net.parameters()]) for net in (policy.q_net, target)]
            seen.append((self.num_timesteps, *values))  # type: ignore[arg-type]
            return True

    model = make(target_update_interval=20, gradient_steps=1)
    target = model.q_net_target
    model.learn(100, Watch())
    for steps, _, held in seen:
        # SB3 calls callbacks before the target moves in the same step.
        moved = 20 * ((steps - 1) // 20)
        expected = seen[moved - 1][1] if moved else seen[0][2]
        assert torch.equal(held, expected)
    assert len({tuple(held.tolist()) for _, _, held in seen}) == 4  # the first gradient comes after step 20


def test_the_base_is_the_optimizer_of_policy_kwargs() -> None:
    given = {"optimizer_class": torch.optim.SGD, "optimizer_kwargs": {"momentum": 0.5}}
    before = copy.deepcopy(given)
    optimizer: Any = make(policy_kwargs=given, optex_kwargs={"history_size": 7}).policy.optimizer
    assert given == before
    assert isinstance(optimizer, OptEx)
    assert type(optimizer.base) is torch.optim.SGD
    assert optimizer.base.defaults["momentum"] == 0.5
    assert (optimizer.options.history_size, optimizer.options.max_grad_norm) == (7, 10)
    adam: Any = make().policy.optimizer
    assert same(adam.base.defaults, DQN("MlpPolicy", "CartPole-v1", device="cpu").policy.optimizer.defaults)


def test_the_horizon_adapts_unless_told_otherwise() -> None:
    for given, adapts in (({}, True), ({"horizon": "fixed"}, False)):
        optimizer: Any = make(optex_kwargs=given).policy.optimizer
        assert optimizer.options.adaptive == adapts


@pytest.mark.parametrize("selection", ["last", "loss", "grad_norm", "refine"])
def test_every_selection_learns(selection: str) -> None:
    model = make(optex_kwargs={"selection": selection, "history_size": 9})
    before = weights(model)
    model.learn(80)
    assert not same(weights(model), before)
    assert all(value.isfinite().all() for value in weights(model).values())


def test_learning_rate_follows_the_schedule() -> None:
    model = make(learning_rate=lambda progress: 1e-3 * progress).learn(80)
    assert model._optimizer.param_groups[0]["lr"] == pytest.approx(0.0)


def test_with_evaluation_checkpoints_and_logs(tmp_path: Path) -> None:
    model = make(tensorboard_log=str(tmp_path))
    evaluation = EvalCallback(make_vec_env("CartPole-v1", 2), eval_freq=30, n_eval_episodes=2, verbose=0)
    checkpoint = CheckpointCallback(30, str(tmp_path / "files"), save_replay_buffer=True)
    model.learn(100, OptExCallback([evaluation, checkpoint]), log_interval=1000)
    assert (tmp_path / "files" / "rl_model_replay_buffer_60_steps.pkl").exists()
    names = model.logger.name_to_value
    assert {"train/loss", "train/n_updates", "optex/cosine", "optex/history", "optex/iterations"} <= set(names)
    assert names["optex/iterations"] == names["train/n_updates"] == 40
    assert (tmp_path / "OptExDQN_1").is_dir()


def test_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ConfigError, match="parallelism must be a whole number"):
        make(parallelism=0)

    class OwnNetwork(QNetwork):
        def forward(self, obs: Any) -> Tensor:
            return 2 * super().forward(obs)

    class Own(DQNPolicy):
        def make_q_net(self) -> QNetwork:
            arguments = self._update_features_extractor(self.net_args, features_extractor=None)
            return OwnNetwork(**arguments).to(self.device)

    with pytest.raises(ConfigError, match="OwnNetwork has its own forward, which cannot be evaluated at several"):
        make(policy=Own)
    assert make(policy=Own, parallelism=1).learn(40).num_timesteps == 40


@pytest.mark.parametrize("kind", REFUSED)
def test_refuses_networks_that_points_cannot_share(kind: str) -> None:
    with pytest.raises(ConfigError, match=f"QNetwork {REFUSED[kind][1]}"):
        make(policy_kwargs=extracting(kind))


def test_one_warning_where_the_model_is_made() -> None:
    with pytest.warns(PerformanceWarning) as caught:
        OptExDQN("MlpPolicy", "CartPole-v1", policy_kwargs=extracting("GRU"), **SMALL).learn(40)
    (warning,) = caught
    assert str(warning.message).startswith("torch.func.vmap cannot batch QNetwork (RuntimeError: ")
    assert warning.filename == __file__


def test_mlps_go_through_batched_products_and_others_through_vmap() -> None:
    for policy_kwargs, batched in (({}, True), ({"activation_fn": nn.Softmax}, False)):
        q_net = make(policy_kwargs=policy_kwargs).q_net
        points = torch.randn(3, sum(p.numel() for p in q_net.parameters()))
        assert StackedQNetwork(q_net, points).are_mlps is batched
