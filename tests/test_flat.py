"""A base optimizer as a map on flat vectors, and steps taken back exactly."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from optex_rl.bases.flat import FlatBase
from optex_rl.common.torch_private import flatten, split

from .helpers import CASES, Case, Problem, advance, same


class Annealed(Optimizer):
    """Plain gradient descent at the rate lr / step, all its counters in the groups: a number, a tensor and a list."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr, "step": 0, "seen": torch.zeros(1), "norms": []})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            group["step"] += 1
            group["seen"] += 1.0
            group["norms"].append(len(group["norms"]))
            group.setdefault("first", group["step"])
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter -= group["lr"] / group["step"] * parameter.grad


def snapshot(base: Optimizer, problem: Problem) -> dict[str, Any]:
    return {"state": deepcopy(base.state_dict()), "point": problem.point(), "keys": len(base.state)}


def test_flatten_and_split_are_inverse() -> None:
    tensors = [torch.randn(2, 3), torch.tensor(5.0), torch.randn(0, 4), torch.randn(4, 3).T]
    vector = flatten(tensors)
    assert vector.shape == (2 * 3 + 1 + 12,)
    parts = split(vector, tensors)
    assert same(parts, tensors)
    assert parts[0].data_ptr() == vector.data_ptr()


def test_flatten_is_a_copy() -> None:
    alone = torch.zeros(3)
    flatten([alone]).add_(1.0)
    assert torch.equal(alone, torch.zeros(3))


def test_point_is_a_copy_and_move_to_is_in_place() -> None:
    problem = Problem()
    flat = FlatBase(CASES["SGD"].base(problem))
    before, address = flat.point(), problem.first.data_ptr()
    assert flat.is_at(before)
    flat.move_to(before + 1.0)
    assert torch.equal(problem.point(), before + 1.0)
    assert problem.first.data_ptr() == address
    assert not flat.is_at(before)
    assert flat.is_at(before + 1.0)


def test_a_point_on_another_device_is_another_place() -> None:
    flat = FlatBase(CASES["SGD"].base(Problem()))
    assert not flat.is_at(flat.point().to("meta"))


def test_gradient_is_zero_where_there_is_none() -> None:
    problem = Problem()
    problem.backward()
    gradient, with_gradient = FlatBase(CASES["SGD"].base(problem)).read_gradient()
    assert with_gradient == [True, False, True, True, True]
    assert torch.equal(gradient, problem.gradient())
    assert not gradient[20:26].any()  # `idle` comes after the 5 × 4 entries of `first`
    assert gradient[:20].all()


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_step_is_the_step_of_the_base(case: Case) -> None:
    ours, plain = case.problem(), case.problem()
    ours.idle.requires_grad_(False)
    flat, base = FlatBase(case.base(ours)), case.base(plain)
    for _ in range(3):
        flat.step(ours.gradient())
        advance(plain, base, 1)
        assert torch.equal(ours.point(), plain.point())
    assert same(flat.base.state_dict(), base.state_dict())


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("earlier", [0, 3])
def test_steps_are_taken_back_exactly(case: Case, earlier: int) -> None:
    problem, undisturbed = case.problem(), case.problem()
    base, alone = case.base(problem), case.base(undisturbed)
    advance(problem, base, earlier)
    advance(undisturbed, alone, earlier)
    flat, before = FlatBase(base), snapshot(base, problem)
    with flat.rewound():
        for _ in range(4):
            flat.step(problem.gradient())
        assert not torch.equal(problem.point(), before["point"])
    assert same(snapshot(base, problem), before)
    advance(problem, base, 3)
    advance(undisturbed, alone, 3)
    assert torch.equal(problem.point(), undisturbed.point())


@pytest.mark.parametrize("earlier", [0, 3])
def test_counters_in_the_groups_are_taken_back(earlier: int) -> None:
    problem = Problem()
    base = Annealed(problem.groups(), lr=0.1)
    advance(problem, base, earlier)
    flat, before, group = FlatBase(base), snapshot(base, problem), base.param_groups[0]
    with flat.rewound():
        for _ in range(4):
            flat.step(problem.gradient())
        assert group["step"] == earlier + 4
    assert same(snapshot(base, problem), before)
    assert ("first" in group) == (earlier > 0)
    assert base.param_groups[0] is group


def test_steps_are_taken_back_after_an_error() -> None:
    problem = Problem()
    base = CASES["Adam"].base(problem)
    flat, before = FlatBase(base), snapshot(base, problem)

    def fail() -> None:
        with flat.rewound():
            flat.step(problem.gradient())
            raise KeyError("from inside")

    with pytest.raises(KeyError, match="from inside"):
        fail()
    assert same(snapshot(base, problem), before)


def test_a_rate_in_a_tensor_stays_the_tensor_of_the_user() -> None:
    problem = Problem()
    rate = torch.tensor(0.1)
    base = torch.optim.Adam(problem.parameters, lr=rate)
    flat = FlatBase(base)
    with flat.rewound():
        flat.step(problem.gradient())
        rate.fill_(0.5)
    assert base.param_groups[0]["lr"] is rate
    assert float(rate) == pytest.approx(0.1)


def test_a_step_leaves_gradients_and_its_argument_as_they_were() -> None:
    problem = Problem()
    problem.backward()
    gradients = [p.grad for p in problem.parameters]
    values = [None if g is None else g.clone() for g in gradients]
    flat = FlatBase(CASES["SGD"].base(problem), max_grad_norm=0.1)
    vector = problem.gradient()
    before = vector.clone()
    flat.step(vector)
    assert all(p.grad is g for p, g in zip(problem.parameters, gradients, strict=True))
    assert same(gradients, values)
    assert torch.equal(vector, before)


def test_a_step_is_clipped() -> None:
    # Gradient (3, 4) has norm 5; clipped to 1 it is (.6, .8); SGD at rate 1 from 0 ends at its negative.
    parameter = Parameter(torch.zeros(2))
    FlatBase(torch.optim.SGD([parameter], lr=1.0), max_grad_norm=1.0).step(torch.tensor([3.0, 4.0]))
    torch.testing.assert_close(parameter.detach(), torch.tensor([-0.6, -0.8]))


@pytest.mark.parametrize(
    ("trainable", "with_gradient", "moved"),
    [
        ([True, True], None, [True, True]),
        ([True, False], None, [True, False]),  # frozen
        ([True, True], [False, True], [False, True]),  # had no gradient when the loss was last evaluated
        ([False, True], [True, True], [False, True]),  # frozen since then
        ([False, False], None, [True, True]),  # plain tensors: their gradients are made by hand
    ],
)
def test_which_parameters_a_step_moves(
    trainable: list[bool], with_gradient: list[bool] | None, moved: list[bool]
) -> None:
    tensors: list[Tensor] = [torch.ones(2).requires_grad_(flag) for flag in trainable]
    flat = FlatBase(torch.optim.SGD(tensors, lr=1.0, weight_decay=0.5))
    flat.with_gradient = with_gradient
    flat.step(torch.ones(4))
    assert [not torch.equal(tensor, torch.ones(2)) for tensor in tensors] == moved


def test_gradients_are_cast_to_each_parameter() -> None:
    parameters = [Parameter(torch.zeros(2, dtype=dtype)) for dtype in (torch.bfloat16, torch.float64)]
    flat = FlatBase(torch.optim.SGD(parameters, lr=1.0))
    flat.step(torch.ones(4))
    assert same([p.detach() for p in parameters], [torch.full((2,), -1.0, dtype=p.dtype) for p in parameters])


def test_a_step_to_numbers_whose_sum_overflows_holds() -> None:
    theta = Parameter(torch.full((4,), 3e38))
    flat = FlatBase(torch.optim.SGD([theta], lr=1.0))
    with flat.committed_steps() as stepper:
        stepper.step(torch.full((4,), 1e38))
    assert torch.equal(theta.detach(), torch.full((4,), 3e38) - 1e38)
