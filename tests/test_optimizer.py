"""What OptEx does: one iteration worked by hand, selections, clipping, and parameters that others touch, too."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from optex_rl import ConfigError, GradientEstimator, NonFiniteError, OptEx
from optex_rl.optimizer.iteration import Proposal, mean_cosines
from optex_rl.optimizer.selection import SELECTIONS, least_loss

from .helpers import CASES, Problem, advance, closure_of, same


def square_closure(optimizer: OptEx, parameter: Tensor) -> Callable[[], Tensor]:
    """Closure of f(θ) = ‖θ‖² / 2, whose gradient is θ."""

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = 0.5 * parameter.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    return closure


def warm(**options: Any) -> tuple[Problem, OptEx]:
    """Three iterations on the problem: predictions are in use."""
    problem = Problem()
    optimizer = CASES["Adam"].optex(problem, horizon="fixed", **options)
    for _ in range(3):
        optimizer.step(closure_of(problem, optimizer))
    assert "cosine" in optimizer.statistics
    return problem, optimizer


def test_an_iteration_worked_by_hand() -> None:
    # f(θ) = θ²/2, gradient θ; SGD at rate 1/2 halves θ; N = 2; RBF with ℓ = 1, σ² = 1; selection "last".
    #   1. no history: both points 2, mean gradient 2, next iterate 2 − 2/2 = 1
    #   2. one distinct point in the history: both points 1, mean gradient 1, next iterate 1/2
    #   3. History 2, 2, 1, 1. Two equal pairs with noise 1 are one pair with noise 1/2: between 2 and 1
    #      K + σ²I = [[1.5, e^−.5], [e^−.5, 1.5]] with e^−.5 = .606531 and determinant 2.25 − .367879 = 1.882121.
    #      At 1/2: k = (e^−1.125, e^−.125) = (.324652, .882497). Weights
    #        (1.5 · .324652 − .606531 · .882497) / 1.882121 = −.025653 for gradient 2,
    #        (1.5 · .882497 − .606531 · .324652) / 1.882121 =  .598704 for gradient 1.
    #      Mean −.051307 + .598704 = .547398, proxy 1/2 − .547398 / 2 = .226301; its true gradient is .226301,
    #      next iterate .226301 − .113151 = .113151.
    theta = Parameter(torch.tensor([2.0], dtype=torch.float64))
    optimizer = OptEx(
        [theta], lr=0.5, base="sgd", parallelism=2, kernel="rbf", lengthscale=1.0, noise=1.0, selection="last"
    )
    points, iterates = [], []
    for _ in range(3):
        points.append(optimizer.ask())
        optimizer.tell(points[-1])
        iterates.append(theta.item())
    assert torch.equal(torch.stack(points[:2]).squeeze(), torch.tensor([[2.0, 2.0], [1.0, 1.0]]).double())
    assert points[2].squeeze().tolist() == pytest.approx([0.5, 0.226301], abs=1e-6)
    assert iterates == pytest.approx([1.0, 0.5, 0.113151], abs=1e-6)
    assert optimizer._engine.estimator is not None
    predicted = optimizer.statistics
    assert predicted["cosine"] == pytest.approx(1.0)
    assert (predicted["steps"], predicted["history"]) == (2.0, 6.0)
    assert (predicted["lengthscale"], predicted["noise"]) == (1.0, 1.0)


def proposal_of(points: Tensor, estimates: Tensor, variances: tuple[float, ...] = ()) -> Proposal:
    column = torch.tensor(variances or [0.0] * len(points), dtype=torch.float64)[:, None]
    return Proposal(points, estimates, column)


@pytest.mark.parametrize(
    ("selection", "expected"),
    # Points 0, 1, 5; estimates −1, −4; SGD at rate 1. The step of each selection is from its point with its gradient.
    [
        ("last", 5.0 - 3.0),
        ("loss", 0.0 - 2.0),  # the least loss is at the first point
        ("grad_norm", 1.0 + 1.0),  # the least gradient norm at the second
    ],
)
def test_selections_step_from_their_point(selection: str, expected: float) -> None:
    theta = Parameter(torch.zeros(1))
    optimizer = OptEx([theta], lr=1.0, base="sgd", parallelism=3, selection=selection)
    engine = optimizer._engine
    estimator = GradientEstimator(1)
    estimator.insert(torch.tensor([[7.0], [8.0]]), torch.ones(2, 1))
    engine.estimator = estimator
    engine.proposal = proposal_of(torch.tensor([[0.0], [1.0], [5.0]]), torch.tensor([[-1.0], [-4.0]]))
    optimizer.tell(torch.tensor([[2.0], [-1.0], [3.0]]), torch.tensor([0.5, 0.6, 0.7]))
    assert theta.item() == expected


@pytest.mark.parametrize("selection", ["last", "loss", "grad_norm"])
def test_the_base_has_the_state_that_belongs_to_the_chosen_point(selection: str) -> None:
    """Adam counts its steps: as many as led to the point, and one more."""
    problem, optimizer = warm(selection=selection, stride=2)
    before = float(optimizer.base.state[problem.first]["step"])
    optimizer.step(closure_of(problem, optimizer))
    steps = optimizer.statistics["steps"]
    assert steps in (1.0, 3.0, 5.0, 7.0)
    assert float(optimizer.base.state[problem.first]["step"]) == before + steps


def test_losses_in_float64_are_compared_in_float64() -> None:
    theta = Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = OptEx([theta], lr=1.0, base="sgd", parallelism=2, selection="loss")
    optimizer._engine.estimator = estimator = GradientEstimator(1, dtype=torch.float64)
    estimator.insert(torch.tensor([[7.0], [8.0]]).double(), torch.ones(2, 1).double())
    points = torch.tensor([[0.0], [1.0]]).double()
    optimizer._engine.proposal = proposal_of(points, torch.tensor([[-1.0], [0.0]]).double())
    losses = iter([1e40 * (1.0 + 1e-12), 1e40])

    def closure() -> float:
        theta.grad = torch.ones_like(theta)
        return next(losses)

    assert optimizer.step(closure) == 1e40 * (1.0 + 1e-12)
    assert theta.item() == 0.0  # from the second point, 1, one step of 1


def test_cold_iterations_step_with_the_mean_gradient() -> None:
    theta = Parameter(torch.zeros(2))
    optimizer = OptEx([theta], lr=1.0, base="sgd", parallelism=2)
    assert torch.equal(optimizer.ask(), torch.zeros(2, 2))
    optimizer.tell(torch.tensor([[1.0, 0.0], [3.0, -2.0]]))
    assert torch.equal(theta, torch.tensor([-2.0, 1.0]))
    assert optimizer.statistics == {"steps": 1.0, "history": 2.0, "horizon": 1 / 16}


@pytest.mark.parametrize("selection", SELECTIONS)
def test_first_steps_are_steps_of_the_base_with_the_mean_gradient(selection: str) -> None:
    """And from the first prediction on, which comes with the second or the third iteration, they are made no more."""
    mean, theta, plain = torch.tensor([2.0, -1.0]), Parameter(torch.zeros(2)), Parameter(torch.zeros(2))
    optimizer = OptEx([theta], lr=0.1, base="adam", parallelism=2, selection=selection, first_steps=3)
    base = torch.optim.Adam([plain], lr=0.1)
    optimizer.ask()
    optimizer.tell(torch.tensor([[1.0, 0.0], [3.0, -2.0]]), torch.zeros(2))
    for _ in range(3):
        plain.grad = mean.clone()
        base.step()
    assert torch.equal(theta, plain)
    assert optimizer.statistics["steps"] == 3.0
    for _ in range(2):
        optimizer.tell(optimizer.ask() + mean, torch.zeros(2))
    assert "cosine" in optimizer.statistics
    assert optimizer.statistics["steps"] in (1.0, 2.0)


def test_first_steps_without_closure_and_with_one_point() -> None:
    theta = Parameter(torch.zeros(1))
    optimizer = OptEx([theta], lr=1.0, base="sgd", parallelism=2, first_steps=3)
    theta.grad = torch.ones(1)
    optimizer.step()
    assert theta.item() == -3.0
    single = OptEx([theta], lr=1.0, base="sgd", parallelism=1, first_steps=3)
    single.step()
    assert theta.item() == -4.0
    with pytest.raises(ConfigError, match="first_steps must be a whole number of at least 1, got 0"):
        OptEx([theta], first_steps=0)


def test_the_second_iteration_of_refine_looks_along_the_gradient_of_the_first() -> None:
    """And no warning: copies of one point have no singular kernel matrix, even without noise."""
    theta = Parameter(torch.zeros(2))
    optimizer = OptEx([theta], lr=0.5, base="sgd", parallelism=3, noise=0.0, horizon="fixed")
    gradient = torch.tensor([2.0, -4.0])
    optimizer.ask()
    optimizer.tell(gradient.repeat(3, 1))
    torch.testing.assert_close(theta.detach(), -0.5 * gradient)
    points = optimizer.ask()
    torch.testing.assert_close(points, theta.detach() - 0.5 * torch.arange(3.0)[:, None] * gradient)


@pytest.mark.parametrize("selection", ["last", "loss", "grad_norm"])
def test_selections_that_go_where_they_look_wait_for_a_second_point(selection: str) -> None:
    theta = Parameter(torch.zeros(2))
    optimizer = OptEx([theta], lr=0.5, base="sgd", parallelism=3, selection=selection)
    for _ in range(2):
        points = optimizer.ask()
        assert torch.equal(points, theta.detach().repeat(3, 1))
        optimizer.tell(points - 1.0, torch.zeros(3))
    assert not torch.equal(optimizer.ask()[1], theta)


def test_a_group_that_never_moves_has_no_length_scale() -> None:
    moving, still = Parameter(torch.ones(3)), Parameter(torch.ones(2))
    groups: list[dict[str, Any]] = [{"params": [moving]}, {"params": [still], "lr": 0.0}]
    optimizer = OptEx(groups, lr=0.1, base="sgd", blocks="groups", noise=0.01, horizon="fixed")
    for _ in range(4):
        optimizer.tell(optimizer.ask())
    assert torch.equal(still, torch.ones(2))
    assert moving.norm() < 0.5
    assert {name for name in optimizer.statistics if "lengthscale" in name} == {"lengthscale/0"}
    assert optimizer.statistics["cosine/1"] == pytest.approx(1.0)  # its gradient is the same each time


@pytest.mark.parametrize("history_size", [2, 4])
def test_a_history_that_copies_of_the_first_iterate_fill_is_refused(history_size: int) -> None:
    with pytest.raises(ConfigError, match=f"history_size must be more than parallelism = 4.* got {history_size}"):
        OptEx([Parameter(torch.zeros(1))], parallelism=4, history_size=history_size)
    OptEx([Parameter(torch.zeros(1))], parallelism=1, history_size=history_size)


def test_a_history_that_shrinks_to_one_point_steps_with_the_mean_gradient() -> None:
    theta = Parameter(torch.zeros(1))
    optimizer = OptEx([theta], lr=1.0, base="sgd", parallelism=2, history_size=3)
    optimizer._engine.estimator = estimator = GradientEstimator(1, history_size=3)
    estimator.insert(torch.tensor([[7.0], [0.0], [0.0]]), torch.ones(3, 1))
    optimizer._engine.proposal = proposal_of(torch.zeros(2, 1), torch.zeros(2, 1))
    optimizer.tell(torch.tensor([[1.0], [3.0]]))
    assert theta.item() == -2.0
    assert optimizer.statistics["steps"] == 1.0


def test_extrapolate_takes_all_steps_with_posterior_means() -> None:
    theta = Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    optimizer = OptEx([theta], lr=0.1, base="sgd", parallelism=3, stride=2, lengthscale=2.0, noise=0.01)
    history: list[Tensor] = []
    expected_steps = [1.0, 6.0, 6.0, 6.0]
    for steps in expected_steps:
        history.append(theta.detach().clone())
        oracle = GradientEstimator(2, lengthscale=2.0, noise=0.01, dtype=torch.float64)
        oracle.insert(torch.stack(history), torch.stack(history))
        expected = history[-1]
        for _ in range(int(steps)):
            expected = expected - 0.1 * (oracle.predict(expected)[0] if steps > 1 else history[-1])
        theta.grad = theta.detach().clone()
        optimizer.step()
        torch.testing.assert_close(theta.detach(), expected, rtol=1e-12, atol=0.0)
        assert optimizer.statistics["steps"] == steps
        assert optimizer.statistics["history"] == len(history)


def test_a_step_without_closure_drops_the_points_that_were_asked_for() -> None:
    problem, optimizer = warm()
    points = optimizer.ask()
    advance(problem, optimizer, 1)
    with pytest.raises(ConfigError, match=r"call ask\(\) before tell\(\)"):
        optimizer.tell(torch.ones_like(points))


def test_asking_changes_nothing() -> None:
    problem, optimizer = warm()
    before, point = deepcopy(optimizer.base.state_dict()), problem.point()
    points = optimizer.ask()
    assert same(optimizer.base.state_dict(), before)
    assert torch.equal(problem.point(), point)
    assert torch.equal(points[0], point)
    assert len({tuple(row.tolist()) for row in points}) == 4


def test_parameters_may_come_as_a_generator() -> None:
    module = torch.nn.Linear(3, 2)
    optimizer = OptEx(module.parameters(), lr=0.1, base="sgd")
    assert optimizer.ask().shape == (4, 8)
    before = module.weight.detach().clone()
    optimizer.tell(torch.ones(4, 8))
    torch.testing.assert_close(module.weight.detach(), before - 0.1)


def test_arguments_of_the_base_arrive_and_are_left_alone() -> None:
    arguments = {"momentum": 0.5, "weight_decay": 0.1}
    optimizer = OptEx(Problem().parameters, lr=0.3, base="nesterov", base_kwargs=arguments)
    group = optimizer.param_groups[0]
    assert isinstance(optimizer.base, torch.optim.SGD)
    assert (group["lr"], group["momentum"], group["nesterov"], group["weight_decay"]) == (0.3, 0.5, True, 0.1)
    assert arguments == {"momentum": 0.5, "weight_decay": 0.1}


@pytest.mark.parametrize("without_closure", ["extrapolate", "emulate"])
@pytest.mark.parametrize("base", ["sgd", "adam", "rmsprop"])
def test_a_rate_of_zero_is_accepted(base: str, without_closure: str) -> None:
    """stable-baselines3 builds optimizers at rate 0 when it loads a policy."""
    problem = Problem()
    before = problem.point()
    optimizer = OptEx(problem.parameters, lr=0.0, base=base, without_closure=without_closure)
    advance(problem, optimizer, 9)
    optimizer.step(closure_of(problem, optimizer))
    assert torch.equal(problem.point(), before)
    assert optimizer.statistics["history"] >= 12.0


@pytest.mark.parametrize("selection", ["last", "refine"])
def test_parameters_without_gradient_are_left_alone(selection: str) -> None:
    problem = Problem()
    before = problem.idle.detach().clone()
    optimizer = OptEx(problem.parameters, lr=0.01, base="adamw", base_kwargs={"weight_decay": 0.5}, selection=selection)
    for _ in range(5):
        optimizer.step(closure_of(problem, optimizer))
        advance(problem, optimizer, 1)
    assert torch.equal(problem.idle, before)
    assert problem.idle not in optimizer.state


@pytest.mark.parametrize("N", [1, 3])
def test_ask_and_tell_move_plain_tensors(N: int) -> None:
    theta = torch.ones(4)
    optimizer = OptEx([theta], lr=0.5, base="sgd", parallelism=N)
    optimizer.tell(optimizer.ask())
    assert torch.equal(theta, torch.full((4,), 0.5))


@pytest.mark.parametrize("steps", [9, 10, 11, 12])
def test_emulate_restarts_where_the_parameters_were_moved_to(steps: int) -> None:
    problem = Problem()
    optimizer = CASES["Adam"].optex(problem, parallelism=4, without_closure="emulate")
    advance(problem, optimizer, steps)
    with torch.no_grad():
        problem.second.add_(0.1)
    place, pairs = problem.point(), len(optimizer._engine.estimator or [])
    advance(problem, optimizer, 1)
    assert optimizer._engine.proposal is not None
    assert torch.equal(optimizer._engine.proposal.points[0], place)
    assert len(optimizer._engine.proposal.gradients) == 1
    advance(problem, optimizer, 3)
    assert optimizer.statistics["history"] == pairs + 4
    torch.testing.assert_close(optimizer._engine.estimator.points()[pairs], place)  # type: ignore[union-attr]


def test_ask_gives_new_points_where_the_parameters_were_moved_to() -> None:
    problem, optimizer = warm()
    old = optimizer.ask()
    with torch.no_grad():
        problem.second.add_(0.1)
    new = optimizer.ask()
    assert torch.equal(new[0], problem.point())
    assert not torch.equal(new[1:], old[1:])


def test_points_that_were_changed_in_place_are_refused() -> None:
    problem, optimizer = warm()
    points = optimizer.ask()
    asked = points.clone()
    gradients, losses = problem.evaluate(points)
    before = problem.point()
    points[2] += 1.0
    with pytest.raises(ConfigError, match=r"the points of ask\(\) were changed in place: change a copy"):
        optimizer.tell(gradients, losses)
    assert torch.equal(problem.point(), before)
    assert torch.equal(optimizer.ask(), asked)
    optimizer.tell(gradients, losses)
    assert not torch.equal(problem.point(), before)


def test_what_is_computed_with_the_points_does_not_touch_the_optimizer() -> None:
    problem, optimizer = warm()
    points = optimizer.ask().requires_grad_()
    gradients, losses = problem.evaluate(points.detach())
    points.square().sum().backward()  # type: ignore[no-untyped-call]
    assert not optimizer.ask().requires_grad
    assert optimizer.ask().grad is None
    optimizer.tell(gradients, losses)


@pytest.mark.parametrize("N", [1, 4])
def test_tell_without_a_move_records_the_pairs_and_leaves_the_parameters(N: int) -> None:
    """Wherever they have been moved; to step from elsewhere than was asked for is an error."""
    problem = Problem()
    optimizer = CASES["Adam"].optex(problem, parallelism=N)
    for _ in range(3):
        optimizer.step(closure_of(problem, optimizer))
    points = optimizer.ask()
    state = deepcopy(optimizer.base.state_dict())
    with torch.no_grad():
        problem.second.add_(0.1)
    place = problem.point()
    gradients, losses = problem.evaluate(points)
    with pytest.raises(ConfigError, match="the parameters were moved since ask"):
        optimizer.tell(gradients, losses)
    optimizer.tell(gradients, losses, move=False)
    assert torch.equal(problem.point(), place)
    assert same(optimizer.base.state_dict(), state)
    if N > 1:
        assert (optimizer.statistics["history"], optimizer.statistics["steps"]) == (16.0, 0.0)
        assert optimizer._engine.estimator is not None
        torch.testing.assert_close(optimizer._engine.estimator.points()[12:16], points)
        assert torch.equal(optimizer._engine.estimator._gradients[12:16], gradients)


@pytest.mark.parametrize("how", ["closure", "emulate", "ask and tell"])
@pytest.mark.parametrize("steps", [0, 5, 9, 10])
def test_a_module_may_change_its_precision_after_construction(how: str, steps: int) -> None:
    """As a move to another device does, which comes after the optimizer in stable-baselines3."""
    module = torch.nn.Linear(3, 2)
    optimizer = OptEx(module.parameters(), lr=0.01, base="sgd", without_closure="emulate")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = torch.stack([p.square().sum() for p in module.parameters()]).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    def run(count: int) -> None:
        for _ in range(count):
            if how == "closure":
                optimizer.step(closure)
            elif how == "emulate":
                closure()
                optimizer.step()
            else:
                optimizer.tell(2.0 * optimizer.ask())

    run(steps)
    if how == "ask and tell":
        optimizer.ask()
    module.double()
    before = module.weight.detach().clone()
    run(16)
    assert optimizer._engine.estimator is not None
    assert optimizer._engine.estimator.points().dtype == torch.float64
    assert optimizer.ask().dtype == torch.float64
    assert module.weight.norm() < before.norm()
    assert optimizer.statistics["cosine"] == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_a_history_in_float32(dtype: torch.dtype) -> None:
    theta = Parameter(torch.linspace(-1, 1, 50).to(dtype))
    optimizer = OptEx([theta], lr=0.1, base="sgd", selection="last")
    losses = [float(optimizer.step(square_closure(optimizer, theta)).detach()) for _ in range(8)]
    assert losses[-1] < 0.1 * losses[0]
    state = optimizer.state_dict()["optex"]["history"]
    assert state["steps"].dtype == state["gradients"].dtype == torch.float32
    assert optimizer.ask().dtype == dtype
    assert -1.0 <= optimizer.statistics["cosine"] <= 1.0 + 1e-6


@pytest.mark.parametrize("selection", ["last", "refine"])
def test_the_history_holds_unclipped_gradients(selection: str) -> None:
    problem, optimizer = warm(selection=selection, max_grad_norm=0.01)
    points = optimizer.ask()
    gradients, losses = problem.evaluate(points)
    assert gradients.norm(dim=1).min() > 1.0
    optimizer.tell(gradients, losses)
    assert torch.equal(optimizer._engine.estimator._gradients[12:16], gradients)  # type: ignore[union-attr]


class Greedy(Optimizer):
    """Gradient descent that empties its gradients; some published optimizers change them, too."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.add_(parameter.grad, alpha=-group["lr"])
                    parameter.grad.zero_()


@pytest.mark.parametrize("selection", ["last", "grad_norm", "refine"])
@pytest.mark.parametrize("how", ["closure", "emulate", "extrapolate"])
def test_a_base_that_changes_gradients_is_plain_descent_to_us(selection: str, how: str) -> None:
    ends = []
    for base in (Greedy, torch.optim.SGD):
        problem = Problem()
        optimizer = OptEx(
            problem.parameters,
            lr=0.01,
            base=base,
            selection=selection,
            without_closure="emulate" if how == "closure" else how,
        )
        for _ in range(6):
            if how == "closure":
                optimizer.step(closure_of(problem, optimizer))
            else:
                advance(problem, optimizer, 4)
        ends.append((problem.point(), optimizer.state_dict()["optex"]))
    assert same(ends[0], ends[1])


@pytest.mark.parametrize("call", [1, 2, 4])
@pytest.mark.parametrize("iteration", [0, 1, 3])
def test_an_exception_in_the_closure_leaves_everything_at_the_iterate(call: int, iteration: int) -> None:
    problem, undisturbed = Problem(), Problem()
    optimizer, other = CASES["Adam"].optex(problem), CASES["Adam"].optex(undisturbed)
    for _ in range(iteration):
        optimizer.step(closure_of(problem, optimizer))
        other.step(closure_of(undisturbed, other))
    before, calls = problem.point(), iter(range(1, 5))

    def failing() -> Any:
        if next(calls) == call:
            raise KeyError("lost an environment")
        return closure_of(problem, optimizer)()

    optimizer.ask()
    state = optimizer.state_dict()
    with pytest.raises(KeyError, match="lost an environment"):
        optimizer.step(failing)
    assert torch.equal(problem.point(), before)
    assert same(optimizer.state_dict(), state)
    for _ in range(3):
        optimizer.step(closure_of(problem, optimizer))
        other.step(closure_of(undisturbed, other))
    assert torch.equal(problem.point(), undisturbed.point())


@pytest.mark.parametrize("how", ["closure", "loss", "emulate", "extrapolate", "tell", "tell losses"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("iteration", [0, 3])
def test_values_that_are_not_finite_leave_the_optimizer_unchanged(how: str, bad: float, iteration: int) -> None:
    problem = Problem()
    without_closure = "extrapolate" if how == "extrapolate" else "emulate"
    optimizer = CASES["Adam"].optex(problem, without_closure=without_closure)
    for _ in range(iteration):
        optimizer.step(closure_of(problem, optimizer))
    if how == "emulate":
        advance(problem, optimizer, 2)
    else:
        optimizer.ask()
    before, point = optimizer.state_dict(), problem.point()
    gradients, losses = problem.evaluate(problem.point().repeat(4, 1) if how == "emulate" else optimizer.ask())

    def modified() -> Any:
        loss = problem.backward()
        if how == "loss":
            return loss * bad
        problem.idle.grad = torch.zeros_like(problem.idle)  # even where it had no gradient before
        problem.second.grad[0, 0] = bad  # type: ignore[index]
        return loss

    def attempt() -> None:
        if how in ("closure", "loss"):
            optimizer.step(modified)
        elif how == "tell":
            optimizer.tell(torch.where(torch.arange(4)[:, None] == 2, bad, gradients))
        elif how == "tell losses":
            optimizer.tell(gradients, losses * bad)
        else:
            modified()
            optimizer.step()

    message = {"tell": "gradient at point 2 has 50 non-finite entries of 50"}.get(
        how,
        "losses at the points are" if "loss" in how and how != "closure" else "point 0 has 1 non-finite entries of 50",
    )
    with pytest.raises(NonFiniteError, match=message):
        attempt()
    assert torch.equal(problem.point(), point)
    assert same(optimizer.state_dict(), before)


def test_a_new_rate_in_the_middle_of_an_emulated_cycle_is_harmless() -> None:
    """The chain under way keeps its points; the step from its last point is made at the new rate."""
    theta = Parameter(torch.tensor([1.0, 2.0]))
    optimizer = OptEx([theta], lr=0.1, base="sgd", selection="last", without_closure="emulate")
    closure = square_closure(optimizer, theta)
    for step in range(11):  # the last of the four points of the third cycle is next
        closure()
        optimizer.step()
        if step == 9:
            optimizer.param_groups[0]["lr"] = 0.5
    last = theta.detach().clone()
    assert optimizer._engine.proposal is not None
    assert torch.equal(last, optimizer._engine.proposal.points[3])
    closure()
    optimizer.step()
    torch.testing.assert_close(theta.detach(), 0.5 * last)


def test_statistics_of_one_block() -> None:
    problem, optimizer = warm()
    optimizer.step(closure_of(problem, optimizer))
    statistics = optimizer.statistics
    assert set(statistics) == {
        "steps", "history", "cosine", "cosine/0", "cosine/head", "lengthscale", "noise", "variance"
    }  # fmt: skip
    assert all(type(value) is float for value in statistics.values())
    assert (statistics["steps"], statistics["history"]) == (4.0, 16.0)
    assert 0.0 <= statistics["variance"] <= 1.0
    statistics.clear()
    assert optimizer.statistics


def test_statistics_of_several_blocks() -> None:
    problem, optimizer = warm(blocks="groups")
    names = ("cosine", "lengthscale", "noise", "variance")
    expected = {"steps", "history", "cosine"} | {f"{name}/{group}" for name in names for group in ("0", "head")}
    assert set(optimizer.statistics) == expected
    advance(problem, optimizer, 2)  # extrapolate
    assert set(optimizer.statistics) == expected


def test_statistics_of_one_group_have_no_groups() -> None:
    theta = Parameter(torch.ones(3))
    optimizer = OptEx([theta], lr=0.1, blocks="groups")
    for _ in range(4):
        optimizer.step(square_closure(optimizer, theta))
    assert set(optimizer.statistics) == {"steps", "history", "horizon", "cosine", "lengthscale", "noise", "variance"}


def test_statistics_with_one_point_and_before_the_first_step_are_empty() -> None:
    problem = Problem()
    optimizer = CASES["Adam"].optex(problem, parallelism=1)
    assert optimizer.statistics == {}
    advance(problem, optimizer, 2)
    assert optimizer.statistics == {}
    assert CASES["Adam"].optex(problem).statistics == {}


def test_cosines_by_hand() -> None:
    # Three points, the last without a prediction, for no step starts there. Predictions (3, 4 | 1) and (1, 0 | 1), true
    # gradients (4, 3 | −1) and (1, 0 | 2), where | parts the groups. Cosines of the first group 24/25 and 1, of the
    # second −1 and 1; of all 23/26 and 3 / √(2 · 5).
    a, b = Parameter(torch.zeros(2)), Parameter(torch.zeros(1))
    groups: list[dict[str, Any]] = [{"params": [a]}, {"params": [b], "name": "critic"}]
    optimizer = OptEx(groups, lr=1.0, base="sgd", parallelism=3)
    optimizer._engine.estimator = estimator = GradientEstimator(3)
    estimator.insert(torch.eye(3), torch.ones(3, 3))
    predictions = torch.tensor([[3.0, 4.0, 1.0], [1.0, 0.0, 1.0]])
    optimizer._engine.proposal = proposal_of(torch.zeros(3, 3), predictions, (0.25, 0.5, 0.75))
    optimizer.tell(torch.tensor([[4.0, 3.0, -1.0], [1.0, 0.0, 2.0], [5.0, 6.0, 7.0]]))
    statistics = optimizer.statistics
    assert statistics["cosine"] == pytest.approx((23 / 26 + 3 / math.sqrt(10)) / 2)
    assert statistics["cosine/0"] == pytest.approx((24 / 25 + 1) / 2)
    assert statistics["cosine/critic"] == pytest.approx(0.0, abs=1e-6)
    assert statistics["variance"] == 0.5


def test_only_the_last_point_being_usable_leaves_no_cosine() -> None:
    problem, optimizer = warm(parallelism=3)
    gradients, losses = problem.evaluate(optimizer.ask())
    optimizer.tell(gradients, losses, usable=torch.tensor([False, False, True]))
    assert set(optimizer.statistics) == {"steps", "history", "lengthscale", "noise", "variance"}


def test_cosines_of_gradients_in_half_precision_are_computed_in_single() -> None:
    gradients = torch.linspace(-1.0, 1.0, 10).bfloat16().repeat(2, 1)
    assert mean_cosines(gradients.float(), gradients, [10]) == pytest.approx([1.0, 1.0], abs=1e-6)


def test_reset_history_starts_cold_and_keeps_the_base() -> None:
    problem, optimizer = warm()
    state = deepcopy(optimizer.base.state_dict())
    optimizer.reset_history()
    assert same(optimizer.base.state_dict(), state)
    assert optimizer.statistics == {}
    points = optimizer.ask()
    assert torch.equal(points, problem.point().repeat(4, 1))


def test_shapes_of_all_kinds_share_one_vector() -> None:
    tensors: list[Tensor] = [Parameter(torch.tensor(2.0)), Parameter(torch.ones(2, 3).T), Parameter(torch.zeros(0, 3))]
    optimizer = OptEx(tensors, lr=0.1, base="sgd", selection="last", parallelism=2)
    for _ in range(4):
        optimizer.tell(optimizer.ask())
    assert optimizer.ask().shape == (2, 7)
    assert tensors[0].shape == ()
    assert tensors[0] < 2.0
    assert tensors[1].shape == (3, 2)


def test_the_best_loss_of_an_ascending_base_is_the_greatest() -> None:
    gradients, losses = torch.ones(3, 2), torch.tensor([2.0, 5.0, 1.0])
    assert least_loss(gradients, losses, maximize=False) == 2
    assert least_loss(gradients, losses, maximize=True) == 1


def test_gradients_whose_norm_overflows_are_refused() -> None:
    theta = Parameter(torch.ones(4))
    optimizer = OptEx([theta], lr=0.1, base="sgd", parallelism=2)
    optimizer.ask()
    with pytest.raises(NonFiniteError, match="point 1 has a norm that overflows"):
        optimizer.tell(torch.tensor([[1.0] * 4, [1e20] * 4]))


def test_a_state_for_other_parameters_is_refused_before_anything_changes() -> None:
    optimizers = [OptEx([Parameter(torch.ones(d))], lr=lr, parallelism=2) for d, lr in ((5, 0.1), (4, 0.7))]
    for optimizer in optimizers:
        optimizer.tell(optimizer.ask())
    before = optimizers[1].state_dict()
    with pytest.raises(RuntimeError, match="the history is for 5 parameters, this optimizer has 4"):
        optimizers[1].load_state_dict(optimizers[0].state_dict())
    assert same(before, optimizers[1].state_dict())
