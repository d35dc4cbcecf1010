"""Bases against the formulas of their papers, written out here, in float64; and what the libraries do differently."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import pytorch_optimizer
import torch
from torch import Tensor
from torch.nn import Parameter

from optex_rl.bases import make_base
from optex_rl.bases.flat import FlatBase

STEPS = 6
LR = 0.1


def gradients(like: Tensor) -> list[Tensor]:
    generator = torch.Generator().manual_seed(11)
    return [torch.randn(like.shape, dtype=torch.float64, generator=generator) for _ in range(STEPS)]


def start(dims: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(12)
    return torch.randn(*([3] * dims), dtype=torch.float64, generator=generator)


def ours(name: str, x: Tensor, **kwargs: Any) -> Tensor:
    """Where a base by name goes with `gradients`."""
    parameter = Parameter(x.clone())
    base = FlatBase(make_base(name, [parameter], LR, kwargs))
    for g in gradients(x):
        base.step(g.flatten())
    return parameter.detach()


def nadam(x: Tensor) -> Tensor:
    """Dozat (2016), Algorithm 8, with the schedule μ_t = .9 (1 − .5 · .96^(t/250))."""
    m, n, product = torch.zeros_like(x), torch.zeros_like(x), 1.0
    for t, g in enumerate(gradients(x), 1):
        mu, following = (0.9 * (1 - 0.5 * 0.96 ** (k * 0.004)) for k in (t, t + 1))
        product *= mu
        m, n = 0.9 * m + 0.1 * g, 0.999 * n + 0.001 * g * g
        m_hat = following * m / (1 - product * following) + (1 - mu) * g / (1 - product)
        x = x - LR * m_hat / ((n / (1 - 0.999**t)).sqrt() + 1e-8)
    return x


def novograd(x: Tensor) -> Tensor:
    """Ginsburg et al. (2019, arXiv 1905.11286), Algorithm 1, without weight decay; one layer."""
    v, m = gradients(x)[0].square().sum(), torch.zeros_like(x)
    for t, g in enumerate(gradients(x)):
        if t > 0:
            v = 0.98 * v + 0.02 * g.square().sum()
        m = 0.95 * m + g / (v.sqrt() + 1e-8)
        x = x - LR * m
    return x


def lars(x: Tensor) -> Tensor:
    """You et al. (2017, arXiv 1708.03888), Algorithm 1, without weight decay: η = .001, momentum .9; 1-D: plain."""
    v = torch.zeros_like(x)
    for g in gradients(x):
        local = 0.001 * x.norm() / g.norm() if x.dim() > 1 else 1.0
        v = 0.9 * v + local * g
        x = x - LR * v
    return x


def lamb(x: Tensor, decay: float = 0.1) -> Tensor:
    """You et al. (2020, arXiv 1904.00962), version 3, without bias correction; φ(z) = min(z, 10)."""
    m, v = torch.zeros_like(x), torch.zeros_like(x)
    for g in gradients(x):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        update = m / (v.sqrt() + 1e-6) + decay * x
        x = x - LR * x.norm().clamp(max=10) / update.norm() * update
    return x


@pytest.mark.parametrize("formula", [nadam, novograd, lars])
@pytest.mark.parametrize("dims", [1, 2])
def test_bases_follow_their_papers(formula: Callable[[Tensor], Tensor], dims: int) -> None:
    # torch's NAdam keeps the product of the momenta in float32: hence 1e-8.
    torch.testing.assert_close(ours(formula.__name__, start(dims)), formula(start(dims)), rtol=1e-6, atol=1e-8)


def test_lamb_follows_its_paper_with_our_defaults() -> None:
    # pytorch_optimizer adds its eps to the norm of the update, too: hence 1e-6.
    torch.testing.assert_close(ours("lamb", start(), weight_decay=0.1), lamb(start()), rtol=1e-6, atol=1e-7)


def test_adahessian_follows_its_paper() -> None:
    """Yao et al. (2021, arXiv 2006.00719), Algorithm 1, k = 1: Adam whose second moment is that of the diagonal."""
    x = start()
    parameter, diagonals = Parameter(x.clone()), [g.flip(0) for g in gradients(x)]
    base = make_base("adahessian", [parameter], LR)
    m, v = torch.zeros_like(x), torch.zeros_like(x)
    for t, (g, h) in enumerate(zip(gradients(x), diagonals, strict=True), 1):
        base.state[parameter]["hessian"] = h.clone()
        FlatBase(base).step(g.flatten())
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * h * h
        x = x - LR * (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-4)
    torch.testing.assert_close(parameter.detach(), x, rtol=1e-10, atol=1e-12)


# What the libraries do differently, so that a new version which changes it is noticed.


def test_lamb_of_the_library_divides_the_step_by_the_bias_correction() -> None:
    parameter = Parameter(start())
    before = parameter.detach().clone()
    base = pytorch_optimizer.Lamb([parameter], lr=LR)
    for t, g in enumerate(gradients(before)[:3], 1):
        parameter.grad = g.clone()
        base.step()
        relative = float((parameter.detach() - before).norm() / before.norm())
        assert relative == pytest.approx(LR / (1 - 0.9**t), rel=1e-3)
        before = parameter.detach().clone()


@pytest.mark.parametrize("name", ["lars", "novograd"])
def test_bases_that_overwrite_the_gradient(name: str) -> None:
    parameter = Parameter(start())
    parameter.grad = torch.ones_like(parameter)
    make_base(name, [parameter], LR).step()
    assert not torch.equal(parameter.grad, torch.ones_like(parameter))


@pytest.mark.parametrize("name", ["lars", "lamb", "novograd", "adahessian"])
def test_bases_that_count_their_steps_in_the_group(name: str) -> None:
    parameter = Parameter(start())
    base = make_base(name, [parameter], LR)
    base.state[parameter].update({"hessian": torch.ones_like(parameter)} if name == "adahessian" else {})
    for count in (1, 2):
        parameter.grad = torch.ones_like(parameter)
        base.step()
        assert base.param_groups[0]["step"] == count


@pytest.mark.parametrize("name", ["lamb", "novograd"])
def test_copies_lose_the_attributes_of_the_library_unless_a_flat_base_carries_them(name: str) -> None:
    parameter = Parameter(start())
    base = make_base(name, [parameter], LR)
    parameter.grad = torch.ones_like(parameter)
    with pytest.raises(AttributeError):
        copy.deepcopy(base).step()
    for copied in (copy.deepcopy(FlatBase(base)), pickle.loads(pickle.dumps(FlatBase(base)))):
        copied.step(torch.ones(9, dtype=torch.float64))
        assert not torch.equal(copied.parameters[0], parameter)
