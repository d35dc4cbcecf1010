"""Exact identities, bit for bit: one point is the base; an exact estimate is true steps; all ways to drive agree."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from optex_rl import OptEx
from optex_rl.optimizer.horizon import AdaptiveHorizon

from .helpers import CASES, TYPICAL, Case, ExactEstimator, Problem, advance, closure_of, same

Drive = Literal["step", "closure", "ask and tell"]
STEPS = 12
every_base = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
typical_base = pytest.mark.parametrize("case", TYPICAL.values(), ids=TYPICAL)


def drive(problem: Problem, optimizer: Optimizer, how: Drive, scheduler: torch.optim.lr_scheduler.LRScheduler) -> None:
    """Some steps with a decaying rate."""
    for _ in range(STEPS):
        if how == "step":
            advance(problem, optimizer, 1)
        elif how == "closure":
            optimizer.step(closure_of(problem, optimizer))
        else:
            assert isinstance(optimizer, OptEx)
            optimizer.tell(*problem.evaluate(optimizer.ask()))
        scheduler.step()


def driven(problem: Problem, optimizer: Optimizer, how: Drive) -> Tensor:
    drive(problem, optimizer, how, torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9))
    return problem.point()


@every_base
@pytest.mark.parametrize("how", ["step", "closure", "ask and tell"])
def test_one_point_is_the_base(case: Case, how: Drive) -> None:
    ours, plain = case.problem(), case.problem()
    for problem in (ours, plain):  # ask and tell cannot know which parameters have no gradient, unless they are frozen
        problem.idle.requires_grad_(how != "ask and tell")
    start = plain.point()
    expected = driven(plain, case.base(plain), "step")
    assert not torch.equal(expected, start)
    optimizer = case.optex(ours, parallelism=1)
    assert torch.equal(driven(ours, optimizer, how), expected)
    assert torch.equal(ours.idle, Problem().idle if not case.matrices else Problem(matrices=True).idle)


def test_wrap_goes_on_with_the_state_of_the_base() -> None:
    ours, plain = Problem(), Problem()
    base, alone = CASES["Adam"].base(ours), CASES["Adam"].base(plain)
    advance(ours, base, 5)
    advance(ours, OptEx.wrap(base, parallelism=1), 5)
    advance(plain, alone, 10)
    assert torch.equal(ours.point(), plain.point())


def test_one_point_takes_sparse_gradients_and_closures_where_the_base_does() -> None:
    def embedding_loss(embedding: torch.nn.Embedding) -> Tensor:
        return embedding(torch.tensor([0, 2, 2])).square().sum()  # type: ignore[no-any-return]

    torch.manual_seed(0)
    ours, plain = torch.nn.Embedding(4, 3, sparse=True), torch.nn.Embedding(4, 3, sparse=True)
    plain.load_state_dict(ours.state_dict())
    optimizers: list[Optimizer] = [
        OptEx(ours.parameters(), lr=0.1, base=torch.optim.SparseAdam, parallelism=1),
        torch.optim.SparseAdam(list(plain.parameters()), lr=0.1),
    ]
    for _ in range(STEPS):
        for embedding, optimizer in zip((ours, plain), optimizers, strict=True):
            optimizer.zero_grad()
            embedding_loss(embedding).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    assert torch.equal(ours.weight, plain.weight)


def test_one_point_is_lbfgs() -> None:
    ours, plain = Problem(), Problem()
    ours_lbfgs = OptEx(ours.parameters, lr=0.1, base=torch.optim.LBFGS, parallelism=1)
    plain_lbfgs = torch.optim.LBFGS(plain.parameters, lr=0.1)
    for _ in range(3):
        ours_lbfgs.step(closure_of(ours, ours_lbfgs))
        plain_lbfgs.step(closure_of(plain, plain_lbfgs))  # type: ignore[no-untyped-call]
    assert torch.equal(ours.point(), plain.point())


@pytest.mark.parametrize("how", ["step", "closure", "ask and tell"])
def test_one_point_clips_as_the_base_with_clip_grad_norm(how: Drive) -> None:
    ours, plain = Problem(), Problem()
    base = CASES["Adam"].base(plain)
    for problem in (ours, plain):
        problem.idle.requires_grad_(False)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(base, 0.9)
    for _ in range(STEPS):
        plain.backward()
        assert clip_grad_norm_(plain.parameters, 0.3) > 0.3
        base.step()
        scheduler.step()
    assert torch.equal(driven(ours, CASES["Adam"].optex(ours, parallelism=1, max_grad_norm=0.3), how), plain.point())


def with_exact_estimator(case: Case, **options: Any) -> tuple[Problem, OptEx]:
    """A problem and OptEx around `case`, one step taken, an exact estimator put in."""
    problem = case.problem()
    optimizer = case.optex(problem, parallelism=4, **{"horizon": "fixed", **options})
    optimizer.step(closure_of(problem, optimizer))
    optimizer._engine.estimator = ExactEstimator(problem.copy())  # type: ignore[assignment]
    return problem, optimizer


@every_base
@pytest.mark.parametrize("length", [2.0, 4.0])
def test_an_exact_estimate_makes_as_many_true_steps_as_the_horizon_has(case: Case, length: float) -> None:
    ours, optimizer = with_exact_estimator(case, horizon="auto")
    optimizer._engine.estimator.inserted = 4  # type: ignore[union-attr]  # in the first iteration
    plain = case.problem()
    base = case.base(plain)
    advance(plain, base, 1)
    for _ in range(3):
        optimizer._engine.horizon = AdaptiveHorizon(4, length)
        optimizer.step(closure_of(ours, optimizer))
        advance(plain, base, int(length))
        assert torch.equal(ours.point(), plain.point())
    assert same(optimizer.base.state_dict(), base.state_dict())


@every_base
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("how", ["last", "refine", "extrapolate"])
def test_an_exact_estimate_makes_true_steps(case: Case, how: str, stride: int) -> None:
    ours, optimizer = with_exact_estimator(case, selection="last" if how == "last" else "refine", stride=stride)
    plain = case.problem()
    base = case.base(plain)
    advance(plain, base, 1)
    steps = 3 * stride + 1 if how == "last" else 4 * stride
    for _ in range(3):
        if how == "extrapolate":
            advance(ours, optimizer, 1)
        else:
            optimizer.step(closure_of(ours, optimizer))
        advance(plain, base, steps)
        assert optimizer.statistics["steps"] == steps
        assert torch.equal(ours.point(), plain.point())
    assert same(optimizer.base.state_dict(), base.state_dict())


@typical_base
@pytest.mark.parametrize("selection", ["last", "refine"])
def test_an_exact_estimate_is_clipped_like_a_true_gradient(case: Case, selection: str) -> None:
    ours, optimizer = with_exact_estimator(case, selection=selection, max_grad_norm=0.3)
    plain = case.problem()
    base = case.base(plain)
    optimizer.step(closure_of(ours, optimizer))
    for _ in range(5):
        plain.backward()
        assert clip_grad_norm_(plain.parameters, 0.3) > 0.3
        base.step()
    assert torch.equal(ours.point(), plain.point())


def test_the_points_of_an_exact_estimate_are_the_steps_of_the_base() -> None:
    ours, optimizer = with_exact_estimator(CASES["Adam"], stride=2)
    plain = Problem()
    base = CASES["Adam"].base(plain)
    advance(plain, base, 1)
    expected = [plain.point()]
    for _ in range(3):
        advance(plain, base, 2)
        expected.append(plain.point())
    before = ours.point()
    assert torch.equal(optimizer.ask(), torch.stack(expected))
    assert torch.equal(ours.point(), before)


@typical_base
@pytest.mark.parametrize(
    ("selection", "options"),
    [
        ("last", {}),
        ("last", {"stride": 2, "kernel": "rbf", "lengthscale": "median", "noise": 0.1}),
        ("grad_norm", {"blocks": "groups"}),
        ("refine", {}),
        ("refine", {"stride": 2, "max_grad_norm": 0.5, "history_size": 5}),
    ],
)
def test_closure_ask_and_tell_and_emulate_agree(case: Case, selection: str, options: dict[str, Any]) -> None:
    problems = [case.problem() for _ in range(3)]
    for problem in problems:
        problem.idle.requires_grad_(False)
    by_closure, by_tell, emulated = (
        case.optex(problem, parallelism=3, selection=selection, without_closure="emulate", **options)
        for problem in problems
    )
    for cycle in range(7):
        by_closure.step(closure_of(problems[0], by_closure))
        by_tell.tell(*problems[1].evaluate(by_tell.ask()))
        advance(problems[2], emulated, 3)
        assert torch.equal(problems[0].point(), problems[1].point())
        assert torch.equal(problems[0].point(), problems[2].point())
        assert by_closure.statistics == by_tell.statistics == emulated.statistics
        # Cold iterations: the first, and with selections that go where they look the second.
        assert ("cosine" in by_closure.statistics) == (cycle >= (1 if selection == "refine" else 2))
    assert same(by_closure.base.state_dict(), by_tell.base.state_dict())
    assert same(by_closure.base.state_dict(), emulated.base.state_dict())


@typical_base
def test_closure_and_ask_and_tell_agree_by_loss(case: Case) -> None:
    ours, other = case.problem(), case.problem()
    by_closure, by_tell = (case.optex(p, parallelism=3, selection="loss") for p in (ours, other))
    ours.idle.requires_grad_(False)
    other.idle.requires_grad_(False)
    for _ in range(7):
        by_closure.step(closure_of(ours, by_closure))
        by_tell.tell(*other.evaluate(by_tell.ask()))
        assert torch.equal(ours.point(), other.point())


@typical_base
def test_parameters_without_gradient_do_not_matter_to_closure_or_emulate(case: Case) -> None:
    ours, other = case.problem(), case.problem()
    by_closure = case.optex(ours, parallelism=3)
    emulated = case.optex(other, parallelism=3, without_closure="emulate")
    before = ours.idle.detach().clone()
    for _ in range(5):
        by_closure.step(closure_of(ours, by_closure))
        advance(other, emulated, 3)
        assert torch.equal(ours.point(), other.point())
    assert torch.equal(ours.idle, before)


def rosenbrock(x: Tensor) -> Tensor:
    return (100.0 * (x[1:] - x[:-1].square()).square() + (1.0 - x[:-1]).square()).mean()


def rosenbrock_start(d: int = 10_000) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.randn(d, generator=torch.Generator().manual_seed(0)))


def rosenbrock_closure(x: torch.nn.Parameter) -> Tensor:
    x.grad = None
    value = rosenbrock(x)
    value.backward()  # type: ignore[no-untyped-call]
    return value


@pytest.mark.parametrize("selection", ["last", "refine"])
def test_rosenbrock_needs_a_quarter_of_the_sequential_iterations(selection: str) -> None:
    """Shu et al. (2024), Sec. 6.1: without noise, N = 5 comes near a fivefold speed-up; 120 / 30 leaves a margin."""
    plain, ours = rosenbrock_start(), rosenbrock_start()
    adam = torch.optim.Adam([plain], lr=0.1)
    for _ in range(120):
        rosenbrock_closure(plain)
        adam.step()
    optimizer = OptEx([ours], lr=0.1, parallelism=5, selection=selection, horizon="fixed")
    for _ in range(30):
        optimizer.step(lambda: rosenbrock_closure(ours))
    assert rosenbrock(ours) <= rosenbrock(plain)
