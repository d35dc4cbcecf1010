"""Closed forms, the general Matérn formula and dense normal densities as oracles of kernels and evidence."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from optex_rl.common.errors import NotPositiveDefiniteError, NumericalWarning
from optex_rl.optimizer.estimator.kernels import (
    KERNELS,
    evidence_loss,
    matern12,
    matern32,
    matern52,
    median_distance,
    rbf,
    safe_cholesky,
)

from .helpers import normal

every_kernel = pytest.mark.parametrize("name", KERNELS)


def distances_of(points: Tensor) -> Tensor:
    return (points[:, None] - points[None]).square().sum(-1).sqrt()


def test_the_evidence_of_kernels_that_are_not_finite() -> None:
    kernels = torch.full((2, 3, 3), math.nan, dtype=torch.float64)
    with pytest.raises(NotPositiveDefiniteError, match="with 18 non-finite entries have no eigendecomposition"):
        evidence_loss(kernels, torch.ones(1, dtype=torch.float64), torch.eye(3, dtype=torch.float64))


def test_values_worked_by_hand() -> None:
    # e⁻¹; (1 + √3)e^−√3 = 2.732051 · 0.176921; (1 + √5 + 5/3)e^−√5 = 4.902735 · 0.106878; e^−1/2
    one = torch.ones(1, dtype=torch.float64)
    values = [float(kernel(one)) for kernel in (matern12, matern32, matern52, rbf)]
    assert values == pytest.approx([0.367879, 0.483358, 0.523994, 0.606531], abs=1e-6)
    assert float(rbf(2 * one)) == pytest.approx(0.135335, abs=1e-6)  # e⁻²


@every_kernel
def test_evidence_is_the_likelihood_of_independent_normal_columns(name: str) -> None:
    """With the best amplitude for each pair put in, −2/d log p and the loss differ by the same constant everywhere."""
    T, d = 6, 4
    distances, gradients = distances_of(normal(T, 3)), normal(T, d, seed=1)
    noises = torch.tensor([1e-3, 0.1, 2.0], dtype=torch.float64)
    kernels = torch.stack([KERNELS[name](distances / lengthscale) for lengthscale in (0.5, 1.0, 3.0)])
    naive = torch.empty(3, 3, dtype=torch.float64)
    for i, kernel in enumerate(kernels):
        for j, noise in enumerate(noises):
            covariance = kernel + noise * torch.eye(T, dtype=torch.float64)
            amplitude = float((torch.linalg.inv(covariance) @ gradients @ gradients.T).trace()) / (T * d)

            def likelihood(a: float, covariance: Tensor = covariance) -> float:
                density = torch.distributions.MultivariateNormal(torch.zeros(T).double(), a * covariance)
                return float(density.log_prob(gradients.T).sum())  # type: ignore[no-untyped-call]

            assert likelihood(amplitude) > max(likelihood(1.05 * amplitude), likelihood(0.95 * amplitude))
            naive[i, j] = -2.0 / d * likelihood(amplitude)
    difference = evidence_loss(kernels, noises, gradients @ gradients.T) - naive
    torch.testing.assert_close(difference, difference[0, 0].expand(3, 3), rtol=0.0, atol=1e-9)


def test_evidence_of_two_points_worked_by_hand() -> None:
    # K + σ²I = [[1.5, .5], [.5, 1.5]], its inverse [[.75, −.25], [−.25, .75]], its determinant 2.
    # Gradients 1 and 3: GGᵀ = [[1, 3], [3, 9]]; trace of the product .75 − .75 − .75 + 6.75 = 6; T log 6 + log 2.
    kernel = torch.tensor([[[1.0, 0.5], [0.5, 1.0]]], dtype=torch.float64)
    gram = torch.tensor([[1.0, 3.0], [3.0, 9.0]], dtype=torch.float64)
    loss = evidence_loss(kernel, torch.tensor([0.5], dtype=torch.float64), gram)
    assert loss.shape == (1, 1)
    assert float(loss) == pytest.approx(2 * math.log(6.0) + math.log(2.0), rel=1e-14)


def test_evidence_of_vanishing_gradients_and_repeated_points_is_finite() -> None:
    noises = torch.tensor([1e-6], dtype=torch.float64)
    assert evidence_loss(torch.ones(2, 4, 4).double(), noises, torch.zeros(4, 4).double()).isfinite().all()


def test_median_of_nonzero_distances() -> None:
    # Points 0, 0, 1, 3 on a line: distances 0, 1, 3, 1, 3, 2; the zero left out, the (lower) median is 2.
    points = torch.tensor([[0.0], [0.0], [1.0], [3.0]], dtype=torch.float64)
    assert median_distance(distances_of(points)) == 2.0
    assert median_distance(torch.zeros(3, 3)) == 0.0


def test_cholesky_adds_nothing_where_it_need_not() -> None:
    matrices = torch.stack([matern52(distances_of(normal(6, 2, seed=s))) for s in (0, 1)])
    assert torch.equal(safe_cholesky(matrices), torch.linalg.cholesky(matrices))


def test_jitter_is_announced_with_its_size() -> None:
    ones = torch.ones(3, 3, dtype=torch.float64)
    with pytest.warns(NumericalWarning, match=r"added jitter 1e-10"):
        factor = safe_cholesky(ones)
    assert torch.equal(ones, torch.ones_like(ones))
    torch.testing.assert_close(factor @ factor.T, ones, rtol=0.0, atol=2e-10)


@pytest.mark.parametrize("jitter", [1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4])
def test_jitter_grows_to_what_is_needed(jitter: float) -> None:
    matrix = torch.ones(2, 2, dtype=torch.float64) - 0.5 * jitter * torch.eye(2, dtype=torch.float64)
    with pytest.warns(NumericalWarning, match=f"added jitter {jitter:.0e}"):
        safe_cholesky(matrix)


def test_jitter_has_a_limit() -> None:
    with pytest.raises(NotPositiveDefiniteError, match=r"\(2, 2\) is not positive definite with jitter 1e-04"):
        safe_cholesky(torch.tensor([[1.0, 2.0], [2.0, 1.0]], dtype=torch.float64))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_matrices_that_are_not_finite_are_refused_without_jitter(value: float) -> None:
    matrix = torch.eye(3, dtype=torch.float64)
    matrix[1, 0] = matrix[0, 1] = value
    with pytest.raises(NotPositiveDefiniteError, match=r"\(3, 3\) has 2 non-finite"):  # a warning would fail, too
        safe_cholesky(matrix)
