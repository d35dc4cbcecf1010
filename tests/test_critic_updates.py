"""One critic for all points: shared binding, its passes against a plain loop, faults, exact resumption, bad values."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, parameters_to_vector

from optex_rl import ConfigError, NonFiniteError, OptEx, RunFolderError, TrainConfig, resume, train
from optex_rl.agents import ActorCritic, Batch, BoundPolicy, MlpPolicy, Reinforce, StackedPolicy
from optex_rl.common.storage import save_checkpoint
from optex_rl.training import Trainer
from optex_rl.training.rollouts.seeding import spawn_seeds

from .helpers import assert_resumed_exactly
from .own_code import Net

SMALL: dict[str, Any] = {"n_envs": 4, "n_steps": 16, "batch_size": 24, "n_critic_updates": 2, "parallelism": 3}
QUIET: dict[str, Any] = {"logdir": None, "progress_bar": False, "eval_freq": 0}


def trainer(**options: Any) -> Trainer:
    return Trainer(TrainConfig(**{**SMALL, **QUIET, "iterations": 4, "learning_rate": 0.01, **options}))


def parts(policy: nn.Module) -> tuple[Tensor, Tensor]:
    """Copies of actor and critic as flat vectors."""
    assert isinstance(policy, MlpPolicy)
    actor, critic = (parameters_to_vector(part).detach().clone() for _, part in policy.parameter_groups())
    return actor, critic


def collected(made: Trainer) -> tuple[Tensor, Batch]:
    """Points, and what was collected at them."""
    points = made.optimizer.ask()
    return points, made.evaluator(points).batch


def bind(made: Trainer, points: Tensor) -> BoundPolicy:
    """The actors at ``points``, with the critic that they share."""
    assert isinstance(made.policy, MlpPolicy)
    return StackedPolicy(made.policy, shared=dict(made.policy.parameter_groups())["critic"]).bind(points)


class Custom(MlpPolicy):
    """The same networks, evaluated by vmap like any custom module."""


@pytest.mark.parametrize("kind", [MlpPolicy, Custom])
def test_a_shared_critic_is_n_equal_critics(kind: type[MlpPolicy]) -> None:
    box, actions = gymnasium.spaces.Box(-1, 1, (4,)), gymnasium.spaces.Discrete(3)
    policy, generator = kind(box, actions, (8, 8)), torch.Generator().manual_seed(0)
    actor, critic = parts(policy)
    points = actor + 0.1 * torch.randn(3, len(actor), generator=generator)
    obs, weights = torch.randn(3, 5, 4, generator=generator), torch.randn(3, 5, 3, generator=generator)
    shared = StackedPolicy(policy, shared=dict(policy.parameter_groups())["critic"])
    assert shared.num_parameters == len(actor)
    whole = torch.cat([points, critic.expand(3, -1)], dim=1)
    torch.testing.assert_close(shared.critic(points, obs), StackedPolicy(policy).critic(whole, obs))
    gradients = []
    for stacked, at in ((shared, points), (StackedPolicy(policy), whole)):
        at = at.clone().requires_grad_()
        (gradient,) = torch.autograd.grad((stacked.actor(at, obs) * weights).sum(), at)
        gradients.append(gradient[:, : len(actor)])
    torch.testing.assert_close(*gradients)
    assert not shared.critic(points.clone().requires_grad_(), obs).requires_grad


def plain_loop(made: Trainer, obs: Tensor, targets: Tensor, optimizer: torch.optim.Optimizer, net: nn.Module) -> None:
    """The passes, written down once more."""
    generator = torch.Generator().manual_seed(spawn_seeds(made.config.seed, 5, 1)[0])
    for _ in range(made.config.n_critic_updates):
        order = torch.randperm(len(obs), generator=generator)
        for first in range(0, len(obs), made.config.batch_size):
            rows = order[first : first + made.config.batch_size]
            optimizer.zero_grad()
            (net(obs[rows]).squeeze(-1) - targets[rows]).square().mean().backward()
            clip_grad_norm_(net.parameters(), 0.5)
            optimizer.step()


@pytest.mark.parametrize("usable", [None, [True, False, True]])
@pytest.mark.parametrize("algo", ["a2c", "reinforce"])
def test_the_passes_are_those_of_a_plain_loop(algo: str, usable: list[bool] | None) -> None:
    """The targets are made once, by the old critic: λ-returns or returns, from N equal critics."""
    made = trainer(algo=algo)
    points, batch = collected(made)
    _, critic = parts(made.policy)
    bound = StackedPolicy(made.policy).bind(torch.cat([points, critic.expand(3, -1)], dim=1))
    if algo == "a2c":
        values, advantages = ActorCritic().estimate(bound, batch)
        targets = (values + advantages).detach()
    else:
        targets = Reinforce().targets(bound, batch)
    rows = [0, 1, 2] if usable is None else [0, 2]
    net = copy.deepcopy(made.policy.critic_net)
    assert isinstance(net, nn.Module)
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    plain_loop(made, batch.obs[rows].flatten(0, 2), targets[rows].flatten(), optimizer, net)
    assert made.critic is not None
    made.critic.fit(points, batch, np.repeat([n not in rows for n in range(3)], 4))
    torch.testing.assert_close(parts(made.policy)[1], parameters_to_vector(net.parameters()).detach())


@pytest.mark.parametrize("kind", [MlpPolicy, Custom])
def test_the_gradients_are_those_of_the_critic_that_was_just_fitted(kind: type[MlpPolicy]) -> None:
    config = TrainConfig(**SMALL, **QUIET, critic_learning_rate=0.1)
    policy = kind(gymnasium.spaces.Box(-np.inf, np.inf, (4,), np.float32), gymnasium.spaces.Discrete(2))
    made = Trainer(config, policy)
    assert made.critic is not None
    before = parts(policy)[1]
    points = made.optimizer.ask()
    evaluation = made.evaluator(points, made.critic.fit)
    assert not torch.equal(parts(policy)[1], before)
    at = points.clone().requires_grad_()
    losses = made.agent.loss(bind(made, at), evaluation.batch)
    (gradients,) = torch.autograd.grad(losses.total.sum(), at)
    torch.testing.assert_close(evaluation.gradients, gradients)
    torch.testing.assert_close(evaluation.losses.value_loss, losses.value_loss)


def test_without_a_sound_point_the_critic_stays() -> None:
    made = trainer()
    points, batch = collected(made)
    before = parts(made.policy)[1]
    assert made.critic is not None
    made.critic.fit(points, batch, np.ones(12, np.bool_))
    assert torch.equal(parts(made.policy)[1], before)


def test_targets_of_reinforce_are_returns() -> None:
    """Discounted sums, by a loop from the end of each window; no time limit ends an episode in 16 steps."""
    made = trainer(algo="reinforce", parallelism=1)
    points, batch = collected(made)
    bound = bind(made, points)
    targets = Reinforce().targets(bound, batch)
    assert not batch.truncated.any()
    ends = {int(row): k for k, row in enumerate(batch.final_index[0]) if row >= 0}
    after = bound.critic(batch.final_obs)[0].detach()
    T, E = batch.rewards.shape[1:]
    for e in range(E):
        running = after[ends[(T - 1) * E + e]] if (T - 1) * E + e in ends else torch.tensor(0.0)
        for t in reversed(range(T)):
            running = batch.rewards[0, t, e] + 0.99 * running * (~batch.terminated[0, t, e])
            torch.testing.assert_close(targets[0, t, e], running)


def test_the_critic_learns_and_the_optimizer_moves_the_actor_alone() -> None:
    made = trainer(critic_learning_rate=0.0)
    actor, critic = parts(made.policy)
    assert made.optimizer.ask().shape == (3, len(actor))
    made.iterate()
    assert torch.equal(parts(made.policy)[1], critic)
    assert not torch.equal(parts(made.policy)[0], actor)
    still = trainer(learning_rate=0.0, n_critic_updates=20, lr_schedule="constant")
    points, batch = collected(still)
    assert still.critic is not None

    def error() -> float:
        values = bind(still, points).critic(batch.obs.flatten(1, 2))
        return float((values - targets.flatten(1)).square().mean().detach())

    targets = still.critic.agent.targets(bind(still, points), batch)
    before = error()
    still.critic.fit(points, batch, np.zeros(12, np.bool_))
    assert error() < 0.9 * before
    assert torch.equal(parts(still.policy)[0], actor)


def test_the_critics_rate_follows_the_schedule() -> None:
    made = trainer(critic_learning_rate=0.02)
    rates = []
    for _ in range(4):
        made.iterate()
        assert made.critic is not None
        rates.append(made.critic.base.groups[0]["lr"])
    assert rates == pytest.approx([0.02, 0.015, 0.01, 0.005])


def test_a_fault_in_the_step_undoes_the_critics_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    """The iteration is repeated with new samples, from the critic that was there before it."""
    made = trainer()
    made.iterate()
    assert made.critic is not None
    before, state = parts(made.policy), copy.deepcopy(made.critic.base.base.state_dict())
    tell, seen = OptEx.tell, []

    def failing(self: OptEx, *arguments: Any, **more: Any) -> None:
        seen.append(parts(made.policy)[1])
        if len(seen) == 1:
            raise NonFiniteError("no step")
        tell(self, *arguments, **more)

    monkeypatch.setattr(OptEx, "tell", failing)
    assert made._attempt() == {}
    assert not torch.equal(seen[0], before[1])  # it had been fitted
    assert torch.equal(parts(made.policy)[1], before[1])
    after = made.critic.base.base.state_dict()["state"]
    assert all(torch.equal(after[i][name], value) for i, s in state["state"].items() for name, value in s.items())
    made.iterate()
    assert made.iteration == 2


def test_a_critic_that_explodes_is_taken_back() -> None:
    made = trainer(critic_learning_rate=1e37, lr_schedule="constant")
    points, batch = collected(made)
    before = parts(made.policy)
    assert made.critic is not None
    with pytest.raises(NonFiniteError, match="parameters NaN or infinite"), made.critic.base.undone_on_fault():
        made.critic.fit(points, batch, np.zeros(12, np.bool_))
    for one, other in zip(parts(made.policy), before, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("method", ["vanilla", "optex"])
@pytest.mark.parametrize(
    "options",
    [
        SMALL,
        {**SMALL, "env": "Pendulum-v1"},
        {**SMALL, "algo": "trpo"},
        {**SMALL, "algo": "ppo", "n_critic_updates": 0, "n_epochs": 2},
    ],
)
def test_a_resumed_run_is_the_run_that_nothing_stopped(method: str, options: dict[str, Any], tmp_path: Path) -> None:
    assert_resumed_exactly(tmp_path, **options, method=method)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda state: state.pop("generator"), r"critic does not have the entries it must have: generator missing"),
        (
            lambda state: state["optimizer"]["state"][0].pop("exp_avg"),
            r"state.0 does not have the entries it must have",
        ),
        (
            lambda state: state["optimizer"]["state"][0]["exp_avg"].fill_(torch.nan),
            r"iteration 3: the step made \d+ parameters NaN or infinite",  # as wherever they come from
        ),
    ],
)
def test_a_damaged_critic_is_refused(damage: Any, message: str, tmp_path: Path) -> None:
    options = {**SMALL, "logdir": str(tmp_path), "progress_bar": False, "eval_freq": 0}
    run_dir = train(TrainConfig(**options, iterations=2)).run_dir
    assert run_dir is not None
    content = torch.load(run_dir / "checkpoint.pt", weights_only=True)
    damage(content["critic"])
    save_checkpoint(run_dir / "checkpoint.pt", content)
    with pytest.raises((RunFolderError, NonFiniteError), match=message):
        resume(run_dir, iterations=3)


def test_it_learns_pendulum_sooner() -> None:
    """From about −1200 to −180 … −200 in 25 iterations; without the passes to −380 … −640 (three seeds each)."""
    small = TrainConfig.recommended(
        "Pendulum-v1", iterations=25, learning_rate=0.004, batch_size=512, n_critic_updates=5, **QUIET
    )
    made = Trainer(small)
    for _ in range(25):
        made.iterate()
    assert made.evaluate() > -280


def test_a_policy_must_name_its_critic() -> None:
    config = TrainConfig(**SMALL, **QUIET)
    nameless = Net(gymnasium.spaces.Box(-1, 1, (4,)), gymnasium.spaces.Discrete(2))
    with pytest.raises(ConfigError, match=r"needs a part 'critic' in Net.parameter_groups\(\): name it, or use 0"):
        Trainer(config, nameless)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"algo": "ppo"}, "n_critic_updates must be 0, got 2: the critic of ppo"),
        ({"algo": "reinforce", "baseline": False}, "n_critic_updates must be 0, got 2: the critic of reinf"),
    ],
)
def test_bad_values(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig(**{**SMALL, **options})
