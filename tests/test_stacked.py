"""Stacked policies against a loop over plain modules, and the initialisation against what it promises."""

from __future__ import annotations

import copy
import math

import gymnasium
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from optex_rl.agents import Categorical, MlpPolicy, StackedPolicy, encode_observations, observation_size
from optex_rl.common.errors import ConfigError

from .networks import SharedExtractor, assert_points_are_separate_policies, points_around

OBS = gymnasium.spaces.Box(-1, 1, (4,))
DISCRETE = gymnasium.spaces.Discrete(3)
BOX = gymnasium.spaces.Box(-1, 1, (2,))


class Subclassed(MlpPolicy):
    """Overrides the actor, so that the MLPs' fast path would be wrong."""

    def actor(self, obs: Tensor) -> Tensor:
        return 2 * super().actor(obs)


def architectures() -> dict[str, nn.Module]:
    generator = torch.Generator().manual_seed(3)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        shared = SharedExtractor(4, 3)
    return {
        "tanh": MlpPolicy(OBS, DISCRETE, generator=generator),
        "box": MlpPolicy(OBS, BOX, (8,), log_std_init=-0.5, generator=generator),
        "relu": MlpPolicy(OBS, DISCRETE, (8, 6, 5), "relu", generator=generator),
        "linear": MlpPolicy(OBS, BOX, (), generator=generator),
        "shared": shared,
        "subclass": Subclassed(OBS, DISCRETE, (8,), generator=generator),
    }


@pytest.mark.parametrize("N", [1, 4])
@pytest.mark.parametrize("name", list(architectures()))
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float32, 1e-5), (torch.float64, 1e-13)])
def test_stacked_equals_separate_with_gradients(name: str, N: int, dtype: torch.dtype, limit: float) -> None:
    policy = architectures()[name].to(dtype)
    obs = torch.randn(N, 7, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    assert_points_are_separate_policies(policy, StackedPolicy(policy), points_around(policy, N), obs, limit)


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("name", ["tanh", "box", "relu"])
def test_derivatives_by_hand_equal_vmap(name: str, again: bool) -> None:
    """The gradient, and that of its product with a vector: what the backward passes by hand do with either."""
    policy = architectures()[name].double()
    general = copy.deepcopy(policy)
    general.__class__ = type("Derived", (MlpPolicy,), {})
    generator = torch.Generator().manual_seed(0)
    obs = torch.randn(3, 5, 4, generator=generator).double()

    def derivative(of: nn.Module) -> Tensor:
        points = points_around(policy, 3).requires_grad_()
        bound = StackedPolicy(of).bind(points)
        loss = bound.actor(obs).pow(3).sum() + bound.critic(obs).pow(3).sum()
        (gradient,) = torch.autograd.grad(loss, points, create_graph=again)
        return torch.autograd.grad((gradient * points.detach()).sum(), points)[0] if again else gradient

    torch.testing.assert_close(derivative(policy), derivative(general), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("name", ["tanh", "box", "relu", "linear", "shared"])
def test_remembered_steps_change_nothing_but_the_work(name: str, again: bool) -> None:
    policy = architectures()[name].double()
    obs = torch.randn(3, 8, 4, generator=torch.Generator().manual_seed(0)).double()

    def derivative(remember: bool) -> tuple[Tensor, Tensor]:
        points = points_around(policy, 3).requires_grad_()
        bound = StackedPolicy(policy).bind(points)
        with torch.no_grad():
            inputs, steps = zip(*(bound.act(part) for part in torch.split(obs, 2, dim=1)), strict=True)
        if remember:
            bound.remember(obs, steps)
        outputs = bound.actor(obs.view_as(obs))
        torch.testing.assert_close(torch.cat(inputs, dim=1), outputs)
        (gradient,) = torch.autograd.grad(outputs.pow(3).sum(), points, create_graph=again)
        gradient = torch.autograd.grad((gradient * points.detach()).sum(), points)[0] if again else gradient
        return outputs.detach(), gradient

    torch.testing.assert_close(derivative(True), derivative(False), rtol=1e-9, atol=1e-9)


def test_only_the_very_tensor_is_remembered() -> None:
    policy = architectures()["tanh"]
    points, obs = points_around(policy, 2), torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0))
    bound = StackedPolicy(policy).bind(points.requires_grad_())
    expected = bound.actor(obs)
    with torch.no_grad():
        _, hidden = bound.act(obs)
    bound.remember(obs, [tuple(torch.zeros_like(layer) for layer in hidden)])
    # With nothing coming from the hidden layers, the head's biases are left.
    biases = StackedPolicy(policy).unflatten(points)["actor_net.4.bias"]
    assert torch.equal(bound.actor(obs), biases.unsqueeze(1).expand(2, 6, 3))
    assert torch.equal(bound.actor(obs.clone()), expected)
    assert torch.equal(bound.actor(obs[:, 2:]), expected[:, 2:])


@pytest.mark.parametrize("name", ["tanh", "shared"])
def test_evaluation_changes_nothing(name: str) -> None:
    policy = architectures()[name]
    before = copy.deepcopy(policy.state_dict())
    points, obs = points_around(policy, 2), torch.ones(2, 5, 4)
    kept = points.clone(), obs.clone()
    stacked = StackedPolicy(policy)
    stacked.actor(points, obs), stacked.critic(points, obs)
    assert torch.equal(points, kept[0])
    assert torch.equal(obs, kept[1])
    assert all(torch.equal(before[key], value) for key, value in policy.state_dict().items())


@pytest.mark.parametrize("name", ["tanh", "shared"])
def test_no_rows_give_no_values(name: str) -> None:
    policy = architectures()[name]
    assert StackedPolicy(policy).critic(points_around(policy, 2), torch.zeros(2, 0, 4)).shape == (2, 0)


def test_unflatten_gives_views_in_the_order_of_the_parameters() -> None:
    policy = architectures()["box"]
    points = points_around(policy, 2)
    stacked = StackedPolicy(policy).unflatten(points)
    assert list(stacked) == [name for name, _ in policy.named_parameters()]
    assert torch.equal(torch.cat([tensor.reshape(2, -1) for tensor in stacked.values()], dim=1), points)
    points.fill_(7)
    assert all((tensor == 7).all() for tensor in stacked.values())


def test_actor_then_log_std_then_critic() -> None:
    policy = MlpPolicy(OBS, BOX, (8,), log_std_init=-0.5)
    groups = dict(policy.parameter_groups())
    assert list(groups) == ["actor", "critic"]
    ordered = [*groups["actor"], *groups["critic"]]
    assert [id(p) for p in ordered] == [id(p) for p in policy.parameters()]
    assert groups["actor"][-1].tolist() == [-0.5, -0.5]
    assert [name for name, _ in MlpPolicy(OBS, BOX, critic=False).parameter_groups()] == ["actor"]


def test_orthogonal_initialisation() -> None:
    # Rows (or columns, whichever are fewer) are orthogonal with norm = gain: W Wᵀ = gain² I, or Wᵀ W = gain² I.
    policy = MlpPolicy(OBS, DISCRETE, (64, 32))
    gains = {"actor_net": [math.sqrt(2), math.sqrt(2), 0.01], "critic_net": [math.sqrt(2), math.sqrt(2), 1.0]}
    for network, expected in gains.items():
        linears = [module for module in policy.get_submodule(network).children() if isinstance(module, nn.Linear)]
        for linear, gain in zip(linears, expected, strict=True):
            weight = linear.weight.detach()
            gram = weight @ weight.T if len(weight) <= weight.shape[1] else weight.T @ weight
            torch.testing.assert_close(gram, gain**2 * torch.eye(len(gram)), rtol=1e-5, atol=1e-5 * gain**2)
            assert not linear.bias.any()


def test_initialisation_draws_from_the_generator_alone() -> None:
    state = torch.random.get_rng_state()
    first, second, third = (
        parameters_to_vector(MlpPolicy(OBS, BOX, generator=torch.Generator().manual_seed(seed)).parameters())
        for seed in (1, 1, 2)
    )
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


def test_discrete_observations_are_one_hot() -> None:
    space = gymnasium.spaces.Discrete(3, start=5)
    encoded = encode_observations(space, np.array([[5, 7]]))
    assert encoded.dtype == np.float32
    assert encoded.tolist() == [[[1, 0, 0], [0, 0, 1]]]
    assert observation_size(space) == 3


@pytest.mark.parametrize("shape", [(), (4,), (2, 3)])
def test_box_observations_are_flattened(shape: tuple[int, ...]) -> None:
    space = gymnasium.spaces.Box(-1, 1, shape, np.float64)
    obs = np.random.default_rng(0).normal(size=(5, 2, *shape))
    encoded = encode_observations(space, obs)
    assert encoded.dtype == np.float32
    assert np.array_equal(encoded, obs.reshape(5, 2, observation_size(space)).astype(np.float32))


def test_wrong_options_are_named() -> None:
    with pytest.raises(ConfigError, match=r"Unknown activation 'gelu': choose one of tanh, relu"):
        MlpPolicy(OBS, DISCRETE, activation="gelu")
    with pytest.raises(ConfigError, match=r"widths of at least 1, got \[64, 0\]"):
        MlpPolicy(OBS, DISCRETE, net_arch=(64, 0))


def test_wrong_points_are_named() -> None:
    stacked = StackedPolicy(MlpPolicy(OBS, DISCRETE, (), critic=False))
    assert stacked.num_parameters == 15
    with pytest.raises(ConfigError, match=r"points \[N, d=15\], got \[2, 14\]"):
        stacked.bind(torch.zeros(2, 14))
    with pytest.raises(ConfigError, match=r"points \[N, d=15\], got \[0, 15\]"):
        stacked.bind(torch.zeros(0, 15))


def test_missing_critics_are_named() -> None:
    policy = MlpPolicy(OBS, DISCRETE, critic=False)
    with pytest.raises(ConfigError, match="critic=False and has no values"):
        policy.critic(torch.zeros(1, 4))
    bound = StackedPolicy(policy).bind(points_around(policy, 1))
    assert not bound.has_critic
    with pytest.raises(ConfigError, match="critic=False and has no values"):
        bound.critic(torch.zeros(1, 1, 4))


class ActorOnly(nn.Module):
    """A user's module with an actor and nothing else."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def actor(self, obs: Tensor) -> Tensor:
        logits: Tensor = self.layer(obs)
        return logits


def test_modules_that_cannot_be_policies_are_named() -> None:
    with pytest.raises(ConfigError, match=r"needs a method actor\(obs\), and Linear has none"):
        StackedPolicy(nn.Linear(4, 3), Categorical(3))
    with pytest.raises(ConfigError, match="ActorOnly has no attribute `distribution`"):
        StackedPolicy(ActorOnly())


def test_a_module_without_a_critic_is_enough_for_the_actor() -> None:
    policy = ActorOnly()
    bound = StackedPolicy(policy, Categorical(3)).bind(points_around(policy, 2))
    assert bound.actor(torch.zeros(2, 5, 4)).shape == (2, 5, 3)
    assert not bound.has_critic
    with pytest.raises(ConfigError, match="ActorOnly has no critic"):
        bound.critic(torch.zeros(2, 5, 4))


def test_outputs_of_the_wrong_shape_are_named() -> None:
    policy = ActorOnly()
    with pytest.raises(ConfigError, match=r"actor\(obs\) must return \[5, 2\] for 5 rows, and it returned \[5, 3\]"):
        StackedPolicy(policy, Categorical(2)).actor(points_around(policy, 1), torch.zeros(1, 5, 4))


def test_random_layers_are_refused() -> None:
    policy = SharedExtractor(4, 3)
    policy.features.append(nn.Dropout(0.5))
    with pytest.raises(RuntimeError, match="random"):
        StackedPolicy(policy).actor(points_around(policy, 2), torch.zeros(2, 5, 4))
