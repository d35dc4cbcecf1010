"""An iteration with fewer usable gradients than points: dropping a point equals never having evaluated it."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from optex_rl import ConfigError, NonFiniteError, NotPositiveDefiniteError, OptEx
from optex_rl.optimizer.estimator import gp
from optex_rl.optimizer.iteration import ages_on_the_way
from optex_rl.optimizer.selection import SELECTIONS

from .helpers import Problem, same

N = 4


def warm(selection: str, stride: int = 1, iterations: int = 3) -> tuple[Problem, OptEx]:
    """An optimizer with a history."""
    problem = Problem()
    optimizer = OptEx(problem.groups(lr=0.01), parallelism=N, selection=selection, stride=stride, history_size=10)
    for _ in range(iterations):
        optimizer.tell(*problem.evaluate(optimizer.ask()))
    return problem, optimizer


def mask(*dropped: int) -> Tensor:
    return torch.tensor([i not in dropped for i in range(N)])


def corrupt(gradients: Tensor, losses: Tensor, dropped: tuple[int, ...], value: float) -> tuple[Tensor, Tensor]:
    gradients, losses = gradients.clone(), losses.clone()
    gradients[list(dropped)], losses[list(dropped)] = value, value
    return gradients, losses


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("dropped", [(0,), (3,), (1, 2), (0, 1, 3)])
@pytest.mark.parametrize("iterations", [0, 3])
def test_what_is_told_of_a_dropped_point_does_not_matter(
    selection: str, dropped: tuple[int, ...], iterations: int
) -> None:
    states = []
    for value in (math.nan, math.inf, -3.0):
        problem, optimizer = warm(selection, iterations=iterations)
        gradients, losses = problem.evaluate(optimizer.ask())
        optimizer.tell(*corrupt(gradients, losses, dropped, value), usable=mask(*dropped))
        states.append((optimizer.state_dict(), problem.point(), optimizer.statistics))
    assert same(states[0], states[1])
    assert same(states[0], states[2])
    history = states[0][0]["optex"]["history"]
    assert len(history["gradients"]) == min(10, iterations * N + N - len(dropped))


@pytest.mark.parametrize("selection", ["last", "loss", "grad_norm"])
@pytest.mark.parametrize("dropped", [(0,), (3,), (1, 2), (0, 1, 3)])
def test_dropping_equals_an_iteration_told_of_the_others_only(selection: str, dropped: tuple[int, ...]) -> None:
    """By hand: the others go into the history, then base steps to the chosen one of them and one from there."""
    problem, optimizer = warm(selection)
    points = optimizer.ask()
    gradients, losses = problem.evaluate(points)
    others = [i for i in range(N) if i not in dropped]
    reference = copy.deepcopy(optimizer)
    engine = reference._engine
    assert engine.estimator is not None
    engine.estimator.insert(points[others], gradients[others])
    choose = SELECTIONS[selection].choose
    assert choose is not None
    chosen = others[choose(gradients[others], losses[others], False)]
    assert engine.proposal is not None
    for estimate in engine.proposal.estimates[:chosen]:
        engine.base.step(estimate)
    engine.base.move_to(points[chosen])
    engine.base.step(gradients[chosen])
    optimizer.tell(*corrupt(gradients, losses, dropped, math.nan), usable=mask(*dropped))
    assert torch.equal(problem.point(), engine.base.point())
    assert same(optimizer.state_dict()["optex"]["history"], reference.state_dict()["optex"]["history"])
    assert same(optimizer.base.state_dict(), reference.base.state_dict())


@pytest.mark.parametrize("rows", [[0, 1, 2, 3], [0, 2, 3], [1], [2, 3], [0, 3]])
@pytest.mark.parametrize("stride", [1, 3])
def test_ages_on_the_way(rows: list[int], stride: int) -> None:
    """The last of the points that a chain has passed; before the first of them, the first."""
    expected = []
    for step in range(4 * stride):
        passed = [row for row in rows if row * stride <= step]
        expected.append(rows[::-1].index(max(passed, default=rows[0])))
    assert ages_on_the_way([row * stride for row in rows], 4 * stride) == expected


def test_refine_with_the_others_only() -> None:
    problem, optimizer = warm("refine", stride=2)
    points = optimizer.ask()
    gradients, losses = problem.evaluate(points)
    reference = copy.deepcopy(optimizer)._engine
    assert reference.estimator is not None
    reference.estimator.insert(points[[0, 2, 3]], gradients[[0, 2, 3]])
    for _ in range(N * 2):
        reference.base.step(reference.estimator.predict(reference.base.point())[0])
    optimizer.tell(*corrupt(gradients, losses, (1,), math.nan), usable=mask(1))
    torch.testing.assert_close(problem.point(), reference.base.point())  # distances by way of other points


def test_a_cold_iteration_averages_the_usable() -> None:
    problem = Problem()
    adam = torch.optim.SGD(problem.groups(lr=0.1))
    optimizer = OptEx.wrap(adam, parallelism=N)
    start = problem.point()
    optimizer.ask()
    gradients = torch.arange(1.0, N + 1)[:, None] * torch.ones(N, len(start))
    gradients[1] = math.nan
    optimizer.tell(gradients, usable=mask(1))  # (1 + 3 + 4) / 3; the second group goes at twice the rate
    first = sum(p.numel() for p in problem.groups()[0]["params"])
    assert torch.allclose((start - problem.point())[:first], torch.tensor(0.1 * 8 / 3))


def test_all_usable_is_the_default() -> None:
    (a, first), (b, second) = warm("last"), warm("last")
    first.tell(*a.evaluate(first.ask()))
    second.tell(*b.evaluate(second.ask()), usable=mask())
    assert same(first.state_dict(), second.state_dict())


@pytest.mark.parametrize("parallelism", [1, 4])
def test_no_usable_point_changes_nothing(parallelism: int) -> None:
    problem = Problem()
    optimizer = OptEx(problem.groups(lr=0.1), parallelism=parallelism)
    points = optimizer.ask()
    before = optimizer.state_dict(), problem.point()
    with pytest.raises(NonFiniteError, match=f"none of the {parallelism} points is usable; the optimizer is unchanged"):
        optimizer.tell(points * math.nan, usable=torch.zeros(parallelism, dtype=torch.bool))
    assert same(before, (optimizer.state_dict(), problem.point()))
    optimizer.tell(*problem.evaluate(points))


@pytest.mark.parametrize(
    ("usable", "message"),
    [
        (torch.ones(3, dtype=torch.bool), r"usable must be a mask \[N\] = \[4\] of bool, got \[3\] of torch.bool"),
        (torch.ones(4), r"usable must be a mask \[N\] = \[4\] of bool, got \[4\] of torch.float32"),
    ],
)
def test_masks_that_are_none(usable: Tensor, message: str) -> None:
    problem, optimizer = warm("last")
    points = optimizer.ask()
    with pytest.raises(ConfigError, match=message):
        optimizer.tell(*problem.evaluate(points), usable=usable)


def test_a_usable_point_must_be_finite() -> None:
    problem, optimizer = warm("last")
    gradients, losses = problem.evaluate(optimizer.ask())
    with pytest.raises(NonFiniteError, match="the optimizer is unchanged"):
        optimizer.tell(*corrupt(gradients, losses, (2,), math.nan), usable=mask(1))


@pytest.mark.parametrize("parallelism", [1, 3])
def test_a_step_that_would_explode_the_parameters_is_taken_back(parallelism: int) -> None:
    parameter = Parameter(torch.ones(5))
    optimizer = OptEx([parameter], lr=1e38, base="momentum", parallelism=parallelism)
    points = optimizer.ask()
    with pytest.raises(NonFiniteError, match="the step made 5 parameters NaN or infinite; it was undone"):
        optimizer.tell(1e3 * torch.ones_like(points))
    assert torch.equal(parameter.detach(), torch.ones(5))
    assert optimizer.state == {}
    assert torch.equal(optimizer.ask()[0], torch.ones(5))


def test_a_step_with_a_singular_kernel_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, optimizer = warm("refine")
    gradients, losses = problem.evaluate(optimizer.ask())
    before = problem.point(), optimizer.base.state_dict()

    def singular(matrix: Tensor) -> Tensor:
        raise NotPositiveDefiniteError("kernel matrix is not positive definite")

    monkeypatch.setattr(gp, "safe_cholesky", singular)
    with pytest.raises(NotPositiveDefiniteError):
        optimizer.tell(gradients, losses)
    assert same(before, (problem.point(), optimizer.base.state_dict()))
