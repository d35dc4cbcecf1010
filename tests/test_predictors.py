"""The trivial predictors, against what they are said to be, and in the chain of an iteration."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from optex_rl import OptEx
from optex_rl.optimizer.estimator.predictors import PREDICTORS


def pairs(n: int, d: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(n, d, generator=generator), torch.randn(n, d, generator=generator)


@pytest.mark.parametrize("n", [1, 3, 4, 5, 8, 9])
def test_mean_and_last_of_a_ring_of_four(n: int) -> None:
    points, gradients = pairs(n)
    for name, expected in {"mean": gradients[-4:].mean(0), "last": gradients[-1]}.items():
        estimator = PREDICTORS[name](3, history_size=4, block_sizes=[1, 2])
        for point, gradient in zip(points, gradients, strict=True):
            estimator.insert(point[None], gradient[None])
        for query in pairs(2)[0]:
            mean, variance = estimator.predict(query)
            torch.testing.assert_close(mean, expected)
            assert variance.tolist() == [1.0, 1.0]


def test_a_prediction_does_not_change_with_the_history() -> None:
    points, gradients = pairs(3)
    estimator = PREDICTORS["last"](3, history_size=2)
    estimator.insert(points[:2], gradients[:2])
    before = estimator.predict(points[0])[0]
    estimator.insert(points[2:], gradients[2:])
    assert torch.equal(before, gradients[1])


@pytest.mark.parametrize("selection", ["last", "refine"])
@pytest.mark.parametrize("predictor", ["mean", "last"])
def test_an_iteration_follows_the_predictor(predictor: str, selection: str) -> None:
    """SGD from θ: the chain goes along one direction; `refine` goes again, `last` ends with the last true gradient."""
    theta = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    options = {"predictor": predictor, "selection": selection, "horizon": "fixed"}
    optimizer = OptEx([theta], lr=0.1, base="sgd", parallelism=3, history_size=6, **options)  # type: ignore[arg-type]

    def gradient_at(points: Tensor) -> Tensor:
        return points * torch.tensor([1.0, 3.0])

    known: list[Tensor] = []
    for _ in range(4):
        before = theta.detach().clone()
        points = optimizer.ask()
        cold = torch.equal(points[0], points[1])
        if not cold:
            step = {"mean": torch.stack(known[-6:]).mean(0), "last": known[-1]}[predictor]
            torch.testing.assert_close(points, torch.stack([before - 0.1 * i * step for i in range(3)]))
        gradients = gradient_at(points)
        known += list(gradients)
        optimizer.tell(gradients)
        after = {"mean": torch.stack(known[-6:]).mean(0), "last": known[-1]}[predictor]
        if cold:  # in the first two iterations: until two distinct points are known
            expected = before - 0.1 * gradients[0]
        elif selection == "refine":
            expected = before - 0.3 * after
        else:
            expected = points[2] - 0.1 * gradients[2]
        torch.testing.assert_close(theta.detach(), expected)
    assert optimizer.statistics["variance"] == 1.0
    assert not {"lengthscale", "noise"} & optimizer.statistics.keys()  # nothing was fitted


@pytest.mark.parametrize("name", PREDICTORS)
def test_a_prediction_may_be_put_into_a_row_that_is_given(name: str) -> None:
    points, gradients = pairs(3)
    estimator = PREDICTORS[name](3, block_sizes=[1, 2])
    estimator.insert(points, gradients)
    rows = estimator.new_means(2)
    mean = estimator.mean(points[1] + 0.1, out=rows[1])
    assert mean.data_ptr() == rows[1].data_ptr()
    assert torch.equal(rows[1], estimator.predict(points[1] + 0.1)[0])
