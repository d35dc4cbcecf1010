"""Curvature against dense matrices and other libraries: Hessians, Fisher matrices, natural gradient, K-FAC."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor, nn
from torch.distributions import Categorical as TorchCategorical
from torch.distributions import Normal, kl_divergence

from optex_rl import ConfigError
from optex_rl.agents import Categorical, DiagonalGaussian, MlpPolicy, StackedPolicy
from optex_rl.bases import Objective, make_base
from optex_rl.bases.flat import FlatBase
from optex_rl.bases.kfac import KFAC, _Likelihood, damped_inverses, inverse, layer_factors, precondition_layer
from optex_rl.bases.natural import NaturalGradient
from optex_rl.common.linear_algebra import (
    conjugate_gradients,
    hessian_products,
    hutchinson_diagonal,
    rademacher,
    spatial_average,
)
from optex_rl.common.torch_private import flatten

from .helpers import stream

OBS = Box(-1.0, 1.0, (3,))
ACTIONS = {"discrete": Discrete(3), "continuous": Box(-1.0, 1.0, (2,))}
every_space = pytest.mark.parametrize("space", ACTIONS)


def dense_hessian(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Reverse over reverse: the first use of forward mode makes torch warn of its own code."""
    return torch.func.jacrev(torch.func.grad(function))


def quartic(point: Tensor) -> Tensor:
    """A scalar function with a dense Hessian."""
    return (point.outer(point).square().sum() + torch.tanh(point).prod() + (point[1:] * point[:-1]).sum()) / 2


def test_hessian_products_are_those_with_the_dense_hessian() -> None:
    point, vectors = (torch.randn(*shape, dtype=torch.float64, generator=stream()) for shape in ((5,), (3, 5)))
    hessian = dense_hessian(quartic)(point)
    torch.testing.assert_close(hessian_products(quartic, point, vectors), vectors @ hessian)


def test_hutchinson_is_exact_for_a_diagonal_hessian() -> None:
    curvature = torch.tensor([1.0, -2.0, 0.0, 5.0])
    probes = rademacher(1, curvature, stream())
    diagonal = hutchinson_diagonal(lambda p: 0.5 * (curvature * p.square()).sum(), torch.ones(4), probes)
    torch.testing.assert_close(diagonal, curvature)


def test_hutchinson_is_exact_over_all_unit_vectors() -> None:
    point = torch.randn(5, dtype=torch.float64, generator=stream())
    exact = dense_hessian(quartic)(point).diagonal()
    torch.testing.assert_close(5 * hutchinson_diagonal(quartic, point, torch.eye(5, dtype=torch.float64)), exact)


def test_hutchinson_is_unbiased() -> None:
    point = torch.randn(5, dtype=torch.float64, generator=stream())
    hessian = dense_hessian(quartic)(point)
    estimate = hutchinson_diagonal(quartic, point, rademacher(20_000, point, stream(1)))
    # The variance of one probe's estimate at i is the sum of the squares of the off-diagonal entries of row i.
    deviation = ((hessian - hessian.diagonal().diag()).square().sum(1) / 20_000).sqrt()
    assert ((estimate - hessian.diagonal()).abs() < 5 * deviation).all()


def test_probes_are_signs() -> None:
    probes = rademacher(1_000, torch.zeros(3, dtype=torch.float64), stream())
    assert probes.shape == (1_000, 3)
    assert probes.dtype == torch.float64
    assert probes.square().eq(1).all()
    assert probes.mean().abs() < 0.1


def test_spatial_averages() -> None:
    assert torch.equal(spatial_average(torch.tensor([[1.0, -2.0]])), torch.tensor([[1.0, -2.0]]))
    kernel = torch.tensor([[[[1.0, -3.0], [2.0, 2.0]]]])
    assert torch.equal(spatial_average(kernel), torch.full((1, 1, 2, 2), 2.0))


def test_conjugate_gradients_solve() -> None:
    factor = torch.randn(6, 6, dtype=torch.float64, generator=stream())
    A, b = factor @ factor.T + torch.eye(6, dtype=torch.float64), torch.arange(6.0, dtype=torch.float64)
    torch.testing.assert_close(conjugate_gradients(lambda v: A @ v, b, 6), torch.linalg.solve(A, b))
    assert torch.equal(conjugate_gradients(lambda v: A @ v, torch.zeros_like(b), 6), torch.zeros_like(b))
    # One iteration is steepest descent with an exact line search.
    torch.testing.assert_close(conjugate_gradients(lambda v: A @ v, b, 1), b * b.dot(b) / b.dot(A @ b))


def policy_of(space: str, critic: bool = True) -> MlpPolicy:
    policy = MlpPolicy(OBS, ACTIONS[space], net_arch=(4,), critic=critic, generator=stream(3)).double()
    with torch.no_grad():
        for parameter in policy.parameters():  # heads of gain .01 make nearly uniform policies, and biases are 0
            parameter.add_(0.5 * torch.randn(parameter.shape, dtype=torch.float64, generator=stream(parameter.numel())))
    return policy


def observations() -> Tensor:
    return torch.randn(7, 3, dtype=torch.float64, generator=stream(5))


def distribution_at(policy: MlpPolicy, inputs: Tensor) -> Any:
    if isinstance(policy.distribution, Categorical):
        return TorchCategorical(logits=inputs)
    mean, log_std = inputs.chunk(2, -1)
    return Normal(mean, log_std.exp())


def dense_fisher(policy: MlpPolicy) -> Tensor:
    """The Hessian of the mean KL divergence, and of half the squared change of the values, where both are 0."""
    stacked, obs = StackedPolicy(policy), observations()
    here = flatten(list(policy.parameters()))

    def divergence(point: Tensor) -> Tensor:
        old, new = (stacked.bind(p[None], transforms=True) for p in (here, point))
        pair = (distribution_at(policy, bound.actor(obs[None])[0]) for bound in (old, new))
        total = kl_divergence(*pair).sum() / len(obs)
        if policy.has_critic:
            total = total + 0.5 * (new.critic(obs[None]) - old.critic(obs[None]).detach()).square().sum() / len(obs)
        return total

    hessian: Tensor = dense_hessian(divergence)(here)
    return hessian


def bound_base(name: str, policy: Any, lr: float = 1.0, obs: Tensor | None = None, seed: int = 0, **kwargs: Any) -> Any:
    base: Any = make_base(name, policy.parameters(), lr, kwargs)
    base.bind(Objective(policy=policy, observations=lambda batch: batch))
    base.refresh(observations() if obs is None else obs, stream(seed))
    return base


@every_space
@pytest.mark.parametrize("critic", [True, False])
def test_the_fisher_product_is_that_with_the_dense_matrix(space: str, critic: bool) -> None:
    policy = policy_of(space, critic)
    fisher = dense_fisher(policy)
    product = bound_base("natural", policy)._fisher(observations())
    vectors = torch.randn(3, len(fisher), dtype=torch.float64, generator=stream(9))
    torch.testing.assert_close(torch.stack([product(v) for v in vectors]), vectors @ fisher)


@every_space
def test_a_natural_step_solves_with_the_fisher_matrix(space: str) -> None:
    policy = policy_of(space)
    fisher, before = dense_fisher(policy), flatten(list(policy.parameters()))
    gradient = torch.randn(len(fisher), dtype=torch.float64, generator=stream(2))
    damped = fisher + 0.01 * torch.eye(len(fisher), dtype=torch.float64)
    base = bound_base("natural", policy, lr=0.5, damping=0.01, cg_iterations=300)
    FlatBase(base).step(gradient)
    expected = before - 0.5 * torch.linalg.solve(damped, gradient)
    torch.testing.assert_close(flatten(list(policy.parameters())), expected, rtol=1e-6, atol=1e-8)


@every_space
def test_a_limited_step_leads_as_far_as_the_limit(space: str) -> None:
    """Half of the squared length in the damped matrix is the divergence; steps that are shorter stay as they are."""
    policy = policy_of(space)
    fisher, before = dense_fisher(policy), flatten(list(policy.parameters()))
    gradient = torch.randn(len(fisher), dtype=torch.float64, generator=stream(2))
    damped = fisher + 0.01 * torch.eye(len(fisher), dtype=torch.float64)
    options: dict[str, Any] = {"damping": 0.01, "cg_iterations": 300}
    FlatBase(bound_base("natural", policy, lr=0.5, target_kl=1e-4, **options)).step(gradient)
    step = flatten(list(policy.parameters())) - before
    torch.testing.assert_close(0.5 * step @ damped @ step, torch.tensor(1e-4, dtype=torch.float64))
    direction = -torch.linalg.solve(damped, gradient)
    torch.testing.assert_close(step / step.norm(), direction / direction.norm(), rtol=1e-6, atol=1e-8)
    free, bound = policy_of(space), policy_of(space)
    FlatBase(bound_base("natural", free, lr=1e-4, **options)).step(gradient)
    FlatBase(bound_base("natural", bound, lr=1e-4, target_kl=1e-4, **options)).step(gradient)
    assert torch.equal(flatten(list(free.parameters())), flatten(list(bound.parameters())))
    with pytest.raises(ValueError, match="target_kl must be positive or None, got 0"):
        NaturalGradient(policy.parameters(), target_kl=0.0)


def test_the_natural_step_holds_frozen_parameters_fixed_in_the_matrix_too() -> None:
    policy = policy_of("discrete", critic=False)
    fisher, before = dense_fisher(policy), flatten(list(policy.parameters()))
    frozen = policy.actor_net[0].weight
    frozen.requires_grad_(False)
    free = torch.cat([torch.full((p.numel(),), p is not frozen) for p in policy.parameters()])
    gradient = torch.ones_like(before)
    FlatBase(bound_base("natural", policy, damping=0.01, cg_iterations=300)).step(gradient)
    damped = (fisher + 0.01 * torch.eye(len(fisher), dtype=torch.float64))[free][:, free]
    after = flatten(list(policy.parameters()))
    assert torch.equal(after[~free], before[~free])
    torch.testing.assert_close(before[free] - after[free], torch.linalg.solve(damped, gradient[free]))


def test_the_matrix_stays_until_the_next_refresh() -> None:
    policy = policy_of("discrete")
    base = bound_base("natural", policy, lr=0.1)
    gradient = torch.ones_like(flatten(list(policy.parameters())))
    points = [flatten(list(policy.parameters()))]
    for refreshed in (False, False, True):
        if refreshed:
            base.refresh(observations(), stream())
        FlatBase(base).step(gradient)
        points.append(flatten(list(policy.parameters())))
    first, second, third = (b - a for a, b in itertools.pairwise(points))
    torch.testing.assert_close(first, second)
    assert (first - third).norm() > 1e-3 * first.norm()


# K-FAC


@every_space
def test_factors_step_as_the_inverse_of_curvlinops_does(space: str) -> None:
    from curvlinops import (
        KFACInverseLinearOperator,
        KFACLinearOperator,
    )  # optex_rl.bases.kfac has muted what its import warns

    policy = policy_of(space)
    network, obs = _Likelihood(policy, critic=False), observations()
    weights = [m.weight for m in policy.actor_net if isinstance(m, nn.Linear)]
    classes = torch.zeros(7, dtype=torch.long) if space == "discrete" else torch.zeros(7, 2, dtype=torch.float64)
    theirs = KFACLinearOperator(network, network.loss, weights, [(obs, classes)], seed=4, check_deterministic=False)
    inverse_operator = KFACInverseLinearOperator(theirs, damping=0.1, use_heuristic_damping=True)
    gradients = [torch.randn(w.shape, dtype=torch.float64, generator=stream(i)) for i, w in enumerate(weights)]
    expected = inverse_operator @ gradients
    for (_, A, G), gradient, want in zip(layer_factors(network, obs, seed=4), gradients, expected, strict=True):
        inputs, outputs = damped_inverses(A, G, 0.1)
        torch.testing.assert_close(precondition_layer(gradient, outputs, inputs), want)


@pytest.mark.parametrize("critic", [False, True])
@every_space
def test_factors_of_one_layer_are_those_of_its_distribution(space: str, critic: bool) -> None:
    """With one layer, A is the mean of x xᵀ, and G the distribution's own Fisher matrix, but for sampled actions."""
    policy = MlpPolicy(OBS, ACTIONS[space], net_arch=(), log_std_init=-0.7, generator=stream())
    obs = torch.randn(20_000, 3, generator=stream(1))
    ((_, A, G),) = layer_factors(_Likelihood(policy, critic), obs, seed=0)
    torch.testing.assert_close(A, obs.T @ obs / len(obs))
    if critic:
        expected = torch.ones(1, 1)
    elif space == "discrete":
        probs = policy.actor(obs).softmax(-1).detach()
        expected = (probs.mean(0)).diag() - probs.T @ probs / len(obs)
    else:
        expected = torch.eye(2) * np.exp(2 * 0.7)
    torch.testing.assert_close(G, expected, rtol=0.05, atol=0.1)


def test_a_kfac_step_worked_by_hand() -> None:
    # G⁻¹ = 1 / (3 + 1), A⁻¹ = diag(1/2, 1/4): W steps by 1/4 · (8, 8) · A⁻¹ = (1, .5), and b by 8 / 4 = 2.
    layer = nn.Linear(2, 1)
    base = KFAC(layer.parameters(), lr=1.0, damping=1.0)
    outputs = inverse(torch.tensor([[3.0]]), 1.0)
    base.state[layer.weight].update(input=torch.tensor([[0.5, 0.0], [0.0, 0.25]]), output=outputs)
    base.state[layer.bias].update(output=outputs)
    before = flatten([layer.weight, layer.bias])
    FlatBase(base).step(torch.full((3,), 8.0))
    torch.testing.assert_close(before - flatten([layer.weight, layer.bias]), torch.tensor([1.0, 0.5, 2.0]))


def test_log_standard_deviations_have_the_fisher_matrix_two() -> None:
    policy = policy_of("continuous")
    base = bound_base("kfac", policy, damping=0.5)
    before = flatten(list(policy.parameters()))
    FlatBase(base).step(torch.ones_like(before))
    log_std = dict(policy.named_parameters())["actor_net.gaussian.log_std"]
    position = flatten([torch.full_like(p, float(p is log_std)) for p in policy.parameters()]).bool()
    step = before - flatten(list(policy.parameters()))
    torch.testing.assert_close(step[position], torch.full((2,), 1 / 2.5, dtype=torch.float64))


class Shared(nn.Module):
    """Actor and critic with a convolution in common, and one layer that K-FAC may or may not know."""

    has_critic = True
    distribution = Categorical(2)

    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        self.trunk = nn.Conv2d(1, 2, 2)
        self.heads = nn.ModuleList([nn.Linear(8, 2), nn.Linear(8, 1)])
        self.norm = nn.LayerNorm(8) if norm else nn.Identity()

    def features(self, obs: Tensor) -> Tensor:
        return self.norm(torch.tanh(self.trunk(obs.view(-1, 1, 3, 3))).flatten(1))  # type: ignore[no-any-return]

    def actor(self, obs: Tensor) -> Tensor:
        return self.heads[0](self.features(obs))  # type: ignore[no-any-return]

    def critic(self, obs: Tensor) -> Tensor:
        return self.heads[1](self.features(obs))[:, 0]  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", ["kfac", "natural"])
def test_shared_layers_and_convolutions(name: str) -> None:
    policy = Shared()
    base = bound_base(name, policy, 0.1, torch.randn(32, 9, generator=stream()))
    before = flatten(list(policy.parameters()))
    gradient = torch.randn(before.shape, generator=stream(1))
    FlatBase(base).step(gradient)
    step = before - flatten(list(policy.parameters()))
    assert step.isfinite().all()
    assert step @ gradient > 0, "a positive definite preconditioner keeps the gradient's side"


def test_factors_of_a_shared_layer_add_up() -> None:
    policy, obs = Shared(), torch.randn(32, 9, generator=stream())
    base = bound_base("kfac", policy, 0.1, obs, seed=4)
    generator, G = stream(4), torch.zeros(2, 2)
    for critic in (False, True):
        seed = int(torch.randint(2**31, (), generator=generator))
        G += next(
            part for layer, _, part in layer_factors(_Likelihood(policy, critic), obs, seed) if layer is policy.trunk
        )
    torch.testing.assert_close(base.state[policy.trunk.bias]["output"], inverse(G, 0.1))


@pytest.mark.parametrize("name", ["kfac", "natural"])
@every_space
def test_the_actor_alone_steps_as_it_does_beside_its_critic(name: str, space: str) -> None:
    """Actor and critic share no layer: the Fisher matrix is in two blocks, and the actor's is its own."""
    policies = [policy_of(space) for _ in range(2)]
    for policy, whole in zip(policies, (True, False), strict=True):
        parameters = list((policy if whole else policy.actor_net).parameters())
        kwargs = {"cg_iterations": 200} if name == "natural" else {}  # to the exact solution
        base: Any = make_base(name, parameters, 0.1, kwargs)
        base.bind(Objective(policy=policy, observations=lambda batch: batch))
        base.refresh(observations(), stream(4))
        for index, parameter in enumerate(policy.actor_net.parameters()):
            parameter.grad = torch.randn(parameter.shape, dtype=parameter.dtype, generator=stream(index))
        for parameter in policy.critic_net.parameters():
            parameter.grad = torch.zeros_like(parameter) if whole else None
        base.step()
    for one, other in zip(policies[0].parameters(), policies[1].parameters(), strict=True):
        torch.testing.assert_close(one, other)


class Beta:
    """A distribution without a known Fisher matrix."""

    input_size = 2


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("kfac", {"norm": True}, r"K-FAC knows linear and convolutional layers, and 'norm\.weight' is in none"),
        ("kfac", {"distribution": Beta()}, "K-FAC knows Categorical and DiagonalGaussian, not Beta"),
        ("kfac", {"distribution": DiagonalGaussian(1, -np.ones(1), np.ones(1))}, "to be a parameter named log_std"),
        ("natural", {"distribution": Beta()}, "needs a distribution with fisher_product, and Beta has none"),
    ],
)
def test_what_cannot_be_bound(name: str, change: dict[str, Any], message: str) -> None:
    policy = Shared(norm="norm" in change)
    vars(policy).update({k: v for k, v in change.items() if k != "norm"})
    base: Any = make_base(name, policy.parameters(), 0.1)
    with pytest.raises(ConfigError, match=message):
        base.bind(Objective(policy=policy))


@pytest.mark.parametrize("cls", [KFAC, NaturalGradient])
def test_misuse_is_one_sentence(cls: Any) -> None:
    policy = policy_of("discrete")
    base = cls(policy.parameters(), lr=0.1)
    for parameter in policy.parameters():
        parameter.grad = torch.ones_like(parameter)
    with pytest.raises(ConfigError, match=r"needs a batch: call refresh\(batch, generator\) before a step"):
        base.step()
    with pytest.raises(ConfigError, match=r"needs the policy: call bind\(objective\), after loading as well"):
        base.refresh(observations(), stream())
    with pytest.raises(ConfigError, match="needs the policy: bind an Objective with one"):
        base.bind(Objective())
    with pytest.raises(ConfigError, match="must have parameters of the policy, in the order"):
        cls(list(policy.parameters())[::-1], lr=0.1).bind(Objective(policy=policy))
    with pytest.raises(ConfigError, match="must have parameters of the policy, in the order"):
        cls([*policy.parameters(), nn.Parameter(torch.zeros(1))], lr=0.1).bind(Objective(policy=policy))
    with pytest.raises(ConfigError, match="damping must be positive, got 0"):
        make_base(cls, policy.parameters(), 0.1, {"damping": 0})
    with pytest.raises(ConfigError, match="lr must be at least 0, got -1"):
        make_base(cls, policy.parameters(), -1.0)
