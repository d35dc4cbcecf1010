"""The flat replica of a base: the same steps, no trace until it is committed, and none where tensors matter."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from optex_rl.bases import BASES, make_base
from optex_rl.bases.flat import FlatBase, Stepper
from optex_rl.bases.replica import FlatReplica, runs_of_groups

from .helpers import same

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in BASES if BASES[name].elementwise} | {
    "adam fused": ("adam", {"fused": True}),
    "adam amsgrad": ("adam", {"amsgrad": True, "weight_decay": 0.1}),
    "adam maximize": ("adam", {"maximize": True}),
    "rmsprop centered": ("rmsprop", {"centered": True, "momentum": 0.5}),
}


def parameters() -> list[Parameter]:
    generator = torch.Generator().manual_seed(3)
    return [Parameter(torch.randn(shape, generator=generator)) for shape in ((5, 4), (4,), (1,), (3, 7, 2))]


def groups(values: list[Parameter]) -> list[dict[str, Any]]:
    return [{"params": values[:2], "lr": 0.01}, {"params": values[2:], "lr": 0.03, "name": "head"}]


def gradients(steps: int) -> Tensor:
    return torch.randn(steps, 67, generator=torch.Generator().manual_seed(5))


def fresh(variant: str = "adam", max_grad_norm: float | None = None) -> FlatBase:
    name, kwargs = VARIANTS[variant]
    return FlatBase(make_base(name, groups(parameters()), 0.01, kwargs), max_grad_norm)


def states(flat: FlatBase) -> dict[str, Any]:
    return deepcopy(flat.base.state_dict())


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("earlier", [0, 3])
@pytest.mark.parametrize("max_grad_norm", [None, 0.5])
def test_committed_steps_are_those_of_the_base(variant: str, earlier: int, max_grad_norm: float | None) -> None:
    plain, stepped = fresh(variant, max_grad_norm), fresh(variant, max_grad_norm)
    for gradient in gradients(earlier):
        plain.step(gradient)
        stepped.step(gradient)
    with stepped.committed_steps() as stepper:
        assert isinstance(stepper, FlatReplica)
        for gradient in gradients(4):
            plain.step(gradient)
            stepper.step(gradient)
            torch.testing.assert_close(stepper.point(), plain.point())
    torch.testing.assert_close(stepped.point(), plain.point())
    torch.testing.assert_close(states(stepped)["state"], states(plain)["state"])
    plain.step(gradients(1)[0])
    stepped.step(gradients(1)[0])  # the state left behind is one that the base goes on with
    torch.testing.assert_close(stepped.point(), plain.point())


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("earlier", [0, 2])
def test_a_trial_leaves_no_trace(variant: str, earlier: int) -> None:
    flat = fresh(variant)
    for gradient in gradients(earlier):
        flat.step(gradient)
    point, state = flat.point(), states(flat)
    with flat.trial_steps() as stepper:
        for gradient in gradients(3):
            stepper.step(gradient)
        assert not torch.equal(stepper.point(), point)
    assert torch.equal(flat.point(), point)
    assert same(states(flat), state)


def test_the_tensors_of_parameters_and_state_stay_the_same() -> None:
    flat = fresh()
    flat.step(gradients(1)[0])
    tensors = [p.data_ptr() for p in flat.parameters] + [
        state["exp_avg"].data_ptr() for state in flat.base.state.values()
    ]
    with flat.committed_steps() as stepper:
        stepper.step(gradients(1)[0])
    assert tensors == [p.data_ptr() for p in flat.parameters] + [
        state["exp_avg"].data_ptr() for state in flat.base.state.values()
    ]


def test_the_states_of_two_parameters_are_not_one() -> None:
    flat = fresh()
    with flat.committed_steps() as stepper:
        stepper.step(gradients(1)[0])
    counters = [state["step"].data_ptr() for state in flat.base.state.values()]
    assert len(set(counters)) == len(counters) == 4


def several(rates: list[float], names: str = "abc") -> Optimizer:
    pairs = zip(parameters(), rates, names, strict=False)
    return torch.optim.Adam([{"params": [p], "lr": rate, "name": name} for p, rate, name in pairs], fused=True)


@pytest.mark.parametrize(
    ("rates", "runs"), [([0.1, 0.1, 0.1], [3]), ([0.1, 0.1, 0.2], [2, 1]), ([0.1, 0.2, 0.1], [1, 1, 1])]
)
def test_neighbouring_groups_are_one_where_only_their_names_differ(rates: list[float], runs: list[int]) -> None:
    assert [len(run["params"]) for run in runs_of_groups(several(rates))] == runs


def test_a_group_added_later_has_a_vector_of_its_own() -> None:
    flat, plain = (FlatBase(several([0.1, 0.1])) for _ in range(2))
    for each in (flat, plain):
        each.step(gradients(1)[0, :24])
        each.base.add_param_group({"params": [Parameter(torch.ones(3))], "lr": 0.1})
    assert [len(run["params"]) for run in runs_of_groups(flat.base)] == [2, 1]  # the new one has not stepped yet
    with flat.committed_steps() as stepper:
        assert isinstance(stepper, FlatReplica)
        for gradient in gradients(2)[:, :27]:
            stepper.step(gradient)
            plain.step(gradient)
    torch.testing.assert_close(flat.point(), plain.point())
    torch.testing.assert_close(states(flat)["state"], states(plain)["state"])


def test_every_replica_takes_the_options_and_the_state_of_its_moment() -> None:
    """A scheduler sets another rate, a user clears a moment: the next replica has it."""
    flat, plain = (FlatBase(several([0.1, 0.1])) for _ in range(2))
    for rate, gradient in zip([0.1, 0.3, 0.0], gradients(3)[:, :24], strict=True):
        for each in (flat, plain):
            each.base.param_groups[1]["lr"] = rate
            for state in each.base.state.values():
                state["exp_avg"].zero_()
        with flat.committed_steps() as stepper:
            stepper.step(gradient)
        plain.step(gradient)
        torch.testing.assert_close(flat.point(), plain.point())


class Subclass(torch.optim.SGD):
    """May do anything."""


def hooked() -> FlatBase:
    flat = fresh()
    flat.base.register_step_post_hook(lambda *_: None)
    return flat


@pytest.fixture
def seen_by_all() -> Iterator[list[Optimizer]]:
    """Optimizers that a hook on the steps of all of them has seen."""
    seen: list[Optimizer] = []
    handle = register_optimizer_step_post_hook(lambda optimizer, *_: seen.append(optimizer))
    yield seen
    handle.remove()


def test_hooks_on_all_optimizers_see_every_step_of_the_base(seen_by_all: list[Optimizer]) -> None:
    flat = fresh()
    with flat.committed_steps() as stepper:
        for gradient in gradients(2):
            stepper.step(gradient)
    assert seen_by_all == [flat.base] * 2


def test_steps_build_no_graph() -> None:
    flat = fresh()
    with flat.committed_steps() as stepper:
        stepper.step(gradients(1)[0].requires_grad_())
        assert not stepper.point().requires_grad


def scheduled() -> FlatBase:
    flat = fresh()
    torch.optim.lr_scheduler.ConstantLR(flat.base)  # it puts a step of its own in front
    return flat


def frozen() -> FlatBase:
    flat = fresh()
    flat.parameters[1].requires_grad_(False)
    return flat


def without_a_gradient() -> FlatBase:
    flat = fresh()
    flat.with_gradient = [True, False, True, True]
    return flat


def out_of_step() -> FlatBase:
    flat = frozen()
    flat.step(gradients(1)[0])
    flat.parameters[1].requires_grad_(True)
    return flat


def counted_apart() -> FlatBase:
    flat = fresh()
    flat.step(gradients(1)[0])
    flat.base.state[flat.parameters[0]]["step"] += 1.0
    return flat


def over(cls: type[Optimizer], tensors: list[Tensor]) -> Callable[[], FlatBase]:
    return lambda: FlatBase(cls([t.clone() for t in tensors], lr=0.1))  # type: ignore[call-arg]


@pytest.mark.parametrize(
    "make",
    [
        hooked,
        scheduled,
        frozen,
        without_a_gradient,
        out_of_step,
        counted_apart,
        over(Subclass, [torch.ones(67)]),
        over(torch.optim.ASGD, [torch.ones(67)]),  # elementwise, but not in the table
        over(torch.optim.SGD, [torch.ones(66), torch.tensor(1.0)]),
        over(torch.optim.SGD, [torch.ones(66), torch.ones(1, dtype=torch.float64)]),
    ],
)
def test_where_tensors_matter_the_base_steps_itself(make: Callable[[], FlatBase]) -> None:
    flat, plain = make(), make()

    def one_step(stepper: Stepper) -> None:
        assert not isinstance(stepper, FlatReplica)
        stepper.step(gradients(1)[0])

    point, state = flat.point(), states(flat)
    with flat.trial_steps() as stepper:
        one_step(stepper)
    assert torch.equal(flat.point(), point)
    assert same(states(flat), state)
    with flat.committed_steps() as stepper:
        one_step(stepper)
    plain.step(gradients(1)[0])
    assert torch.equal(flat.point(), plain.point())
    assert same(states(flat), states(plain))
