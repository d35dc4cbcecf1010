"""What `torch.optim` promises of an optimizer, for several bases, with one point and with several.

The rows are those that published wrapper optimizers fail: hooks, schedulers, copies, and checkpoints at any moment.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ExponentialLR, LambdaLR, OneCycleLR, ReduceLROnPlateau

from optex_rl import OptEx

from .helpers import CASES, TYPICAL, Case, Problem, advance, closure_of, same, through_a_file

every_base = pytest.mark.parametrize("case", TYPICAL.values(), ids=TYPICAL)
every_parallelism = pytest.mark.parametrize("N", [1, 4])
# Steps of an emulated run after which N = 4 points are two cycles and three points on: predictions are in use.
WARM = 11


def every_case(test: Callable[..., None]) -> Any:
    """Every typical base, with one point and with four."""
    return every_base(every_parallelism(test))


def started(case: Case, N: int, steps: int = WARM, **options: Any) -> tuple[Problem, OptEx]:
    problem = case.problem()
    optimizer = case.optex(problem, parallelism=N, **{"without_closure": "emulate", **options})
    advance(problem, optimizer, steps)
    return problem, optimizer


def resumed(case: Case, problem: Problem, optimizer: OptEx, **options: Any) -> tuple[Problem, OptEx]:
    """Another process: a new problem and a new optimizer that load what the others saved."""
    other = problem.copy()
    new = case.optex(other, parallelism=optimizer.options.parallelism, **{"without_closure": "emulate", **options})
    new.load_state_dict(through_a_file(optimizer.state_dict()))
    return other, new


def assert_go_on_alike(one: tuple[Problem, OptEx], two: tuple[Problem, OptEx], steps: int = 10) -> None:
    """Steps of both end at the same numbers in parameters, base, history and statistics."""
    start = one[0].point()
    assert same(one[1].state_dict(), two[1].state_dict())
    assert same(one[1].statistics, two[1].statistics)
    for problem, optimizer in (one, two):
        advance(problem, optimizer, steps)
    assert not torch.equal(one[0].point(), start)
    assert torch.equal(one[0].point(), two[0].point())
    assert same(one[1].state_dict(), two[1].state_dict())


@every_case
def test_is_an_optimizer_over_the_base(case: Case, N: int) -> None:
    """Also after loading, which replaces groups and state of the base."""
    problem, optimizer = started(case, N)
    assert isinstance(optimizer, Optimizer)
    assert type(optimizer.base) is case.cls
    assert optimizer.defaults is optimizer.base.defaults
    for _ in range(2):
        assert optimizer.param_groups is optimizer.base.param_groups
        assert optimizer.state is optimizer.base.state
        assert [p for group in optimizer.param_groups for p in group["params"]] == problem.parameters
        optimizer.load_state_dict(optimizer.state_dict())


@every_parallelism
@pytest.mark.parametrize(
    "make",
    [
        lambda o: LambdaLR(o, lambda t: 1 / (1 + t)),
        lambda o: OneCycleLR(o, 0.1, total_steps=30),
        lambda o: ReduceLROnPlateau(o, factor=0.5, patience=0),
    ],
    ids=["LambdaLR", "OneCycleLR", "ReduceLROnPlateau"],
)
def test_the_rate_is_the_one_a_bare_base_would_have(make: Callable[[Optimizer], Any], N: int) -> None:
    problem, plain = Problem(), Problem()
    optimizer, base = CASES["Adam"].optex(problem, parallelism=N), CASES["Adam"].base(plain)
    schedulers = make(optimizer), make(base)
    arguments = (1.0,) if isinstance(schedulers[0], ReduceLROnPlateau) else ()
    for _ in range(6):
        advance(problem, optimizer, 1)
        advance(plain, base, 1)
        for scheduler in schedulers:
            scheduler.step(*arguments)
        values = [[{k: v for k, v in g.items() if k != "params"} for g in o.param_groups] for o in (optimizer, base)]
        assert same(values[0], values[1])


@every_case
def test_step_hooks_fire_once(case: Case, N: int) -> None:
    problem, optimizer = started(case, N)
    calls: list[str] = []
    optimizer.register_step_pre_hook(lambda o, *_: calls.append(f"pre {o is optimizer}"))
    optimizer.register_step_post_hook(lambda o, *_: calls.append(f"post {o is optimizer}"))
    advance(problem, optimizer, 1)
    optimizer.step(closure_of(problem, optimizer))
    assert calls == ["pre True", "post True"] * 2


@every_case
def test_step_returns_the_loss_at_the_iterate(case: Case, N: int) -> None:
    problem, optimizer = started(case, N, steps=12)  # whole cycles
    for _ in range(3):
        expected = problem.loss().detach()
        loss = optimizer.step(closure_of(problem, optimizer))
        assert torch.equal(loss.detach(), expected)
        assert loss.requires_grad
    problem.backward()
    assert optimizer.step() is None


@every_base
@pytest.mark.parametrize("steps", [0, 2, 5, 8, 9, 10, 11])  # cold and warm, each position of the cycle of four
def test_a_run_goes_on_bit_for_bit_from_every_position_of_a_cycle(case: Case, steps: int) -> None:
    one = started(case, 4, steps, stride=2, selection="last")
    assert_go_on_alike(one, resumed(case, *one, stride=2, selection="last"))


@every_base
@pytest.mark.parametrize(
    "options", [{"without_closure": "extrapolate", "max_grad_norm": 1.0}, {"blocks": "groups", "history_size": 6}]
)
def test_a_run_goes_on_bit_for_bit_with_other_options(case: Case, options: dict[str, Any]) -> None:
    one = started(case, 4, **options)
    assert_go_on_alike(one, resumed(case, *one, **options))


@pytest.mark.parametrize("steps", [9, 11, 12])
def test_a_run_in_half_precision_goes_on_bit_for_bit(steps: int) -> None:
    problem = Problem(dtype=torch.bfloat16)
    optimizer = CASES["SGD"].optex(problem, without_closure="emulate")
    advance(problem, optimizer, steps)
    assert_go_on_alike((problem, optimizer), resumed(CASES["SGD"], problem, optimizer))


@every_base
def test_a_run_goes_on_bit_for_bit_from_before_ask(case: Case) -> None:
    """Also for the parameter without gradient, which the points must leave where it is."""
    problem, optimizer = started(case, 4, steps=12)
    other, new = resumed(case, problem, optimizer)
    assert torch.equal(new.ask(), optimizer.ask())
    assert torch.equal(other.point(), problem.point())


@every_case
def test_a_run_goes_on_bit_for_bit_from_between_ask_and_tell(case: Case, N: int) -> None:
    problem, optimizer = started(case, N)
    points = optimizer.ask()
    other, new = resumed(case, problem, optimizer)
    assert torch.equal(new.ask(), points)
    evaluations = problem.evaluate(points)
    optimizer.tell(*evaluations)
    new.tell(*evaluations)
    assert torch.equal(other.point(), problem.point())
    assert same(new.state_dict(), optimizer.state_dict())


@every_base
@pytest.mark.parametrize("steps", [5, 11, 12])
def test_deepcopy_and_pickle_go_on_bit_for_bit(case: Case, steps: int) -> None:
    one = started(case, 4, steps)
    copies = deepcopy(one), pickle.loads(pickle.dumps(one))
    reference = one[1].state_dict()
    for problem, optimizer in copies:
        assert optimizer.param_groups[0]["params"][0] is problem.first
        assert same(optimizer.state_dict(), reference)
        assert_go_on_alike(deepcopy(one), (problem, optimizer))


@every_case
def test_deepcopy_and_pickle_with_a_scheduler_attached(case: Case, N: int) -> None:
    problem, optimizer = started(case, N)
    scheduler = ExponentialLR(optimizer, 0.9)
    optimizer.register_step_post_hook(lambda *_: None)  # a closure that does not pickle
    advance(problem, optimizer, 1)
    scheduler.step()
    copies = deepcopy((problem, optimizer)), pickle.loads(pickle.dumps((problem, optimizer)))
    for other, copy in copies:
        assert copy.param_groups[1]["lr"] == pytest.approx(0.018)
        assert_go_on_alike(deepcopy((problem, optimizer)), (other, copy))
        ExponentialLR(copy, 0.9)  # and a scheduler can be attached again


@every_case
def test_a_new_group_reaches_the_base_and_the_history_restarts(case: Case, N: int) -> None:
    problem, optimizer = started(case, N)
    extra = torch.nn.Parameter(torch.ones(3))
    optimizer.add_param_group({"params": [extra], "lr": 0.25})
    assert optimizer.base.param_groups[-1]["params"] == [extra]
    assert optimizer.base.param_groups[-1]["lr"] == 0.25
    state = optimizer.state_dict()["optex"]
    assert state["history"] is None
    assert state["proposal"] is None

    def closure() -> Any:
        optimizer.zero_grad()
        loss = problem.loss() + extra.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    first = problem.point()
    for _ in range(4):
        optimizer.step(closure)
    assert not torch.equal(extra, torch.ones(3))
    assert not torch.equal(problem.point(), first)
    assert optimizer.ask().shape == (N, len(first) + 3)
    assert optimizer.statistics.get("history", 16.0) == 16.0


@every_case
def test_state_dict_hooks_run_in_order(case: Case, N: int) -> None:
    problem, optimizer = started(case, N)
    calls: list[str] = []

    def after_saving(_: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        calls.append("saved")
        return {**state, "extra": 5}

    def before_loading(_: Optimizer, state: dict[str, Any]) -> dict[str, Any]:
        calls.append(f"loading {state.pop('extra')}")
        return state

    optimizer.register_state_dict_pre_hook(lambda _: calls.append("saving"))
    optimizer.register_state_dict_post_hook(after_saving)
    optimizer.register_load_state_dict_pre_hook(before_loading)
    optimizer.register_load_state_dict_post_hook(lambda _: calls.append("loaded"))
    state = optimizer.state_dict()
    assert state["extra"] == 5
    optimizer.load_state_dict(state)
    assert calls == ["saving", "saved", "loading 5", "loaded"]
    assert state["extra"] == 5  # the dictionary given is not changed
    optimizer.load_state_dict(state)
    advance(problem, optimizer, 1)


@every_case
def test_a_bare_base_loads_our_state(case: Case, N: int) -> None:
    problem, optimizer = started(case, N, steps=12)
    copies = problem.copy(), problem.copy()
    ours, plain = (case.base(copied) for copied in copies)
    ours.load_state_dict(through_a_file(optimizer.state_dict()))
    plain.load_state_dict(deepcopy(optimizer.base.state_dict()))
    for copied, base in zip(copies, (ours, plain), strict=True):
        advance(copied, base, 3)
    assert torch.equal(copies[0].point(), copies[1].point())


@every_case
def test_we_load_the_state_of_a_bare_base(case: Case, N: int) -> None:
    plain = case.problem()
    base = case.base(plain)
    advance(plain, base, 3)
    problem, optimizer = started(case, N)
    optimizer.load_state_dict(through_a_file(base.state_dict()))
    assert same(optimizer.base.state_dict(), base.state_dict())
    assert optimizer.state_dict()["optex"]["history"] is None
    advance(problem, optimizer, 12)


@every_case
@pytest.mark.parametrize("steps", [10, 12])
def test_a_saved_state_is_no_alias(case: Case, N: int, steps: int) -> None:
    one = started(case, N, steps)
    state, other = one[1].state_dict(), one[0].copy()
    kept = deepcopy(state)
    optimizer = case.optex(other, parallelism=N, without_closure="emulate")
    optimizer.load_state_dict(state)
    assert_go_on_alike(one, (other, optimizer))
    assert same(state, kept)


@every_case
def test_loading_goes_back_to_where_it_was_saved(case: Case, N: int) -> None:
    problem, optimizer = started(case, N)
    state, place = optimizer.state_dict(), problem.copy()
    advance(problem, optimizer, 7)
    again = problem.point()
    with torch.no_grad():
        for parameter, value in zip(problem.parameters, place.parameters, strict=True):
            parameter.copy_(value)
    optimizer.load_state_dict(state)
    advance(problem, optimizer, 7)
    assert torch.equal(problem.point(), again)


@pytest.mark.parametrize(("saved", "loaded"), [({"stride": 2}, {}), ({}, {"stride": 3}), ({}, {"parallelism": 3})])
@pytest.mark.parametrize("steps", [9, 10, 11])
def test_a_state_saved_in_mid_cycle_loads_into_other_options(
    saved: dict[str, Any], loaded: dict[str, Any], steps: int
) -> None:
    """The iteration under way, of another length, is dropped; the history stays."""
    problem, optimizer = started(CASES["Adam"], 4, steps, horizon="fixed", **saved)
    options = {"parallelism": 4, "without_closure": "emulate", "horizon": "fixed", **loaded}
    other = OptEx(problem.groups(), **options)
    other.load_state_dict(through_a_file(optimizer.state_dict()))
    state = other.state_dict()["optex"]
    assert state["proposal"] is None
    assert same(state["history"], optimizer.state_dict()["optex"]["history"])
    advance(problem, other, 12)
    assert other.statistics["steps"] == options["parallelism"] * other.options.stride


@pytest.mark.parametrize("options", [{"history_size": 9}, {"history_size": 60}, {"blocks": "groups"}])
@pytest.mark.parametrize("steps", [10, 46])
def test_a_state_saved_in_mid_cycle_loads_into_another_history(options: dict[str, Any], steps: int) -> None:
    """The iteration under way goes on."""
    problem, optimizer = started(CASES["Adam"], 4, steps, history_size=40)
    other, new = resumed(CASES["Adam"], problem, optimizer, **{"history_size": 40, **options})
    assert new.state_dict()["optex"]["proposal"] is not None
    advance(other, new, 2)
    assert new.state_dict()["optex"]["proposal"] is None
    assert new.statistics["history"] == min(min(steps - 2, 40) + 4, new.options.history_size)


def test_groups_that_do_not_match_are_refused_as_torch_does() -> None:
    _, optimizer = started(CASES["SGD"], 4)
    other = OptEx(Problem().parameters, base="sgd")
    with pytest.raises(ValueError, match="different number of parameter groups"):
        other.load_state_dict(optimizer.state_dict())
