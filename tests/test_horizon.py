"""How far an iteration goes by the slopes at its points: hand-worked lines, a quadratic, data-parallel as its limit."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from optex_rl import ConfigError, OptEx
from optex_rl.optimizer.horizon import SHORTEST, START, AdaptiveHorizon, descents, ends

from .helpers import same

N = 4


class Bowl:
    """½ |θ|² with a noise of its own at every evaluation."""

    def __init__(self, noise: float = 0.0, dim: int = 8, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.parameter = Parameter(1.0 + torch.rand(dim, generator=self.generator, dtype=torch.float64))
        self.noise = noise

    def gradients(self, points: Tensor) -> Tensor:
        return points + self.noise * torch.randn(points.shape, generator=self.generator, dtype=points.dtype)

    def loss(self) -> float:
        return float(self.parameter.detach().square().sum()) / 2


def optimizer_for(bowl: Bowl, lr: float, **options: object) -> OptEx:
    return OptEx([bowl.parameter], lr=lr, base="sgd", parallelism=N, horizon="auto", **options)  # type: ignore[arg-type]


def iterate(optimizer: OptEx, bowl: Bowl, times: int) -> None:
    for _ in range(times):
        optimizer.tell(bowl.gradients(optimizer.ask()))


def test_the_line_through_slopes_that_lie_on_one() -> None:
    """3 − 2x at four places, and with one of them left out."""
    assert ends([0.0, 1 / 3, 2 / 3, 1.0], [3.0, 7 / 3, 5 / 3, 1.0]) == pytest.approx((3.0, 1.0))
    assert ends([1 / 3, 1.0], [7 / 3, 1.0]) == pytest.approx((3.0, 1.0))


def test_slopes_off_the_line_are_averaged() -> None:
    """Least squares through (0, 0), (½, 3), (1, 0): flat at their mean."""
    assert ends([0.0, 0.5, 1.0], [0.0, 3.0, 0.0]) == pytest.approx((1.0, 1.0))


def test_descents_by_hand() -> None:
    """The way is (2, 0); the gradients (−3, 4) and (0, −5), both of norm 5, fall along it by 3/5 and 0."""
    points = torch.tensor([[1.0, 1.0], [2.0, 1.0], [3.0, 1.0]])
    gradients = torch.tensor([[-3.0, 4.0], [0.0, -5.0]])
    assert descents(points, gradients).tolist() == pytest.approx([0.6, 0.0])
    assert descents(points[:1].repeat(3, 1), gradients).tolist() == [0.0, 0.0]  # no way at all


@pytest.mark.parametrize(
    ("begin", "end", "factor"),
    [(1.0, 0.9, 1.5), (1.0, 0.7, 1.0), (1.0, 0.0, 1.0), (1.0, -0.1, 0.5), (-1.0, 1.0, 1.0), (-1.0, -1.0, 1.0)],
)
def test_it_grows_stays_and_shrinks(begin: float, end: float, factor: float) -> None:
    before = AdaptiveHorizon(N, length=2.0)
    after = before.adapted(begin, end)
    assert after == AdaptiveHorizon(N, 2.0 * factor, begin / 2, end / 2)  # half of the old mean, 0, half of the value
    assert AdaptiveHorizon(N, 2.0, 0.0, 1.0).adapted(1.0, -0.1).length == 2.0 * 1.5  # 0.45 of 0.5 are left


def test_it_keeps_within_its_bounds() -> None:
    long = short = AdaptiveHorizon(N)
    for _ in range(30):
        long, short = long.adapted(1.0, 1.0), short.adapted(1.0, -1.0)
    assert (long.length, long.steps, long.places) == (N, N, [0.0, N / 3, 2 * N / 3, N])
    assert (short.length, short.steps) == (SHORTEST, 1)


def test_points_lie_on_the_predicted_chain_and_between_its_steps() -> None:
    """Three points are enough to know the chain of ½|θ|² under SGD: every base step scales θ by 1 − lr."""
    bowl = Bowl()
    optimizer = optimizer_for(bowl, 0.01)
    iterate(optimizer, bowl, 12)
    engine = optimizer._engine
    engine.horizon = AdaptiveHorizon(N, length=3.75)  # places 0, 1.25, 2.5, 3.75
    start = bowl.parameter.detach().clone()
    ends_of_steps = [start * 0.99**step for step in range(5)]
    between = [torch.lerp(ends_of_steps[k], ends_of_steps[k + 1], x) for k, x in ((1, 0.25), (2, 0.5), (3, 0.75))]
    torch.testing.assert_close(optimizer.ask(), torch.stack([start, *between]), rtol=1e-4, atol=0.0)
    assert torch.equal(bowl.parameter, start)
    iterate(optimizer, bowl, 1)
    assert optimizer.statistics["steps"] == 4
    torch.testing.assert_close(bowl.parameter.detach(), ends_of_steps[4], rtol=1e-4, atol=0.0)


def test_one_step_is_that_of_data_parallel_bit_for_bit() -> None:
    """At 1.9 the objective rises long before a step ends: the horizon stays short, each step has the mean gradient."""
    bowl = Bowl(noise=0.5)
    optimizer = optimizer_for(bowl, 1.9)
    for _ in range(20):
        before, gradients = bowl.parameter.detach().clone(), bowl.gradients(optimizer.ask())
        optimizer.tell(gradients)
        assert torch.equal(bowl.parameter.detach(), torch.add(before, gradients.mean(0), alpha=-1.9))
        assert optimizer.statistics["steps"] == 1


def test_small_rates_get_all_steps_and_great_ones_one() -> None:
    """½|θ|² allows N steps of 0.001; of 1.5 it allows one, which overshoots by half of the distance."""
    bowl = Bowl()
    slow = optimizer_for(bowl, 0.001)
    iterate(slow, bowl, 20)
    assert (slow.statistics["horizon"], slow.statistics["steps"]) == (N, N)
    bowl = Bowl()
    fast = optimizer_for(bowl, 1.5)
    iterate(fast, bowl, 40)
    assert fast.statistics["steps"] == 1
    assert bowl.loss() < 1e-6


def test_ascent_goes_as_far_as_descent() -> None:
    down, up = Bowl(noise=0.1), Bowl(noise=0.1)
    descent = optimizer_for(down, 0.05)
    ascent = optimizer_for(up, 0.05, base_kwargs={"maximize": True})
    iterate(descent, down, 15)
    for _ in range(15):
        ascent.tell(-up.gradients(ascent.ask()))
    assert torch.equal(down.parameter, up.parameter)
    assert ascent.statistics["horizon"] == descent.statistics["horizon"] != START


def test_points_that_cannot_be_used_count_for_nothing() -> None:
    """Two of four still make a line; one does not."""
    bowl = Bowl()
    optimizer = optimizer_for(bowl, 0.001)
    iterate(optimizer, bowl, 3)
    for usable, grows in (([True, False, True, False], True), ([False, True, False, False], False)):
        before = optimizer.statistics["horizon"]
        gradients, mask = bowl.gradients(optimizer.ask()), torch.tensor(usable)
        gradients[~mask] = torch.nan
        optimizer.tell(gradients, usable=mask)
        assert (optimizer.statistics["horizon"] > before) == grows


@pytest.mark.parametrize("further", [1, 7])
def test_resumed_equals_uninterrupted(further: int) -> None:
    """Statistics included, of which the first ones after loading are of a history that was not fitted before it."""
    whole, parted = Bowl(noise=0.3), Bowl(noise=0.3)
    one, other = optimizer_for(whole, 0.02), optimizer_for(parted, 0.02)
    iterate(one, whole, 6 + further)
    iterate(other, parted, 6)
    points = other.ask()
    state = copy.deepcopy(other.state_dict())
    again = optimizer_for(parted, 0.02)
    again.load_state_dict(state)
    assert torch.equal(again.ask(), points)
    iterate(again, parted, further)
    assert torch.equal(whole.parameter, parted.parameter)
    assert same(one.state_dict(), again.state_dict())


def test_states_of_the_other_kind_are_loaded_too() -> None:
    bowl = Bowl()
    fixed = OptEx([bowl.parameter], lr=0.02, base="sgd", parallelism=N, horizon="fixed")
    iterate(fixed, bowl, 3)
    auto = optimizer_for(bowl, 0.02)
    auto.load_state_dict(fixed.state_dict())
    iterate(auto, bowl, 2)
    fixed.load_state_dict(auto.state_dict())
    iterate(fixed, bowl, 2)
    assert fixed.statistics["steps"] == N


def test_a_saved_length_is_kept_within_bounds_and_must_be_a_number() -> None:
    """More than N base steps, as another N or a file made by hand may have, would be a chain of any length."""
    bowl = Bowl()
    optimizer = optimizer_for(bowl, 0.02)
    iterate(optimizer, bowl, 3)
    for length, kept in ((1e12, float(N)), (0.0, SHORTEST)):
        state = copy.deepcopy(optimizer.state_dict())
        state["optex"]["horizon"]["length"] = length
        optimizer.load_state_dict(state)
        assert optimizer.state_dict()["optex"]["horizon"]["length"] == kept
    state["optex"]["horizon"]["begin"] = float("nan")
    with pytest.raises(RuntimeError, match="the horizon must have finite numbers"):
        optimizer.load_state_dict(state)


@pytest.mark.parametrize("options", [{"selection": "last"}, {"selection": "grad_norm"}, {"stride": 2}])
def test_where_it_cannot_adapt_it_is_fixed(options: dict[str, object]) -> None:
    """Selections of one point have the steps to it, and a stride says how long the chain is."""
    whole, plain = Bowl(), Bowl()
    auto = optimizer_for(whole, 0.05, **options)
    fixed = OptEx([plain.parameter], lr=0.05, base="sgd", parallelism=N, horizon="fixed", **options)  # type: ignore[arg-type]
    iterate(auto, whole, 6)
    iterate(fixed, plain, 6)
    assert torch.equal(whole.parameter, plain.parameter)
    assert auto.statistics == fixed.statistics


def test_one_gradient_makes_n_steps() -> None:
    """Without a closure nothing is evaluated on the way."""
    whole, plain = Bowl(), Bowl()
    auto = optimizer_for(whole, 0.05)
    fixed = OptEx([plain.parameter], lr=0.05, base="sgd", parallelism=N, horizon="fixed")
    for _ in range(6):
        for bowl, optimizer in ((whole, auto), (plain, fixed)):
            bowl.parameter.grad = bowl.parameter.detach().clone()
            optimizer.step()
    assert torch.equal(whole.parameter, plain.parameter)
    assert auto.statistics == fixed.statistics  # and nothing of a horizon
    assert auto.statistics["steps"] == N


def test_it_is_the_default_and_has_two_values() -> None:
    assert OptEx([Bowl().parameter]).options.adaptive
    with pytest.raises(ConfigError, match="horizon must be one of"):
        OptEx([Bowl().parameter], horizon="long")


def test_emulate_equals_ask_and_tell() -> None:
    whole, called = Bowl(), Bowl()
    asked, emulated = optimizer_for(whole, 0.05), optimizer_for(called, 0.05, without_closure="emulate")
    iterate(asked, whole, 8)
    for _ in range(8 * N):
        called.parameter.grad = called.parameter.detach().clone()
        emulated.step()
    assert torch.equal(whole.parameter, called.parameter)
    assert emulated.statistics["horizon"] == asked.statistics["horizon"]
