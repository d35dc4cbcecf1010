"""The functions, methods and tables of scripts/benchmark_synthetic.py and scripts/curves.py."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from optex_rl import ConfigError
from scripts.baselines import gauss_newton
from scripts.benchmark_synthetic import (
    ABLATIONS,
    FUNCTIONS,
    SUMS_OF_SQUARES,
    Synthetic,
    ablation,
    ackley,
    main,
    rosenbrock,
    sphere,
)
from scripts.curves import Curve, Method, baselines, optex, run
from scripts.reports import at_least, compared, draw, panel


@pytest.mark.parametrize(
    ("function", "point", "value"),
    [
        (sphere, [1.0, -2.0, 0.0, 1.0], 1.5),
        # Pairs (1, 2) and (2, 0): 100·1 + 0 and 100·16 + 1; their mean.
        (rosenbrock, [1.0, 2.0, 0.0], 850.5),
        (rosenbrock, [1.0, 1.0, 1.0], 0.0),
        (ackley, [0.0, 0.0], 0.0),
        # Whole numbers: every cosine is 1, so the last three terms cancel; the mean square is 1.
        (ackley, [1.0, -1.0, 1.0], 20.0 * (1.0 - math.exp(-0.2))),
        # Halves: every cosine is −1; the mean square is 1/4.
        (ackley, [0.5, -0.5], 20.0 * (1.0 - math.exp(-0.1)) + math.e - math.exp(-1.0)),
    ],
)
def test_values_by_hand(function: Callable[[Tensor], Tensor], point: list[float], value: float) -> None:
    assert float(function(torch.tensor(point, dtype=torch.float64))) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize(
    ("function", "point", "gradient"),
    [
        (sphere, [3.0, -1.0], [3.0, -1.0]),
        # (−400 x₁ (x₂ − x₁²) − 2 (1 − x₁), 200 (x₂ − x₁²)) at (2, 3).
        (rosenbrock, [2.0, 3.0], [802.0, -200.0]),
        # At whole numbers the sines vanish: 4 exp(−0.2) xᵢ / (d √(mean square)), where the mean square is 1.
        (ackley, [1.0, -1.0], [2.0 * math.exp(-0.2), -2.0 * math.exp(-0.2)]),
    ],
)
def test_gradients_by_hand(function: Callable[[Tensor], Tensor], point: list[float], gradient: list[float]) -> None:
    problem = Synthetic(function, 2, 0.0, seed=0)
    points = torch.tensor([[0.3, 0.4], point], dtype=torch.float64)  # the first row must not leak into the second
    losses, gradients = problem.evaluate(points)
    assert gradients[1].tolist() == pytest.approx(gradient, abs=1e-12)
    assert losses.tolist() == function(points).tolist()


@pytest.mark.parametrize("name", SUMS_OF_SQUARES)
def test_sums_of_squares(name: str) -> None:
    """They are the function, and their Jacobian is that of automatic differentiation."""
    x = torch.tensor([1.5, -0.5, 2.0, 0.3], dtype=torch.float64)
    residuals, jacobian = SUMS_OF_SQUARES[name]
    assert float(residuals(x).square().sum()) == pytest.approx(float(FUNCTIONS[name](x)))
    expected = torch.autograd.functional.jacobian(residuals, x)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(torch.from_numpy(jacobian(x).toarray()), expected)


def test_gauss_newton_ends_at_the_minimum_of_rosenbrock() -> None:
    curve = gauss_newton(Synthetic(rosenbrock, 2, 0.0, seed=0), *SUMS_OF_SQUARES["rosenbrock"], 100)
    assert curve.column()[-1] < 1e-10 < curve.column()[0]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_do_not_depend_on_the_dimension(name: str) -> None:
    small, large = (Synthetic(FUNCTIONS[name], d, 0.0, seed=0).values()[0] for d in (10_000, 100_000))
    assert small == pytest.approx(large, rel=0.03)


def test_noise_is_a_share_of_the_gradient_at_the_start() -> None:
    quiet, noisy = (Synthetic(rosenbrock, 10_000, noise, seed=3) for noise in (0.0, 0.25))
    start = quiet.parameters[0].detach()
    assert torch.equal(start, noisy.parameters[0])
    exact = quiet.evaluate(start[None])[1]
    errors = noisy.evaluate(start.repeat(2, 1))[1] - exact
    assert (errors.norm(dim=1) / exact.norm()).tolist() == pytest.approx([0.25, 0.25], rel=0.03)
    assert abs(float(torch.cosine_similarity(errors[0], errors[1], dim=0))) < 0.05  # a draw of its own at each point


class Counted:
    """½ θ² of one parameter at 1; counts the evaluations."""

    def __init__(self) -> None:
        self.parameters = [Parameter(torch.ones(1))]
        self.batches: list[int] = []

    def evaluate(self, points: Tensor) -> tuple[Tensor, Tensor]:
        self.batches.append(len(points))
        return 0.5 * points[:, 0].square(), points.clone()

    def values(self) -> tuple[float, ...]:
        return (float(self.parameters[0].detach()),)


def test_baselines_spend_their_iterations_as_they_say() -> None:
    # Gradient descent at rate 1/2 halves θ at every step.
    outcomes = []
    for method in baselines(3):
        problem = Counted()
        curve = run(method, problem, 2, lr=0.5, base="sgd")
        outcomes.append((problem.batches, curve.column()))
    assert outcomes[0] == ([1, 1], [1.0, 0.5, 0.25])
    assert outcomes[1] == ([1] * 6, [1.0, 0.125, 0.015625])
    assert outcomes[2] == ([3, 3], [1.0, 0.5, 0.25])


def test_only_the_last_point_is_evaluated() -> None:
    problem = Counted()
    run(Method("", 4, only_last=True, options={"selection": "last"}), problem, 5, lr=0.1, base="sgd")
    assert problem.batches == [1] * 5


def test_recording_every_few_iterations_ends_with_the_last() -> None:
    curve = run(Method("vanilla"), Counted(), 5, every=2, lr=0.5, base="sgd")
    assert (curve.iterations, curve.column()) == ([0, 2, 4, 5], [1.0, 0.25, 0.0625, 0.03125])
    assert curve.first(0.25) == (2, curve.seconds[1])
    assert curve.first(0.01) == (math.inf, math.inf)


def test_divergence_is_infinite_from_then_on() -> None:
    # At rate 1e20 the parameter leaves float32 at the second step.
    curve = run(Method("vanilla"), Counted(), 4, lr=1e20, base="sgd")
    assert curve.column() == [1.0, pytest.approx(-1e20), math.inf, math.inf, math.inf]


def test_cells_of_the_comparison_by_hand() -> None:
    references = [Curve([0, 1, 2], [0.0, 1.0, 2.0], [(3.0,), (2.0,), (last,)]) for last in (1.0, 2.0)]
    curves = [Curve([0, 1, 2], [0.0, 1.0, 2.0], [(3.0,), (1.0,), (0.5,)]), references[0]]
    # Vanilla reaches its last values after 2 and 1 iterations; the method those values after 1 and 1.
    assert compared(curves, references) == "1 | 2.0 | 1.0 | 2/2"
    assert compared(references[1:], references[:1]) == "– | – | – | 0/1"


@pytest.mark.parametrize("name", ABLATIONS)
def test_ablations_compare_variants_with_vanilla(name: str) -> None:
    methods = ablation(name, 5)
    assert methods[0] == Method("vanilla")
    assert len({method.name for method in methods}) == len(methods) >= 3


@pytest.mark.parametrize("d", [1000, pytest.param(100_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("name", "factor"), [("rosenbrock", 4.0), ("sphere", math.sqrt(5)), ("ackley", math.sqrt(5))])
def test_optex_needs_fewer_sequential_iterations(name: str, factor: float, d: int) -> None:
    def curve(method: Method, iterations: int) -> Curve:
        return run(method, Synthetic(FUNCTIONS[name], d, 0.0, seed=0), iterations, lr=0.1, history_size=20)

    vanilla = curve(Method("vanilla"), 100)
    assert curve(optex(5, "refine"), 50).first(vanilla.column()[-1])[0] <= 100 / factor


def test_main_prints_the_table_and_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plot = tmp_path / "curves.png"
    arguments = "--functions sphere --dim 20 --iterations 6 --seeds 2 --noise 0.1 --learning-rates 0.1 0.3 --output"
    monkeypatch.setattr(sys, "argv", ["benchmark_synthetic", *arguments.split(), str(plot)])
    main()
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[4:]]
    names = ["vanilla", "target", "data-parallel", "OptEx, refine", "OptEx, last"]
    assert [(row[1], row[2]) for row in rows] == [(name, rate) for name in names for rate in ("0.1", "0.3")]
    assert {row[7] for row in rows if row[:2] == ["| sphere", "vanilla"]} >= {"2/2"}
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_without_noise_quasi_newton_methods_are_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = "--functions sphere --dim 20 --iterations 30 --seeds 1"
    monkeypatch.setattr(sys, "argv", ["benchmark_synthetic", *arguments.split()])
    main()
    last_values = {
        row[1]: float(row[3]) for row in (line.split(" | ") for line in capsys.readouterr().out.splitlines()[4:])
    }
    # A sphere is over after one exact line search.
    assert list(last_values) == [
        "vanilla",
        "target",
        "OptEx, refine",
        "OptEx, last",
        "L-BFGS, torch",
        "L-BFGS-B, SciPy",
        "Gauss-Newton, SciPy",
    ]
    assert max(list(last_values.values())[4:]) < 1e-6 < last_values["vanilla"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--base", "adma"], "did you mean 'adam'?"),
        (["--dim", "1"], "must be a whole number of at least 2, got '1'"),
        (["--functions", "cube"], "invalid choice: 'cube'"),
    ],
)
def test_bad_flags_get_one_sentence(
    arguments: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark_synthetic", *arguments])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert said in capsys.readouterr().err


def test_a_plot_that_cannot_be_written(tmp_path: Path) -> None:
    curve = run(Method("vanilla"), Counted(), 1, lr=0.5, base="sgd")
    panels = [panel("", "value", {"vanilla": [curve]}), panel("", "value", {"vanilla": [curve]}, time=True)]
    assert panels[1].lines["vanilla"][0] == curve.seconds
    with pytest.raises(ConfigError, match="cannot be written"):
        draw(panels, tmp_path / "no such folder" / "curves.png")


def test_whole_numbers_only() -> None:
    assert at_least(2)("2") == 2
