"""A dense solve in float64 as oracle of the posterior; exact identities for its history."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from optex_rl import GradientEstimator, OptEx
from optex_rl.common.errors import NotPositiveDefiniteError, NumericalWarning
from optex_rl.optimizer.estimator.distances import (
    column_chunks,
    inner_products,
    offset_products,
    path_distances,
    squared_distances_along,
)
from optex_rl.optimizer.estimator.gp import LENGTHSCALE_GRID, NOISE_GRID
from optex_rl.optimizer.estimator.history import ring_slices
from optex_rl.optimizer.estimator.predictors import PREDICTORS

from .helpers import normal, same, through_a_file

Array = npt.NDArray[np.float64]
NUMPY_KERNELS: dict[str, Callable[[Array], Array]] = {
    "matern12": lambda r: np.exp(-r),
    "matern32": lambda r: (1 + np.sqrt(3) * r) * np.exp(-np.sqrt(3) * r),
    "matern52": lambda r: (1 + np.sqrt(5) * r + 5 / 3 * r**2) * np.exp(-np.sqrt(5) * r),
    "rbf": lambda r: np.exp(-(r**2) / 2),
}
every_kernel = pytest.mark.parametrize("kernel", NUMPY_KERNELS)


def estimator_of(points: Tensor, gradients: Tensor, **options: Any) -> GradientEstimator:
    estimator = GradientEstimator(points.shape[1], dtype=points.dtype, **options)
    estimator.insert(points, gradients)
    return estimator


def dense_posterior(
    points: Tensor, gradients: Tensor, query: Tensor, kernel: str, lengthscale: float, noise: float
) -> tuple[Array, float]:
    """Mean and variance by the formulas of Prop. 4.1, in NumPy, with loops over the points."""
    X, G, x = (t.double().numpy() for t in (points, gradients, query))
    k = NUMPY_KERNELS[kernel]
    K = np.array([[k(np.asarray(np.linalg.norm(a - b) / lengthscale)) for b in X] for a in X])
    k_x = np.array([k(np.asarray(np.linalg.norm(a - x) / lengthscale)) for a in X])
    inverse = np.linalg.inv(K + noise * np.eye(len(X)))
    return k_x @ inverse @ G, float(1 - k_x @ inverse @ k_x)


def test_two_points_worked_by_hand() -> None:
    # Points 0 and 1 with gradients 1 and 3, query 0.5, RBF, ℓ = 1. Between the points k = e^−.5 = .606531; from the
    # query to both e^−.125 = .882497. By symmetry both weights are .882497 / (1 + σ² + .606531):
    #   σ² = 0:   .549318, mean .549318 · (1 + 3) = 2.197274, variance 1 − 2 · .882497 · .549318 = .030456
    #   σ² = 0.5: .418934, mean                     1.675735, variance 1 − 2 · .882497 · .418934 = .260584
    points, gradients = torch.tensor([[0.0], [1.0]]).double(), torch.tensor([[1.0], [3.0]]).double()
    for noise, expected in ((0.0, [2.197274, 0.030456]), (0.5, [1.675735, 0.260584])):
        estimator = estimator_of(points, gradients, kernel="rbf", lengthscale=1.0, noise=noise)
        mean, variance = estimator.predict(torch.tensor([0.5]).double())
        assert [mean.item(), variance.item()] == pytest.approx(expected, abs=1e-6)


@every_kernel
@pytest.mark.parametrize(("lengthscale", "noise"), [(0.5, 0.0), (2.0, 1e-3), (5.0, 1.0)])
def test_posterior_is_the_dense_solve(kernel: str, lengthscale: float, noise: float) -> None:
    points, gradients = normal(9, 4), normal(9, 4, seed=1)
    estimator = estimator_of(points, gradients, kernel=kernel, lengthscale=lengthscale, noise=noise)
    for query in normal(5, 4, seed=2):
        mean, variance = estimator.predict(query)
        expected_mean, expected_variance = dense_posterior(points, gradients, query, kernel, lengthscale, noise)
        np.testing.assert_allclose(mean.numpy(), expected_mean, rtol=1e-7, atol=1e-8)
        assert variance.shape == (1,)
        assert float(variance) == pytest.approx(expected_variance, rel=1e-7, abs=1e-9)


@every_kernel
def test_choice_by_evidence_is_the_best_of_the_grid(kernel: str) -> None:
    """Against log-likelihoods of each pair of the grid, computed densely with the amplitude maximised out."""
    points, gradients = normal(8, 3), normal(8, 3, seed=1) + 3.0
    estimator = estimator_of(points, gradients, kernel=kernel)
    estimator.fit()
    X, G = points.numpy(), gradients.numpy()
    r = np.array([[np.linalg.norm(a - b) for b in X] for a in X])
    median = np.sort(r[r > 0])[(np.count_nonzero(r) - 1) // 2]

    def likelihood(lengthscale: float, noise: float) -> float:
        covariance = NUMPY_KERNELS[kernel](r / lengthscale) + noise * np.eye(len(X))
        inverse = np.linalg.inv(covariance)
        amplitude = np.trace(G.T @ inverse @ G) / G.size
        _, logdet = np.linalg.slogdet(amplitude * covariance)
        return float(-0.5 * G.shape[1] * logdet - 0.5 * np.trace(G.T @ inverse @ G) / amplitude)

    pairs = [(float(f) * median, float(s)) for f in LENGTHSCALE_GRID for s in NOISE_GRID]
    lengthscale, noise = max(pairs, key=lambda pair: likelihood(*pair))
    assert float(estimator.lengthscale) == pytest.approx(lengthscale)
    assert float(estimator.noise) == pytest.approx(noise)


@every_kernel
@pytest.mark.parametrize("noise", [1e-9, 1e-6, 0.3, "auto"])
def test_variance_is_between_known_and_unknown(kernel: str, noise: float | str) -> None:
    points = torch.cat([normal(10, 3), normal(10, 3, seed=1) * 1e-3])
    estimator = estimator_of(points, normal(20, 3, seed=2), kernel=kernel, noise=noise)
    queries = torch.cat([points, normal(20, 3, seed=3), 1e6 * normal(3, 3, seed=4)])
    variances = torch.cat([estimator.predict(query)[1] for query in queries])
    assert (variances >= 0.0).all()
    assert (variances <= 1.0).all()
    assert variances[-3:].tolist() == [1.0] * 3
    assert estimator.predict(queries[-1])[0].abs().max() == 0.0


def test_variance_at_known_points_is_not_below_zero_by_rounding() -> None:
    for seed in range(6):
        points = normal(12, 1, seed=seed)
        estimator = estimator_of(points, points, lengthscale=0.5, noise=0.0)
        variances = torch.cat([estimator.predict(point)[1] for point in points])
        assert (variances >= 0.0).all()
        assert (variances < 1e-9).all()


def path(d: int, T: int, length: float) -> Tensor:
    """Points in float32 of an optimizer's way: steps of one length, half of each like the one before."""
    steps = normal(T, d, seed=5)
    for k in range(1, T):
        steps[k] = 0.5 * steps[k - 1] + 0.75**0.5 * steps[k]
    points: Tensor = normal(d, seed=6) + length * steps.cumsum(0)
    return points.float()


def assert_distances(distances: Tensor, point: Tensor, points: Tensor, length: float) -> None:
    """Their squares, but for the rounding of sums in float32, relative to the squared length of the path."""
    exact = (points.double() - point.double()).square().sum(1)
    torch.testing.assert_close(distances.square(), exact, rtol=2e-6, atol=1e-6 * length**2)


@pytest.mark.parametrize("d", [10_000, 200_001])
def test_distances_to_a_path_of_steps(d: int) -> None:
    """Wrapped, by way of any of its points: those to the points themselves, to near ones and to one far away."""
    points, length = path(d, 17, 1e-3), 0.012 * d**0.5
    history = GradientEstimator(d, history_size=12)
    for start, stop in ((0, 5), (5, 9), (9, 12), (12, 17)):
        history.insert(points[start:stop], points[start:stop])
    kept = torch.cat([points[12:], points[5:12]])  # slots 0 to 4 were written twice
    torch.testing.assert_close(history.points(), kept, rtol=1e-7, atol=2e-9)
    for point, distances in zip(kept, history._distances[0], strict=True):
        assert_distances(distances, point, kept, length)
    queries = [kept[3], kept[7] + 1e-5 * normal(d, seed=7).float(), points[0], 100.0 * normal(d, seed=8).float()]
    for query in queries:
        for age in range(12):
            assert_distances(history.distances_to(query, age)[0], query, kept, length)


@pytest.mark.parametrize("block_sizes", [None, [1000, 4000]])
@pytest.mark.parametrize("apart", [0.0, 1e-7, 1e-5, 1e-4])
def test_a_path_that_comes_back(apart: float, block_sizes: list[int] | None) -> None:
    """To a point, or so near to it that the distance is lost in the rounding of the way round."""
    points, length = path(5000, 8, 1e-2), 0.08 * 5000**0.5
    history = GradientEstimator(5000, history_size=10, block_sizes=block_sizes)
    history.insert(points, points)
    back = points[2] + apart * normal(5000, seed=7).float()
    for (start, stop), distances in zip(history.blocks, history.distances_to(back), strict=True):
        assert_distances(distances, back[start:stop], points[:, start:stop], length)
        apart_in_block = float((back - points[2])[start:stop].double().norm())
        assert float(distances[2]) == pytest.approx(apart_in_block, rel=1e-5, abs=1e-8 * length)
    history.insert(back[None], back[None])
    for (start, stop), distances in zip(history.blocks, history.distances_to(points[2]), strict=True):
        both = torch.cat([points, back[None]])[:, start:stop]
        assert_distances(distances, points[2, start:stop], both, length)


@pytest.mark.parametrize("predictor", PREDICTORS)
@pytest.mark.parametrize("block_sizes", [None, [1000, 19_000]])
def test_several_points_at_once_are_those_points_one_by_one(predictor: str, block_sizes: list[int] | None) -> None:
    """Also where the path comes back to some of them, so that they are measured from other points of it."""
    points = path(20_000, 8, 1e-2)
    history = PREDICTORS[predictor](20_000, history_size=10, block_sizes=block_sizes)
    history.insert(points, normal(8, 20_000, seed=1).float())
    queries = torch.stack([points[7] + 1e-3, points[2], points[7] - 1e-3, points[4] + 1e-7])
    distances = history.distances_to(queries)
    assert distances.shape == (4, len(history.blocks), 8)
    one_by_one = torch.stack([history.distances_to(query) for query in queries])
    torch.testing.assert_close(distances, one_by_one, rtol=1e-5, atol=1e-6)
    assert (distances[1, :, 2] < 1e-6).all()
    means = history.mean(queries, distances)
    torch.testing.assert_close(means, torch.stack(list(map(history.mean, queries))), rtol=1e-4, atol=1e-5)


def test_distances_along_a_path_worked_by_hand() -> None:
    # On the line: points 0, 1, 3, 6 with steps 1, 2, 3 to the last three. θ = 8 by way of 3 (r = 2): u = 5, products
    # (?, 5, 10, 15), of which the first counts nowhere. C = 30, 25, 15, 0, C − C_r = 15, 10, 0, −15; squares from 3:
    # 9, 4, 0, 9. So 25 + 30 + 9, 25 + 20 + 4, 25, 25 − 30 + 9 = 64, 49, 25, 4: eight, seven, five and two away.
    newer = torch.ones(4, 4, dtype=torch.float64).triu(1)
    products, square = torch.tensor([[[7.0, 5.0, 10.0, 15.0]]]).double(), torch.tensor([[[25.0]]]).double()
    squares = torch.tensor([[9.0, 4.0, 0.0, 9.0]]).double()
    assert squared_distances_along(products, square, newer, squares, 2).tolist() == [[[64.0, 49.0, 25.0, 4.0]]]


def test_distances_between_the_points_of_a_path_worked_by_hand() -> None:
    # On the line: points 0, 1, 3 and −2, the third being the oldest: 3, −2, 0, 1 with steps −5, 2, 1 to the last three.
    ages, steps = torch.tensor([1, 0, 3, 2]), torch.tensor([2.0, 1.0, 70.0, -5.0]).double()
    squares = path_distances(torch.outer(steps, steps)[None], (ages < ages[:, None]).double())
    points = torch.tensor([0.0, 1.0, 3.0, -2.0]).double()
    assert torch.equal(squares[0], (points - points[:, None]).square())


@pytest.mark.parametrize("kernel", ["matern52", "rbf"])
def test_equal_coordinates_leave_the_kernel_matrix_positive(kernel: str) -> None:
    """All products of two steps are one number, whose sum rounds the same way every time: the worst there is."""
    x = torch.nn.Parameter(torch.full((100_000,), -1.0))
    optimizer = OptEx([x], lr=0.1, base="adam", parallelism=5, kernel=kernel, horizon="fixed")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (100.0 * (x[1:] - x[:-1] ** 2) ** 2 + (1.0 - x[:-1]) ** 2).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    with warnings.catch_warnings():
        warnings.simplefilter("error", NumericalWarning)
        losses = [float(optimizer.step(closure)) for _ in range(45)]
    assert losses[-1] < 1.0 < losses[0]


def test_offsets_and_their_products_with_steps() -> None:
    steps, newest, *points = normal(3, 140_001, dtype=torch.float32), *normal(3, 140_001, seed=1, dtype=torch.float32)
    for after, (start, stop) in itertools.product([[], [2, 0]], ((0, 140_001), (100, 137_000), (140_000, 140_001))):
        both = offset_products(torch.stack(points), newest, after, steps, column_chunks(start, stop))
        for point, products, square in zip(points, *both, strict=True):
            offset = (point.double() - newest.double() + steps[after].double().sum(0))[start:stop]
            torch.testing.assert_close(products, steps[:, start:stop].double() @ offset, rtol=1e-5, atol=1e-3)
            torch.testing.assert_close(square, offset @ offset, rtol=1e-5, atol=1e-3)
            assert products.dtype == square.dtype == torch.float64


def test_sums_over_chunks_and_columns_are_those_of_float64() -> None:
    vector, vectors = normal(140_001, dtype=torch.float32), normal(3, 140_001, seed=1, dtype=torch.float32)
    for start, stop in ((0, 140_001), (0, 8192), (100, 137_000), (140_000, 140_001)):
        a, A = vector[start:stop].double(), vectors[:, start:stop].double()
        products = inner_products(vector[None], vectors, column_chunks(start, stop))[0]
        torch.testing.assert_close(products, A @ a, rtol=1e-4, atol=1e-4)
        assert products.dtype == torch.float64


def test_ring_buffer_is_a_full_recompute_of_the_last_pairs() -> None:
    points, gradients = normal(23, 4), normal(23, 4, seed=1)
    ring = GradientEstimator(4, history_size=7, dtype=torch.float64)
    for start, stop in ((0, 3), (3, 4), (4, 15), (15, 23)):
        ring.insert(points[start:stop], gradients[start:stop])
        ring.predict(points[0])  # must not spoil what comes later
    assert len(ring) == 7
    query = normal(4, seed=2)
    mean, variance = ring.predict(query)
    expected = dense_posterior(
        points[-7:], gradients[-7:], query, "matern52", float(ring.lengthscale), float(ring.noise)
    )
    np.testing.assert_allclose(mean.numpy(), expected[0], rtol=1e-8)
    assert float(variance) == pytest.approx(expected[1], rel=1e-8)
    fresh = estimator_of(points[-7:], gradients[-7:], history_size=7)
    fresh.fit()
    assert (float(fresh.lengthscale), float(fresh.noise)) == pytest.approx((float(ring.lengthscale), float(ring.noise)))


@pytest.mark.parametrize("block_sizes", [None, [1, 3]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_distances_in_every_state_of_the_ring(block_sizes: list[int] | None, dtype: torch.dtype) -> None:
    """Empty, growing, filling, full and wrapping; with more pairs than it holds; from points in bfloat16."""
    history = GradientEstimator(4, history_size=7, block_sizes=block_sizes, dtype=dtype)
    inserted, slots = torch.empty(0, 4, dtype=dtype), [0] * 7
    for seed, n in enumerate((2, 3, 3, 1, 5, 7, 3, 9, 2)):
        points = normal(n, 4, seed=seed).bfloat16()
        for number in range(n):
            slots[(len(inserted) + number) % 7] = len(inserted) + number
        inserted = torch.cat([inserted, points.to(dtype)])
        rows = history.insert(points, points)
        kept, queries = inserted[slots[: len(history)]], torch.cat([inserted[-n:][-7:], normal(3, 4, seed=9).to(dtype)])
        torch.testing.assert_close(history.points(), kept, rtol=1e-6, atol=1e-6)
        every = torch.cat([rows, torch.stack([history.distances_to(query) for query in queries])])
        for (start, stop), distances in zip(history.blocks, every.transpose(0, 1), strict=True):
            exact = torch.cdist(torch.cat([queries[:-3], queries])[:, start:stop], kept[:, start:stop])
            torch.testing.assert_close(distances, exact.double(), rtol=1e-5, atol=2e-6)


def test_history_is_a_copy() -> None:
    points, gradients = normal(3, 2), normal(3, 2, seed=1)
    estimator = estimator_of(points, gradients)
    before = estimator.state_dict()
    points.zero_()
    gradients.zero_()
    assert same(estimator.state_dict(), before)


@pytest.mark.parametrize("noise", [0.2, "auto"])
def test_blocks_are_separate_estimators(noise: float | str) -> None:
    points, gradients, query = normal(12, 8), normal(12, 8, seed=1), normal(8, seed=2)
    points[:, :2] *= 1e-3  # blocks of different scale
    blocks = estimator_of(points, gradients, block_sizes=[2, 5, 1], noise=noise)
    mean, variance = blocks.predict(query)
    assert variance.shape == blocks.lengthscale.shape == blocks.noise.shape == (3,)
    for b, columns in enumerate((slice(0, 2), slice(2, 7), slice(7, 8))):
        alone = estimator_of(points[:, columns], gradients[:, columns], noise=noise)
        alone_mean, alone_variance = alone.predict(query[columns])
        torch.testing.assert_close(mean[columns], alone_mean, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(variance[b : b + 1], alone_variance, rtol=1e-10, atol=1e-12)
        assert blocks.lengthscale[b] == alone.lengthscale
        assert blocks.noise[b] == alone.noise


@every_kernel
@pytest.mark.parametrize("lengthscale", ["auto", "median"])
@pytest.mark.parametrize("noise", ["auto", 0.0, 2.0])
def test_one_distinct_point_stands_for_all(kernel: str, lengthscale: str, noise: float | str) -> None:
    """n noisy gradients at one point: their sum over n + σ² however far away, known to σ² / (n + σ²)."""
    point, gradients = normal(1, 3), normal(4, 3, seed=1)
    estimator = estimator_of(point.repeat(4, 1), gradients, kernel=kernel, lengthscale=lengthscale, noise=noise)
    for distance in (0.0, 1.0, 1e6):
        mean, variance = estimator.predict(point[0] + distance)
        chosen = float(estimator.noise)
        assert chosen in NOISE_GRID if noise == "auto" else chosen == noise
        torch.testing.assert_close(mean, gradients.sum(0) / (4 + chosen), rtol=1e-12, atol=0.0)
        assert float(variance) == pytest.approx(chosen / (4 + chosen), abs=1e-12)
    assert float(estimator.lengthscale) == math.inf


@every_kernel
@pytest.mark.parametrize("noise", [0.0, 2.0])
def test_one_distinct_point_fades_with_a_length_scale_that_is_given(kernel: str, noise: float) -> None:
    gradients = normal(4, 1, seed=1)
    estimator = estimator_of(torch.zeros(4, 1).double(), gradients, kernel=kernel, lengthscale=0.5, noise=noise)
    for distance in (0.0, 0.3, 1.0, 50.0):
        k = float(NUMPY_KERNELS[kernel](np.asarray(distance / 0.5)))
        mean, variance = estimator.predict(torch.tensor([distance], dtype=torch.float64))
        torch.testing.assert_close(mean, k * gradients.sum(0) / (4 + noise), rtol=1e-12, atol=0.0)
        assert float(variance) == pytest.approx(1 - k * k * 4 / (4 + noise), abs=1e-12)


@pytest.mark.parametrize(("gradients", "kept"), [((3.0, 3.0, 3.0), 1.0), ((3.0, -3.0, 3.0), 0.5)])
def test_noise_at_one_point_is_that_of_its_gradients(gradients: tuple[float, ...], kept: float) -> None:
    """By evidence: gradients that agree are believed, those that contradict each other shrink to less than half."""
    column = torch.tensor(gradients).double()[:, None]
    mean, _ = estimator_of(torch.zeros_like(column), column).predict(torch.ones(1).double())
    assert (float(mean / column.mean()) > 1.0 - 1e-5) == (kept == 1.0)
    assert 0.0 < float(mean / column.mean()) <= kept


@pytest.mark.parametrize("lengthscale", ["auto", "median"])
def test_the_length_scale_is_finite_while_the_ring_holds_two_distinct_points(lengthscale: str) -> None:
    estimator = GradientEstimator(2, history_size=3, lengthscale=lengthscale)

    def after(*values: float) -> float:
        points = torch.tensor(values)[:, None].repeat(1, 2)
        estimator.insert(points, torch.ones_like(points))
        estimator.fit()
        assert estimator.ready == math.isfinite(float(estimator.lengthscale))
        return float(estimator.lengthscale)

    assert after(0.0) == after(0.0) == math.inf
    assert 0.0 < after(1.0) < math.inf
    assert 0.0 < after(1.0) < math.inf
    assert after(1.0) == math.inf
    assert 0.0 < after(0.5) < math.inf


@pytest.mark.parametrize("noise", ["auto", 0.0, 0.1])
def test_one_block_may_stay_where_another_moves(noise: float | str) -> None:
    points, gradients = normal(5, 3), 1.0 + 0.1 * normal(5, 3, seed=1)
    points[:, 0] = 2.0
    estimator = estimator_of(points, gradients, block_sizes=[1, 2], noise=noise)
    near, far = (estimator.predict(points[0] + distance) for distance in (0.0, 1e6))
    stays, moves = estimator.lengthscale.tolist()
    assert stays == math.inf
    assert 0.0 < moves < math.inf
    expected = gradients[:, 0].sum() / (5 + estimator.noise[0])
    torch.testing.assert_close(torch.stack([near[0][0], far[0][0]]), expected.repeat(2), rtol=1e-12, atol=0.0)
    assert far[0][1:].tolist() == pytest.approx([0.0, 0.0], abs=1e-12)
    assert far[1][1] == 1.0


def test_median_length_scale() -> None:
    points = torch.tensor([[0.0], [1.0], [3.0]]).double()  # distances 1, 2, 3
    estimator = estimator_of(points, points, lengthscale="median", noise=0.25)
    estimator.fit()
    assert (float(estimator.lengthscale), float(estimator.noise)) == (2.0, 0.25)


def test_the_length_scale_can_be_chosen_where_points_repeat_and_noise_is_none() -> None:
    """The evidence of noise 0 is infinite there: the choice is that of the least noise of the grid."""
    points = normal(5, 3).repeat(2, 1)
    gradients = 1.0 + 0.01 * points  # so smooth that a long length scale is right
    without, least = (estimator_of(points, gradients, noise=noise) for noise in (0.0, float(NOISE_GRID[0])))
    least.fit()
    with pytest.warns(NumericalWarning, match=r"added jitter"):
        without.fit()
    assert float(without.lengthscale) == float(least.lengthscale) > float(torch.pdist(points).max())
    assert float(without.noise) == 0.0


def test_length_scale_that_is_given_is_not_chosen() -> None:
    estimator = estimator_of(normal(6, 3), normal(6, 3, seed=1), lengthscale=0.7)
    estimator.fit()
    assert float(estimator.lengthscale) == 0.7


def test_history_that_is_not_finite_is_an_error() -> None:
    points = normal(3, 2)
    points[1, 0] = math.nan
    estimator = estimator_of(points, normal(3, 2, seed=1), lengthscale=1.0, noise=0.1)
    with pytest.raises(NotPositiveDefiniteError, match=r"\(3, 3\) has 9 non-finite entries"):
        estimator.predict(points[0])


def test_reset_forgets_everything() -> None:
    estimator = estimator_of(normal(9, 3), normal(9, 3, seed=1), history_size=6)
    estimator.predict(normal(3))
    estimator.reset()
    assert len(estimator) == 0
    points, gradients, query = normal(4, 3, seed=2), normal(4, 3, seed=3), normal(3, seed=4)
    fresh = GradientEstimator(3, history_size=6, dtype=torch.float64)
    for each in (estimator, fresh):
        each.insert(points, gradients)
    assert same(estimator.predict(query), fresh.predict(query))
    assert same(estimator.state_dict(), fresh.state_dict())


def reloaded(estimator: GradientEstimator, **options: Any) -> GradientEstimator:
    """A new estimator that took over the state of another by way of a file."""
    other = GradientEstimator(estimator.dim, **options)
    other.load_state_dict(through_a_file(estimator.state_dict()))
    return other


@pytest.mark.parametrize("inserted", [0, 1, 5, 7, 8, 17, 21])
@pytest.mark.parametrize("block_sizes", [None, [1, 3]])
def test_a_saved_history_goes_on_bit_for_bit(inserted: int, block_sizes: list[int] | None) -> None:
    points, gradients = normal(30, 4, dtype=torch.float32), normal(30, 4, seed=1, dtype=torch.float32)
    options: dict[str, Any] = {"history_size": 7, "block_sizes": block_sizes}
    estimator = estimator_of(points[:inserted], gradients[:inserted], **options)
    other = reloaded(estimator, **options)
    for start in range(inserted, 30, 3):
        assert same(estimator.state_dict(), other.state_dict())
        for each in (estimator, other):
            each.insert(points[start : start + 3], gradients[start : start + 3])
        assert same(estimator.predict(points[0]), other.predict(points[0]))


@pytest.mark.parametrize("inserted", [4, 7, 10, 20])
@pytest.mark.parametrize("history_size", [3, 7, 12])
def test_a_saved_history_fits_a_ring_of_another_size(inserted: int, history_size: int) -> None:
    points, gradients = normal(30, 4), normal(30, 4, seed=1)
    estimator = estimator_of(points[:inserted], gradients[:inserted], history_size=7)
    other = reloaded(estimator, history_size=history_size, dtype=torch.float64)
    kept = min(inserted, 7, history_size)
    assert len(other) == kept
    other.insert(points[inserted : inserted + 2], gradients[inserted : inserted + 2])
    first = max(inserted - kept, inserted + 2 - history_size)  # the oldest go first
    fresh = estimator_of(points[first : inserted + 2], gradients[first : inserted + 2], history_size=history_size)
    query = normal(4, seed=2)
    torch.testing.assert_close(other.predict(query), fresh.predict(query), rtol=1e-9, atol=1e-12)


def test_a_saved_history_fits_other_blocks() -> None:
    points, gradients, query = normal(10, 4), normal(10, 4, seed=1), normal(4, seed=2)
    joint = estimator_of(points, gradients, history_size=7)
    blocks = reloaded(joint, history_size=7, block_sizes=[1, 3], dtype=torch.float64)
    expected = estimator_of(points[-7:], gradients[-7:], history_size=7, block_sizes=[1, 3])
    torch.testing.assert_close(blocks.predict(query), expected.predict(query), rtol=1e-9, atol=1e-12)


def test_prediction_builds_no_graph() -> None:
    points = normal(3, 2).requires_grad_()
    estimator = estimator_of(points, (2.0 * points), noise=0.1)
    mean, variance = estimator.predict(points[0])
    assert not mean.requires_grad
    assert not variance.requires_grad


def test_history_in_float32_predicts_as_in_float64() -> None:
    """Neighbouring iterates in ten thousand dimensions, where careless sums would drown the differences."""
    d = 10_000
    center = normal(d)
    points = center + 1e-4 * normal(12, d, seed=1).cumsum(0)
    slopes = normal(d, seed=2)
    gradients = slopes * (points - center) * 1e3 + 1.0
    query = center + 1.5e-4 * normal(d, seed=3)
    options: dict[str, Any] = {"lengthscale": "median", "noise": 1e-4}
    # both histories hold the same numbers, so that only the arithmetic differs
    points, gradients, query = points.float(), gradients.float(), query.float()
    single, _ = estimator_of(points, gradients, **options).predict(query)
    double, _ = estimator_of(points.double(), gradients.double(), **options).predict(query.double())
    assert (single.double() - double).norm() < 1e-5 * double.norm()


def test_slices_of_a_ring_are_its_slots() -> None:
    for first in range(5):
        for n in range(1, 6):
            slots = [
                (slot, row)
                for s, r in ring_slices(first, n, 5)
                for slot, row in zip(range(5)[s], range(n)[r], strict=True)
            ]
            assert slots == [((first + row) % 5, row) for row in range(n)]
