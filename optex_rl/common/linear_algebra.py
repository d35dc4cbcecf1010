"""Products with curvature, and linear systems: pure functions.

Axes: ``d`` parameters, ``S`` probes, ``B`` rows of a batch, ``A`` inputs of a distribution.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, vjp, vmap


def _vjp(function: Callable[[Tensor], Tensor], point: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """The value of a function of one tensor, and its pullback: cotangent → Jᵀ times cotangent."""
    result: Any = vjp(function, point)
    return result[0], lambda cotangent: result[1](cotangent)[0]


def hessian_products(loss: Callable[[Tensor], Tensor], point: Tensor, vectors: Tensor) -> Tensor:
    """H v for the rows of ``vectors [S, d]``, ``[S, d]``, H being the Hessian of ``loss`` at ``point [d]``.

    Reverse over reverse, which is the faster order where it was measured; H is symmetric.
    """
    _, pullback = _vjp(grad(loss), point)
    products: Tensor = vmap(pullback)(vectors)
    return products


def hutchinson_diagonal(loss: Callable[[Tensor], Tensor], point: Tensor, probes: Tensor) -> Tensor:
    """Estimate of the diagonal of the Hessian, ``[d]``: mean of z ⊙ H z over the probes z, the rows of ``[S, d]``.

    Unbiased for probes with independent entries of mean 0 and variance 1 (Bekas, Kokiopoulou and Saad, 2007); exact for
    a diagonal Hessian and probes of ±1. AdaHessian (Yao et al., 2021, arXiv 2006.00719, Sec. 3.2) takes one probe.
    """
    return (probes * hessian_products(loss, point, probes)).mean(0)


def rademacher(samples: int, like: Tensor, generator: torch.Generator) -> Tensor:
    """Probes of ±1, ``[S, d]``, for ``like [d]``; drawn on the CPU, so that all devices get the same ones."""
    signs = torch.randint(0, 2, (samples, *like.shape), generator=generator)
    return (2 * signs - 1).to(like)


def spatial_average(diagonal: Tensor) -> Tensor:
    """Mean of |h| over the spatial axes of a convolution's kernel ``[out, in, *k]``; other tensors as they are.

    AdaHessian's block averaging (arXiv 2006.00719, Eq. 10): there the diagonal is smoothed within each filter.
    """
    if diagonal.dim() < 3:
        return diagonal
    return diagonal.abs().mean(tuple(range(2, diagonal.dim())), keepdim=True).expand_as(diagonal).contiguous()


def fisher_product(
    outputs: Callable[[Tensor], Tensor], metric: Callable[[Tensor, Tensor], Tensor], point: Tensor
) -> Callable[[Tensor], Tensor]:
    """v ``[d]`` → F v ``[d]``, F being the Fisher matrix of a predictive distribution, mean over the rows of a batch.

    F = 1/B Σ_b J_bᵀ M_b J_b with J_b the Jacobian of row b of the outputs and M_b the Fisher matrix of the distribution
    in terms of its inputs, hence exact, without sampling (Schulman et al., 2015, arXiv 1502.05477, App. C). J v is the
    pullback of the pullback, which is linear: two backward passes for each v, and no forward pass.

    Args:
        outputs: θ ``[d]`` → inputs of the distribution ``[B, A]``.
        metric: (inputs, tangents) → M times tangents, all ``[B, A]``.
        point: θ ``[d]``.
    """
    inputs, pullback = _vjp(outputs, point)
    _, pushforward = _vjp(pullback, torch.zeros_like(inputs))
    return lambda vector: pullback(metric(inputs, pushforward(vector)) / len(inputs))


def conjugate_gradients(product: Callable[[Tensor], Tensor], target: Tensor, iterations: int) -> Tensor:
    """Approximate solution x ``[d]`` of A x = ``target [d]``, from x = 0 (Hestenes and Stiefel, 1952).

    Args:
        product: x → A x; A symmetric and positive definite.
        target: right-hand side.
        iterations: the most products; it stops earlier once the residual is negligible.
    """
    x, residual = torch.zeros_like(target), target.clone()
    direction, squared = residual.clone(), residual.dot(residual)
    negligible = squared * torch.finfo(target.dtype).eps ** 2
    for _ in range(iterations):
        if squared <= negligible:
            break
        image = product(direction)
        step = squared / direction.dot(image)
        x += step * direction
        residual -= step * image
        previous, squared = squared, residual.dot(residual)
        direction = residual + squared / previous * direction
    return x
