"""Networks that vmap cannot batch: point after point against separate modules, or refused before the training."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from optex_rl import ConfigError, PerformanceWarning, TrainConfig, train
from optex_rl.agents import StackedPolicy
from optex_rl.agents.networks.batching import find_obstacle
from optex_rl.training import Trainer

from .helpers import assert_resumed_exactly
from .networks import BATCHED, ONE_BY_ONE, REFUSED, Policy, assert_points_are_separate_policies, points_around

# torch's, of the operations that vmap makes one after the other on its own.
SLOW = "ignore:There is a performance drop because we have not yet implemented the batching rule"
QUIET: dict[str, Any] = {"logdir": None, "progress_bar": False, "eval_freq": 2, "eval_episodes": 2, "iterations": 3}
SMALL: dict[str, Any] = QUIET | {"method": "optex", "parallelism": 3, "n_envs": 2, "n_steps": 8}


def made(make: Callable[[int], nn.Module]) -> Policy:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return Policy(make)


def observations(*shape: int) -> Tensor:
    return torch.randn(*shape, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.filterwarnings(SLOW)
@pytest.mark.parametrize("N", [1, 3])
@pytest.mark.parametrize("name", [*ONE_BY_ONE, *BATCHED])
def test_stacked_equals_separate_with_gradients(name: str, N: int) -> None:
    make = (ONE_BY_ONE | BATCHED)[name]
    policy = made(make).double()
    stacked = StackedPolicy(policy)
    stacked.examine(observations(2).double(), critic=True)
    assert (stacked.obstacle is not None) is (name in ONE_BY_ONE)
    points, obs = points_around(policy, N), observations(N, 5).double()
    assert_points_are_separate_policies(policy, stacked, points, obs, 1e-12, make_alone=lambda: made(make).double())


@pytest.mark.parametrize("name", ONE_BY_ONE)
@pytest.mark.parametrize("algo", ["a2c", "ppo", "reinforce"])
def test_one_warning_of_what_the_points_cost(algo: str, name: str) -> None:
    with pytest.warns(PerformanceWarning) as caught:
        result = train(TrainConfig(algo=algo, **SMALL), made(ONE_BY_ONE[name]))
    assert len(caught) == 1
    assert caught[0].filename == __file__
    message = str(caught[0].message)
    assert message.startswith("torch.func.vmap cannot batch Policy (RuntimeError: ")
    assert message.endswith("evaluated one after the other: 3 forward passes in place of one each time")
    assert result.iterations == 3


@pytest.mark.parametrize("options", [{"method": "vanilla"}, {"method": "data-parallel"}, {"method": "target"}])
def test_one_point_costs_nothing_and_says_nothing(options: dict[str, Any]) -> None:
    assert train(TrainConfig(**SMALL | options), made(ONE_BY_ONE["GRU"])).iterations == 3


@pytest.mark.parametrize("optimizer", ["natural", "adahessian", "sam"])
@pytest.mark.filterwarnings("ignore::optex_rl.PerformanceWarning")
def test_bases_that_differentiate_more_than_once(optimizer: str) -> None:
    result = train(TrainConfig(optimizer=optimizer, **SMALL), made(ONE_BY_ONE["GRU"]))
    assert result.iterations == 3
    assert all(parameter.isfinite().all() for parameter in result.policy.parameters())


class Parts(Policy):
    """Actor and critic without anything in common."""

    def __init__(self) -> None:
        super().__init__(ONE_BY_ONE["GRU"])
        self.values = nn.Sequential(ONE_BY_ONE["LSTM"](4), nn.Linear(8, 1))

    def parameter_groups(self) -> list[tuple[str, list[nn.Parameter]]]:
        return [("actor", [*self.logits.parameters()]), ("critic", [*self.values.parameters()])]


@pytest.mark.filterwarnings("ignore::optex_rl.PerformanceWarning")
def test_one_critic_for_all_points() -> None:
    policy = Parts()
    before = parameters_to_vector(policy.values.parameters())
    assert train(TrainConfig(n_critic_updates=2, batch_size=16, **SMALL), policy).iterations == 3
    assert not torch.equal(parameters_to_vector(policy.values.parameters()), before)


@pytest.mark.filterwarnings("ignore::optex_rl.PerformanceWarning")
def test_a_resumed_run_is_the_run_that_nothing_stopped(tmp_path: Any) -> None:
    assert_resumed_exactly(tmp_path, lambda: made(ONE_BY_ONE["GRU"]), parallelism=3, n_envs=2, n_steps=8)


@pytest.mark.parametrize("method", ["optex", "vanilla"])
@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_the_training(name: str, method: str, tmp_path: Any) -> None:
    make, message = REFUSED[name]
    with pytest.raises(ConfigError, match=f"Policy {message}"):
        train(TrainConfig(**SMALL | {"method": method, "logdir": str(tmp_path)}), made(make))
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore::optex_rl.PerformanceWarning")
@pytest.mark.parametrize("name", ["dropout", "functional dropout", "dropout of a GRU", "spectral norm", "batch norm"])
def test_frozen_in_eval_mode_they_train(name: str) -> None:
    assert train(TrainConfig(**SMALL), made(REFUSED[name][0]).eval()).iterations == 3


@pytest.mark.filterwarnings(SLOW)
@pytest.mark.parametrize("name", [*ONE_BY_ONE, *BATCHED, *sorted(REFUSED.keys() - {"state"})])
def test_the_trial_leaves_parameters_buffers_and_random_numbers(name: str) -> None:
    every = ONE_BY_ONE | BATCHED | {refused: make for refused, (make, _) in REFUSED.items()}
    policy = made(every[name])
    tensors = [*policy.parameters(), *policy.buffers()]
    values, numbers = [tensor.detach().clone() for tensor in tensors], torch.get_rng_state()
    try:
        StackedPolicy(policy).examine(observations(2), critic=True)
    except ConfigError:
        assert name in REFUSED
    after = [*policy.parameters(), *policy.buffers()]
    assert all(new is old for new, old in zip(after, tensors, strict=True))
    assert all(map(torch.equal, after, values))
    assert torch.equal(torch.get_rng_state(), numbers)


@pytest.mark.filterwarnings(SLOW, "ignore::optex_rl.PerformanceWarning")
@pytest.mark.parametrize("name", ["GRU", "weight norm", "counter"])
def test_a_submodule_with_two_names_keeps_its_parameters(name: str) -> None:
    """Else the policy would no longer hold what the optimizer moves."""
    policy = made((ONE_BY_ONE | BATCHED)[name])
    own = [*policy.parameters()]
    trainer = Trainer(TrainConfig(**SMALL), policy)
    trainer.iterate()
    trainer.evaluate()
    assert all(new is old for new, old in zip(policy.parameters(), own, strict=True))
    assert torch.equal(parameters_to_vector(own), trainer.optimizer.ask()[0])


class Tied(nn.Module):
    """The same matrix in two layers."""

    def __init__(self, branch: bool) -> None:
        super().__init__()
        self.first, self.second, self.branch = nn.Linear(4, 4), nn.Linear(4, 4), branch
        self.second.weight = self.first.weight

    def forward(self, rows: Tensor) -> Tensor:
        outputs: Tensor = self.second(self.first(rows).tanh())
        return -outputs if self.branch and outputs.sum() > 1e9 else outputs


@pytest.mark.parametrize("branch", [False, True])
def test_tied_parameters_stay_tied(branch: bool) -> None:
    policy = made(lambda fan_in: nn.Sequential(Tied(branch), nn.Linear(fan_in, 8))).double()
    stacked = StackedPolicy(policy)
    stacked.examine(observations(2).double(), critic=True)
    assert (stacked.obstacle is not None) is branch
    points, obs = points_around(policy, 2).requires_grad_(), observations(2, 5).double()
    outputs = stacked.bind(points).actor(obs)
    (gradients,) = torch.autograd.grad(outputs.square().sum(), points)
    for n, point in enumerate(points.detach()):
        vector_to_parameters(point.clone(), policy.parameters())
        expected = policy.actor(obs[n])
        torch.testing.assert_close(outputs[n], expected)
        parts = torch.autograd.grad(expected.square().sum(), list(policy.parameters()), allow_unused=True)
        own = [torch.zeros_like(p) if g is None else g for p, g in zip(policy.parameters(), parts, strict=True)]
        torch.testing.assert_close(gradients[n], torch.cat([g.reshape(-1) for g in own]), rtol=1e-9, atol=1e-12)


def test_an_error_of_the_network_itself_is_its_own() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        train(TrainConfig(env="Acrobot-v1", **SMALL), Policy(ONE_BY_ONE["branch"]))


class Telling(nn.Linear):
    """Warns in every call."""

    def forward(self, rows: Tensor) -> Tensor:
        warnings.warn("seen", UserWarning, stacklevel=1)
        return super().forward(rows)


def test_warnings_of_the_network_are_left_to_its_calls() -> None:
    assert find_obstacle(Telling(4, 2), observations(2), "it") is None
