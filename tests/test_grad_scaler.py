"""torch.amp.GradScaler around OptEx: the steps are those without it, and gradients that overflow cost no step."""

from __future__ import annotations

import pytest
import torch

from optex_rl import OptEx

from .helpers import Problem, same

MODES = [(1, "extrapolate"), (4, "extrapolate"), (4, "emulate")]


def make(parallelism: int, without_closure: str) -> tuple[Problem, OptEx]:
    problem = Problem()
    options = {"without_closure": without_closure, "history_size": 10}
    return problem, OptEx(problem.groups(lr=0.05), base="sgd", parallelism=parallelism, **options)  # type: ignore[arg-type]


def scaled_backward(problem: Problem, scaler: torch.amp.GradScaler, factor: float = 1.0) -> None:
    for parameter in problem.parameters:
        parameter.grad = None
    scaler.scale(problem.loss() * factor).backward()  # type: ignore[no-untyped-call]


@pytest.mark.parametrize(("parallelism", "mode"), MODES)
@pytest.mark.parametrize("by_hand", [False, True])
def test_steps_are_those_without_it(parallelism: int, mode: str, by_hand: bool) -> None:
    """Bit for bit, since the scale is a power of two; SGD's steps would be 2^16 times as long with scaled gradients."""
    (plain, optimizer), (scaled, other) = make(parallelism, mode), make(parallelism, mode)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=3)
    for _ in range(9):
        plain.backward()
        optimizer.step()
        scaled_backward(scaled, scaler)
        if by_hand:  # as one does to clip
            scaler.unscale_(other)
        scaler.step(other)
        scaler.update()
    assert scaler.get_scale() == 2.0**19
    assert torch.equal(plain.point(), scaled.point())
    assert same(optimizer.state_dict(), other.state_dict())


@pytest.mark.parametrize(("parallelism", "mode"), MODES)
def test_gradients_that_overflow_change_nothing_but_the_scale(parallelism: int, mode: str) -> None:
    (plain, optimizer), (scaled, other) = make(parallelism, mode), make(parallelism, mode)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    for step in range(6):
        if step == 3:
            before = scaled.point(), other.state_dict()
            scaled_backward(scaled, scaler, factor=1e38)
            scaler.step(other)
            scaler.update()
            assert same(before, (scaled.point(), other.state_dict()))
            assert scaler.get_scale() == 2.0**15
        plain.backward()
        optimizer.step()
        scaled_backward(scaled, scaler)
        scaler.step(other)
        scaler.update()
    assert torch.equal(plain.point(), scaled.point())
    assert same(optimizer.state_dict(), other.state_dict())


def test_a_closure_is_refused() -> None:
    """By torch, for all optimizers: the gradients of the closure would not be unscaled."""
    problem, optimizer = make(4, "extrapolate")
    scaler = torch.amp.GradScaler("cpu")
    scaled_backward(problem, scaler)
    before = problem.point()
    with pytest.raises(RuntimeError, match="Closure use is not currently supported"):
        scaler.step(optimizer, closure=problem.backward)
    assert torch.equal(problem.point(), before)
