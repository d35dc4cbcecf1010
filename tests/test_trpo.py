"""TRPO: the direction by a dense solve and by sb3-contrib's conjugate gradients, the line search, a task learnt."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from sb3_contrib.common.utils import conjugate_gradient_solver
from torch import Tensor
from torch.distributions import Categorical, Independent, Normal, kl_divergence
from torch.func import grad, jacrev

from optex_rl import ConfigError, NonFiniteError, TrainConfig, train
from optex_rl.agents import TRPO, MlpPolicy, Rows, StackedPolicy
from optex_rl.agents.returns import normalize_advantages
from optex_rl.training import Trainer

SMALL: dict[str, Any] = {"algo": "trpo", "n_envs": 4, "n_steps": 32, "n_critic_updates": 2, "net_arch": (6,)}
QUIET: dict[str, Any] = {"logdir": None, "progress_bar": False, "eval_freq": 0}


def trainer(**options: Any) -> Trainer:
    return Trainer(TrainConfig(**{**SMALL, **QUIET, "iterations": 3, "method": "vanilla", **options}))


def stacked(made: Trainer) -> StackedPolicy:
    assert isinstance(made.policy, MlpPolicy)
    return StackedPolicy(made.policy, shared=dict(made.policy.parameter_groups())["critic"])


def collected(made: Trainer) -> tuple[Tensor, Any, Rows]:
    """The iterate, what is collected there, and its samples, their advantages normalised."""
    points = made.optimizer.ask()
    batch = made.evaluator(points).batch
    rows = TRPO().rows(stacked(made).bind(points), batch)
    return (
        points[0].clone(),
        batch,
        rows._replace(advantages=normalize_advantages(rows.advantages.view(1, -1, 1)).view(-1)),
    )


def distribution(inputs: Tensor, env: str) -> Any:
    """What the actor says, as torch's own distribution."""
    if env == "CartPole-v1":
        return Categorical(logits=inputs)
    mean, log_std = inputs.chunk(2, -1)
    return Independent(Normal(mean, log_std.exp()), 1)


def kl_hessian(made: Trainer, env: str, start: Tensor, rows: Rows) -> Tensor:
    """Hessian of the exact mean divergence from the policy at ``start``, by differentiating twice: dense, [d, d]."""

    def divergence(point: Tensor) -> Tensor:
        inputs = stacked(made).bind(point[None], transforms=True).actor(rows.obs[None])[0]
        return kl_divergence(distribution(inputs.detach(), env), distribution(inputs, env)).mean()

    return torch.as_tensor(jacrev(grad(divergence))(start))


def surrogate_gradient(made: Trainer, env: str, start: Tensor, rows: Rows) -> Tensor:
    point = start.clone().requires_grad_()
    chosen = distribution(stacked(made).bind(point[None], transforms=True).actor(rows.obs[None])[0], env)
    ratio = (chosen.log_prob(rows.actions) - rows.log_probs).exp()
    (gradient,) = torch.autograd.grad((ratio * rows.advantages).mean(), point)
    return gradient


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_the_longest_step_is_the_natural_gradient_scaled_to_the_limit(env: str) -> None:
    """Solved densely; and with as many steps of sb3-contrib's conjugate gradients as of ours."""
    made = trainer(env=env)
    start, _, rows = collected(made)
    A = kl_hessian(made, env, start, rows) + 0.1 * torch.eye(len(start))
    gradient = surrogate_gradient(made, env, start, rows)

    def longest(cg_max_steps: int) -> Tensor:
        agent = TRPO(cg_max_steps=cg_max_steps, target_kl=0.01)
        return agent.make_update(stacked(made), Record(start, []), seed=0).longest_step(start, rows)

    def scaled(direction: Tensor) -> Tensor:
        return (0.02 / direction.dot(A @ direction)).sqrt() * direction

    solved = torch.linalg.solve(A.double(), gradient.double()).float()
    torch.testing.assert_close(longest(200), scaled(solved), rtol=1e-3, atol=1e-4)
    theirs = conjugate_gradient_solver(lambda v: A @ v, gradient, max_iter=4)
    torch.testing.assert_close(longest(4), scaled(theirs), rtol=1e-3, atol=1e-4)


class Record:
    """An iterate that notes where it is moved."""

    def __init__(self, start: Tensor, moved: list[Tensor]) -> None:
        self.start, self.moved = start, moved

    def point(self) -> Tensor:
        return self.start.clone()

    def move_to(self, point: Tensor) -> None:
        self.moved.append(point)

    def step(self, gradient: Tensor) -> None:
        raise AssertionError("the base takes no step")

    def undone_on_fault(self) -> Any:
        raise AssertionError("one move needs no undoing")


def search(goods: Callable[[float], tuple[float, float]], **options: Any) -> tuple[list[Tensor], dict[str, float]]:
    """The line search from 0 with a step of 1, where surrogate and divergence are functions of the point."""
    made, moved = trainer(), list[Tensor]()
    update = TRPO(**options).make_update(stacked(made), Record(torch.zeros(1), moved), seed=0)

    def compare(point: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
        surrogate, divergence = goods(float(point))
        return torch.tensor(surrogate), torch.tensor(divergence)

    update.compare = compare  # type: ignore[method-assign]
    return moved, update._search(torch.zeros(1), torch.ones(1), None)  # type: ignore[arg-type]


def test_the_line_search_by_hand() -> None:
    """Steps 1, 0.5, 0.25: the first is too far, the second no better than the start, the third is taken."""
    moved, report = search(
        lambda x: ({0.0: 2.0, 1.0: 9.0, 0.5: 2.0, 0.25: 2.5}[x], x / 10),
        target_kl=0.06,
        line_search_shrinking_factor=0.5,
    )
    assert [float(point) for point in moved] == [0.25]
    assert report == pytest.approx({"kl_divergence": 0.025, "surrogate_gain": 0.5, "line_search_steps": 3.0})


def test_where_no_attempt_is_good_the_policy_stays() -> None:
    moved, report = search(lambda x: (-x, 0.0), line_search_max_iter=4)
    assert moved == []
    assert set(report.values()) == {0.0}


def test_a_step_stays_within_the_trust_region_and_is_better() -> None:
    made = trainer(target_kl=0.02)
    start, batch, rows = collected(made)
    assert made.update is not None
    report = made.update(start[None], batch)
    end = made.optimizer.ask()[0]
    inputs = [stacked(made).bind(point[None]).actor(rows.obs[None])[0].detach() for point in (start, end)]
    exact = kl_divergence(*(distribution(each, "CartPole-v1") for each in inputs)).mean()
    assert 0.0 < report["kl_divergence"] < 0.02
    assert report["kl_divergence"] == pytest.approx(float(exact), rel=0.5)  # an estimate from 128 samples
    assert report["surrogate_gain"] > 0.0


def test_the_base_optimizer_and_its_rate_do_not_matter() -> None:
    made = [trainer(learning_rate=rate, optimizer=base) for rate, base in ((1.0, "sgd"), (1e-9, "adam"))]
    for each in made:
        each.iterate()
    assert torch.equal(made[0].optimizer.ask(), made[1].optimizer.ask())


def test_the_points_of_optex_give_their_samples() -> None:
    made = trainer(method="optex", parallelism=3)
    for iteration in range(1, 4):
        metrics = made.iterate()
        assert metrics["optex/history"] == 3 * iteration
        assert metrics["train/line_search_steps"] >= 0
    assert made.env_steps == 3 * 3 * 4 * 32


def test_a_direction_that_is_not_finite_moves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    made = trainer()
    start, batch, _ = collected(made)
    monkeypatch.setattr("optex_rl.agents.trpo.conjugate_gradients", lambda product, target, steps: target * torch.nan)
    assert made.update is not None
    with pytest.raises(NonFiniteError, match="the step of the trust region is not finite"):
        made.update(start[None], batch)
    assert torch.equal(made.optimizer.ask()[0], start)


def test_it_learns_cartpole() -> None:
    """In a few seconds to 400 or more; the best return is 500, the first one about 20."""
    small = TrainConfig(algo="trpo", method="vanilla", n_envs=16, n_steps=128, iterations=25, n_critic_updates=5)
    result = train(dataclasses.replace(small, target_kl=0.02, **QUIET | {"eval_freq": 25}))
    assert result.rows[-1]["eval/mean_reward"] > 400


def test_a_critic_in_each_point_is_refused() -> None:
    with pytest.raises(ConfigError, match="trpo moves the actor alone: n_critic_updates must be at least 1, got 0"):
        trainer(n_critic_updates=0)
