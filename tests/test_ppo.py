"""PPO: the surrogate by hand and against stable-baselines3, the epochs, exact resumption, and a task learnt."""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import mse_loss
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from optex_rl import NonFiniteError, TrainConfig, train
from optex_rl.agents import PPO, ActorCritic, Rows, StackedPolicy
from optex_rl.agents.losses import clipped_surrogate_loss
from optex_rl.agents.ppo import Epochs
from optex_rl.training import Trainer
from optex_rl.training.rollouts.evaluator import Evaluation, FusedEvaluator

SMALL: dict[str, Any] = {"algo": "ppo", "n_envs": 4, "n_steps": 16, "batch_size": 32, "n_epochs": 2}
QUIET: dict[str, Any] = {"logdir": None, "progress_bar": False, "eval_freq": 0}


def trainer(**options: Any) -> Trainer:
    return Trainer(TrainConfig(**{**SMALL, **QUIET, "iterations": 3, "method": "vanilla", **options}))


def collected(made: Trainer) -> tuple[Any, Any, Rows]:
    """The policy at the points, the batch that they collect, and its rows."""
    points = made.optimizer.ask()
    batch, bound = made.evaluator(points).batch, StackedPolicy(made.policy).bind(points)
    return bound, batch, PPO().rows(bound, batch)


def test_surrogate_by_hand() -> None:
    """ε = 0.2; ratios 0.5, 1.1, 2, 2 with advantages 1, 1, 1, −1 count as 0.5, 1.1, 1.2 (clipped), −2 (not clipped)."""
    log_probs = torch.tensor([[0.5, 1.1, 2.0, 2.0]]).log().requires_grad_()
    advantages = torch.tensor([[1.0, 1.0, 1.0, -1.0]])
    loss = clipped_surrogate_loss(log_probs, torch.zeros(1, 4), advantages, 0.2)
    torch.testing.assert_close(loss, torch.tensor([-(0.5 + 1.1 + 1.2 - 2.0) / 4]))
    (gradient,) = torch.autograd.grad(loss.sum(), log_probs)
    torch.testing.assert_close(gradient, torch.tensor([[-0.125, -0.275, 0.0, 0.5]]))


def sb3_loss(agent: PPO, rows: Rows, log_prob: Tensor, values: Tensor, entropy: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and divergence of a minibatch, written as stable-baselines3's PPO writes them."""
    advantages = (rows.advantages - rows.advantages.mean()) / (rows.advantages.std() + 1e-8)
    ratio = torch.exp(log_prob - rows.log_probs)
    policy_loss_1 = advantages * ratio
    policy_loss_2 = advantages * torch.clamp(ratio, 1 - agent.clip_range, 1 + agent.clip_range)
    policy_loss = -torch.min(policy_loss_1, policy_loss_2).mean()
    loss = policy_loss - agent.ent_coef * entropy.mean() + agent.vf_coef * mse_loss(rows.returns, values)
    log_ratio = log_prob - rows.log_probs
    return loss, torch.mean((torch.exp(log_ratio) - 1) - log_ratio)


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_the_loss_is_that_of_stable_baselines3(env: str) -> None:
    made = trainer(env=env)
    _, _, rows = collected(made)
    here = made.optimizer.ask()
    bound = StackedPolicy(made.policy).bind(
        here + 0.1 * torch.randn(here.shape, generator=torch.Generator().manual_seed(1))
    )
    agent = PPO(ent_coef=0.01)
    losses, divergence, clipped = agent.surrogate(bound, rows)
    inputs = bound.actor(rows.obs[None])
    log_prob = bound.distribution.log_prob(inputs, rows.actions[None])[0]
    out_of_range = ((log_prob - rows.log_probs).exp() - 1).abs() > agent.clip_range
    assert clipped == out_of_range.float().mean() > 0
    expected = sb3_loss(agent, rows, log_prob, bound.critic(rows.obs[None])[0], bound.distribution.entropy(inputs)[0])
    torch.testing.assert_close((losses.total[0], divergence), expected)


def test_one_epoch_of_one_minibatch_is_an_actor_critic_step() -> None:
    """Plain gradient descent, so that the parameters tell the gradient."""
    options: dict[str, Any] = {"optimizer": "sgd", "learning_rate": 0.1, "n_envs": 4, "n_steps": 16}
    options |= {"method": "vanilla", "lr_schedule": "constant", **QUIET}
    ppo = Trainer(TrainConfig(algo="ppo", n_epochs=1, batch_size=64, **options))
    a2c = Trainer(TrainConfig(algo="a2c", **options))
    before = ppo.optimizer.ask()
    for made in (ppo, a2c):
        made.iterate()
    after = [made.optimizer.ask() for made in (ppo, a2c)]
    assert not torch.equal(after[0], before)
    torch.testing.assert_close(*after, rtol=1e-5, atol=1e-7)


def test_old_probabilities_are_those_of_the_points_that_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    """One minibatch, one step of gradient descent from the iterate, against one plain network for each behaviour."""
    agent = PPO(ent_coef=0.01, n_epochs=1, batch_size=3 * 64)
    options: dict[str, Any] = {"method": "optex", "parallelism": 3, "optimizer": "sgd", "learning_rate": 0.1}
    made = trainer(**options, ent_coef=0.01, n_epochs=1, batch_size=3 * 64, max_grad_norm=1e9)
    iterate, before = made.optimizer.ask()[0].clone(), copy.deepcopy(made.policy)
    noise = torch.randn(3, len(iterate), generator=torch.Generator().manual_seed(1))
    points = iterate + torch.tensor([[0.0], [0.3], [0.3]]) * noise
    monkeypatch.setattr(made.optimizer, "ask", lambda: points)  # farther apart than a few iterations make them
    evaluate, seen = FusedEvaluator.__call__, list[Evaluation]()

    def seeing(self: FusedEvaluator, points: Tensor) -> Evaluation:
        seen.append(evaluate(self, points))
        return seen[-1]

    monkeypatch.setattr(FusedEvaluator, "__call__", seeing)
    report = made._attempt()

    parts = []
    for n, point in enumerate(points):
        batch = seen[0].batch.at(slice(n, n + 1))
        behaviour: Any = copy.deepcopy(before)
        vector_to_parameters(point, behaviour.parameters())
        obs, actions = batch.obs[0].flatten(0, 1), batch.actions[0].flatten(0, 1)
        with torch.no_grad():
            log_probs = behaviour.distribution.log_prob(behaviour.actor(obs), actions)
            values, advantages = ActorCritic().estimate(StackedPolicy(behaviour).bind(point[None]), batch)
        parts.append(Rows(obs, actions, log_probs, advantages.flatten(), (advantages + values).flatten()))
    rows = Rows(*(torch.cat(column) for column in zip(*parts, strict=True)))

    policy: Any = before
    inputs = policy.actor(rows.obs)
    log_prob, entropy = policy.distribution.log_prob(inputs, rows.actions), policy.distribution.entropy(inputs)
    assert ((log_prob - rows.log_probs).exp() - 1)[64:].abs().max() > agent.clip_range
    loss, _ = sb3_loss(agent, rows, log_prob, policy.critic(rows.obs), entropy)
    gradient = parameters_to_vector(torch.autograd.grad(loss, list(policy.parameters())))

    total = report["policy_loss"] - agent.ent_coef * report["entropy"] + agent.vf_coef * report["value_loss"]
    assert total == pytest.approx(loss.item(), rel=1e-5)
    moved = parameters_to_vector(made.policy.parameters()).detach()
    torch.testing.assert_close(moved - iterate, -0.1 * gradient, rtol=1e-4, atol=1e-6)


def count_steps(made: Trainer, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the minibatches of one iteration."""
    sizes: list[int] = []
    surrogate = PPO.surrogate

    def counted(agent: PPO, policy: Any, rows: Rows) -> Any:
        sizes.append(len(rows.obs))
        return surrogate(agent, policy, rows)

    monkeypatch.setattr(PPO, "surrogate", counted)
    made.iterate()
    return sizes


def test_every_epoch_uses_every_sample_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert count_steps(trainer(batch_size=24, n_epochs=3), monkeypatch) == 3 * [24, 24, 16]


def test_all_points_give_their_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    assert sum(count_steps(trainer(method="optex", parallelism=3), monkeypatch)) == 2 * 3 * 64


def test_target_kl_is_exceeded_by_half_before_the_epochs_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """1.5 · 0.02 = 0.03, as in stable-baselines3: a minibatch at 0.0299 makes a step, one at 0.0301 ends all epochs."""
    made = trainer(target_kl=0.02, n_epochs=10)
    assert isinstance(made.update, Epochs)
    surrogate, step = PPO.surrogate, made.update.iterate.step
    divergences, steps = [0.0, 0.021, 0.0299, 0.0301, 0.0], [0]

    def recorded(agent: PPO, policy: Any, rows: Rows) -> Any:
        return surrogate(agent, policy, rows)[0], torch.tensor(divergences.pop(0)), torch.tensor(0.0)

    def counted(gradient: Tensor) -> None:
        steps[0] += 1
        step(gradient)

    monkeypatch.setattr(PPO, "surrogate", recorded)
    monkeypatch.setattr(made.update.iterate, "step", counted)
    made.iterate()
    assert divergences == [0.0]
    assert steps == [3]


def test_the_points_of_optex_enter_the_history_and_the_epochs_move() -> None:
    made = trainer(method="optex", parallelism=3)
    for iteration in range(1, 4):
        metrics = made.iterate()
        assert metrics["optex/history"] == 3 * iteration
        assert metrics["optex/steps"] == 0  # the epochs moved, not the optimizer
    points = made.optimizer.ask()
    assert not torch.equal(points[0], points[1])


def test_a_fault_in_the_epochs_is_undone(monkeypatch: pytest.MonkeyPatch) -> None:
    made = trainer()
    surrogate = PPO.surrogate
    calls: list[int] = []

    def modified(agent: PPO, policy: Any, rows: Rows) -> Any:
        calls.append(len(calls))
        losses, *distances = surrogate(agent, policy, rows)
        return losses._replace(total=losses.total * math.nan) if len(calls) == 3 else losses, *distances

    monkeypatch.setattr(PPO, "surrogate", modified)
    points = made.optimizer.ask()
    batch = made.evaluator(points).batch
    assert made.update is not None
    with pytest.raises(NonFiniteError, match="the gradient of a minibatch is not finite"):
        made.update(points, batch)
    assert torch.equal(made.optimizer.ask(), points)
    calls.clear()
    made.iterate()  # the same again: repeated with new samples
    assert made.iteration == 1
    assert len(calls) == 3 + 4


def test_it_learns_cartpole() -> None:
    """In a few seconds to 400 or more; the best return is 500, the first one about 20."""
    small = TrainConfig(
        algo="ppo", method="vanilla", n_envs=16, n_steps=128, batch_size=512, iterations=15, lr_schedule="constant"
    )
    result = train(dataclasses.replace(small, **QUIET | {"eval_freq": 15}))
    assert result.rows[-1]["eval/mean_reward"] > 400
