"""Kernels of the gradient posterior and the evidence for their hyper-parameters: pure functions.

Notation: ``T`` points in the history, ``L`` length scales, ``S`` noise levels. Everything here is ``float64``.
The prior over gradients is separable (Shu et al., 2024, arXiv 2402.11427, Sec. 4.1): one scalar kernel ``a k(θ, θ')``
with amplitude ``a`` for every coordinate, and ``k(θ, θ) = 1``. Noise is measured in units of the amplitude.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from ...common.errors import NotPositiveDefiniteError, NumericalWarning

JITTER_START: Final = 1e-10
JITTER_LIMIT: Final = 1e-4


def matern12(r: Tensor) -> Tensor:
    """Matérn kernel with ν = 1/2 of distances ``r = ‖θ − θ'‖ / ℓ``, ``[…]`` (Rasmussen & Williams, 2006, eq. 4.18)."""
    return torch.exp(-r)


def matern32(r: Tensor) -> Tensor:
    """Matérn kernel with ν = 3/2 of scaled distances ``r``, ``[…]`` (Rasmussen & Williams, 2006, eq. 4.17)."""
    z = math.sqrt(3.0) * r
    return (1.0 + z) * torch.exp(-z)


def matern52(r: Tensor) -> Tensor:
    """Matérn kernel with ν = 5/2 of scaled distances ``r``, ``[…]`` (Rasmussen & Williams, 2006, eq. 4.17)."""
    z = math.sqrt(5.0) * r
    return (1.0 + z + z * z / 3.0) * torch.exp(-z)


def rbf(r: Tensor) -> Tensor:
    """Squared-exponential kernel of scaled distances ``r``, ``[…]`` (Rasmussen & Williams, 2006, eq. 4.9)."""
    return torch.exp(-0.5 * r * r)


KERNELS: Final[dict[str, Callable[[Tensor], Tensor]]] = {
    "matern12": matern12,
    "matern32": matern32,
    "matern52": matern52,
    "rbf": rbf,
}


def evidence_loss(kernels: Tensor, noises: Tensor, gram: Tensor) -> Tensor:
    """Negative log marginal likelihood of the history, the amplitude maximised out, up to constants.

    With ``d`` independent coordinates ``log p = −d/2 log|a(K + σ²I)| − tr((K + σ²I)⁻¹ GGᵀ) / (2a)``. Its maximum over
    the amplitude ``a`` leaves, times ``−2/d``, ``T log tr((K + σ²I)⁻¹ GGᵀ) + log|K + σ²I|``: nothing of size ``d``.
    One eigendecomposition for each length scale serves every noise level.

    Args:
        kernels: kernel matrices, one for each length scale, ``[L, T, T]``.
        noises: noise levels σ², positive, ``[S]``.
        gram: inner products of the gradients ``GGᵀ``, ``[T, T]``.

    Returns:
        The loss of each pair, ``[L, S]``.

    Raises:
        NotPositiveDefiniteError: the eigendecomposition fails, as it does where entries are not finite.
    """
    T = gram.shape[-1]
    try:
        eigenvalues, Q = torch.linalg.eigh(kernels)
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]  # documented, but not in its stub
        bad = int((~torch.isfinite(kernels)).sum())
        raise NotPositiveDefiniteError(
            f"kernel matrices of shape {tuple(kernels.shape)} with {bad} non-finite entries have no eigendecomposition"
        ) from error
    energy = (Q * (gram @ Q)).sum(-2)  # diag(Qᵀ GGᵀ Q), [L, T]
    spectrum = eigenvalues.clamp_min(0.0).unsqueeze(1) + noises[:, None]  # [L, S, T]
    fit = (energy.unsqueeze(1) / spectrum).sum(-1).clamp_min(torch.finfo(gram.dtype).tiny)
    loss: Tensor = T * fit.log() + spectrum.log().sum(-1)
    return loss


def median_distance(distances: Tensor) -> float:
    """Median of the non-zero entries of ``distances [T, T]``: the usual heuristic for a length scale.

    Returns 0.0 where all points coincide.
    """
    positive = distances[distances > 0]
    return float(positive.median()) if positive.numel() else 0.0


def safe_cholesky(matrix: Tensor) -> Tensor:
    """Lower Cholesky factor of a kernel matrix ``[..., T, T]``, with jitter only where it does not factorise without.

    Raises:
        NotPositiveDefiniteError: ``matrix`` holds non-finite values, or the largest jitter does not help.

    Warns:
        NumericalWarning: jitter was added; the message says how much.
    """
    factor: Tensor
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if not failed.any():
        return factor
    bad = int((~torch.isfinite(matrix)).sum())
    if bad:
        raise NotPositiveDefiniteError(f"kernel matrix of shape {tuple(matrix.shape)} has {bad} non-finite entries")
    jitter = JITTER_START
    while jitter <= JITTER_LIMIT:
        eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
        factor, failed = torch.linalg.cholesky_ex(matrix + jitter * eye)
        if not failed.any():
            warnings.warn(f"kernel matrix is singular: added jitter {jitter:.0e}", NumericalWarning, stacklevel=2)
            return factor
        jitter *= 10.0
    raise NotPositiveDefiniteError(
        f"kernel matrix of shape {tuple(matrix.shape)} is not positive definite with jitter {JITTER_LIMIT:.0e}; "
        "use a larger noise"
    )
