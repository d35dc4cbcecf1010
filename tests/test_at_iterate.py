"""`OptEx.at_iterate`: evaluating and saving between two emulated evaluations."""

from __future__ import annotations

import pytest
import torch

from optex_rl import OptEx

from .helpers import TYPICAL, Case, Problem, advance, same
from .test_conformance import started


@pytest.mark.parametrize("case", TYPICAL.values(), ids=TYPICAL)
@pytest.mark.parametrize("position", range(4))
def test_shows_the_iterate_and_leaves_no_trace(case: Case, position: int) -> None:
    (problem, optimizer), (iterate, _) = started(case, 4, 8 + position), started(case, 4, 8)
    before, proxy = optimizer.state_dict(), problem.point()
    assert torch.equal(proxy, iterate.point()) is (position == 0)
    with optimizer.at_iterate():
        assert torch.equal(problem.point(), iterate.point())
    assert torch.equal(problem.point(), proxy)
    assert same(optimizer.state_dict(), before)


def test_does_nothing_where_no_iteration_is_under_way() -> None:
    problem = Problem()
    optimizer = OptEx(problem.groups(lr=0.01), without_closure="extrapolate")
    for _ in range(4):
        here = problem.point()
        with optimizer.at_iterate():
            assert torch.equal(problem.point(), here)
        assert torch.equal(problem.point(), here)
        advance(problem, optimizer, 1)


def test_what_moves_the_parameters_in_the_block_is_not_undone() -> None:
    problem, optimizer = started(TYPICAL["Adam"], 4, 10)
    with optimizer.at_iterate(), torch.no_grad():
        problem.first.add_(1.0)
        moved = problem.point()
    assert torch.equal(problem.point(), moved)
    history = len(optimizer.state_dict()["optex"]["history"]["gradients"])
    advance(problem, optimizer, 4)  # a new iteration, from where the parameters were put
    assert optimizer._engine.estimator is not None
    points = optimizer._engine.estimator.points()
    assert len(points) == history + 4
    torch.testing.assert_close(points[history], moved)


def test_after_a_reset_in_the_block_the_iterate_stays() -> None:
    problem, optimizer = started(TYPICAL["Adam"], 4, 10)
    with optimizer.at_iterate():
        iterate = problem.point()
        optimizer.reset_history()
    assert torch.equal(problem.point(), iterate)


def test_after_an_error_the_iterate_stays() -> None:
    problem, optimizer = started(TYPICAL["Adam"], 4, 10)
    _, at_start = started(TYPICAL["Adam"], 4, 8)
    with pytest.raises(ZeroDivisionError), optimizer.at_iterate():
        raise ZeroDivisionError
    assert torch.equal(problem.point(), at_start.ask()[0])


def test_a_state_saved_in_the_block_goes_on_from_the_iterate() -> None:
    problem, optimizer = started(TYPICAL["Adam"], 4, 10)
    with optimizer.at_iterate():
        state, other = optimizer.state_dict(), problem.copy()
    new = TYPICAL["Adam"].optex(other, parallelism=4, without_closure="emulate")
    new.load_state_dict(state)
    (reference, expected) = started(TYPICAL["Adam"], 4, 8)
    advance(other, new, 4)
    advance(reference, expected, 4)
    assert torch.equal(other.point(), reference.point())
