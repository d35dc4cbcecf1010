"""Bases that need more than a gradient: bit for bit as bare classes, saved state, refreshes, and the command line."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_optimizer
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import clip_grad_norm_, parameters_to_vector
from torch.optim import Optimizer

from optex_rl import ConfigError, NonFiniteError, OptEx, TrainConfig
from optex_rl.agents import MlpPolicy
from optex_rl.bases import BASES, AskingBase, Objective, RefreshedBase, make_base, resolve_base
from optex_rl.bases.adapters import SAM, AdaHessian
from optex_rl.bases.flat import FlatBase
from optex_rl.common.linear_algebra import hutchinson_diagonal, rademacher
from optex_rl.common.torch_private import split
from optex_rl.training import Trainer

from .helpers import ExactEstimator, Problem, advance, closure_of, same, stream, through_a_file
from .test_resume import assert_halves_are_the_whole, start

SPACES = Box(-1.0, 1.0, (3,)), Discrete(2)
REFRESHED = ("adahessian", "sam", "kfac", "natural")
every_base = pytest.mark.parametrize("name", BASES)


class Learner:
    """A tiny policy with a base by name, and batches of observations whose loss is a regression of all outputs."""

    def __init__(self, name: str, parallelism: int = 3, **options: Any) -> None:
        self.policy = MlpPolicy(*SPACES, net_arch=(5,))
        base = make_base(name, self.policy.parameters(), 0.05)
        if isinstance(base, RefreshedBase):
            base.bind(Objective(self.loss, self.policy, lambda batch: batch))
        self.optimizer = OptEx.wrap(base, parallelism=parallelism, **options)
        self.iterations = 0

    def loss(self, point: Tensor, obs: Tensor) -> Tensor:
        names = [name for name, _ in self.policy.named_parameters()]
        values = dict(zip(names, split(point, list(self.policy.parameters())), strict=True))
        actor = functional_call(self.policy.actor_net, {k[10:]: v for k, v in values.items() if "actor" in k}, (obs,))
        critic = functional_call(
            self.policy.critic_net, {k[11:]: v for k, v in values.items() if "critic" in k}, (obs,)
        )
        loss: Tensor = (actor - obs[:, :2]).square().mean() + (critic[:, 0] - obs.sum(1)).square().mean()
        return loss

    def iterate(self, count: int = 1) -> Learner:
        for _ in range(count):
            obs = torch.randn(16, 3, generator=stream(self.iterations))
            base = self.optimizer.base
            points = self.optimizer.ask()
            if isinstance(base, RefreshedBase):
                base.refresh(obs, stream(self.iterations))
            self.optimizer.tell(torch.stack([torch.func.grad(self.loss)(point, obs) for point in points]))
            self.iterations += 1
        return self

    def point(self) -> Tensor:
        return parameters_to_vector(self.policy.parameters()).detach()


@every_base
@pytest.mark.parametrize("parallelism", [1, 3])
def test_saved_and_loaded_it_goes_on_bit_for_bit(name: str, parallelism: int) -> None:
    one, other = Learner(name, parallelism).iterate(4), Learner(name, parallelism)
    state = one.optimizer.state_dict()
    kept = copy.deepcopy(state)
    other.policy.load_state_dict(copy.deepcopy(one.policy.state_dict()))
    other.iterations = one.iterations
    one.iterate(3)
    assert same(state, kept), "a state dictionary is a copy"
    other.optimizer.load_state_dict(through_a_file(state))
    other.iterate(3)
    assert same(state, kept), "loading does not alias"
    assert torch.equal(one.point(), other.point())
    assert same(one.optimizer.state_dict(), other.optimizer.state_dict())


@every_base
def test_steps_ahead_are_taken_back_bit_for_bit(name: str) -> None:
    learner, undisturbed = Learner(name).iterate(3), Learner(name).iterate(3)
    flat = FlatBase(learner.optimizer.base)
    before, point = copy.deepcopy(learner.optimizer.base.state_dict()), learner.point()
    with flat.rewound():
        for _ in range(3):
            flat.step(torch.ones_like(point), lambda here: here)
        assert not torch.equal(learner.point(), point)
    assert same(learner.optimizer.base.state_dict(), before)
    assert torch.equal(learner.iterate(2).point(), undisturbed.iterate(2).point())


@every_base
def test_elementwise_says_whether_tensors_may_be_joined(name: str) -> None:
    entry = resolve_base(name)
    if issubclass(entry.cls, RefreshedBase):
        assert not entry.elementwise
        return
    whole, cut = nn.Parameter(torch.arange(1.0, 13.0)), nn.Parameter(torch.arange(1.0, 13.0).view(3, 4))
    parts = [nn.Parameter(cut[:2].detach().clone()), nn.Parameter(cut[2:].detach().clone())]
    bases = FlatBase(make_base(name, [whole], 0.1)), FlatBase(make_base(name, parts, 0.1))
    for step in range(5):
        for base in bases:
            base.step(torch.linspace(-1, 3, 12) * (step + 1))
    assert torch.equal(bases[0].point(), bases[1].point()) == entry.elementwise


def test_a_class_of_the_user_is_elementwise_where_it_is_known_to_be() -> None:
    assert resolve_base(torch.optim.AdamW).elementwise
    assert not resolve_base(torch.optim.Adafactor).elementwise


@pytest.mark.parametrize(("name", "extra"), [("lamb", "optimizers"), ("sam", "optimizers"), ("kfac", "kfac")])
def test_a_missing_package_is_one_sentence(
    name: str, extra: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    package = {"optimizers": "pytorch_optimizer", "kfac": "curvlinops"}[extra]
    monkeypatch.setitem(sys.modules, package, None)
    for module in ("adapters", "kfac"):
        monkeypatch.delitem(sys.modules, f"optex_rl.bases.{module}", raising=False)
    expected = rf"base optimizer \w+ needs the package {package}: pip install 'optex-rl\[{extra}\]'"
    with pytest.raises(ConfigError, match=expected):
        resolve_base(name)
    assert start(tmp_path, "--optimizer", name, "--learning-rate", "0.1") == 2
    assert f"pip install 'optex-rl[{extra}]'" in capsys.readouterr().err


# SAM


def bare_sam(problem: Problem, optimizer: Optimizer, steps: int, max_grad_norm: float | None = None) -> None:
    """The class as its documentation has it: a closure before the step, and one in it."""

    def closure() -> Any:
        loss = closure_of(problem, optimizer)()
        if max_grad_norm is not None:
            clip_grad_norm_(problem.parameters, max_grad_norm)
        return loss

    for _ in range(steps):
        closure()
        optimizer.step(closure)


@pytest.mark.parametrize("inner", [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize("max_grad_norm", [None, 0.1])
def test_one_point_is_bare_sam(inner: type[Optimizer], max_grad_norm: float | None) -> None:
    ours, plain = Problem(), Problem()
    kwargs = {"base_optimizer": inner}
    optimizer = OptEx(ours.groups(0.01), base="sam", base_kwargs=kwargs, parallelism=1, max_grad_norm=max_grad_norm)
    for _ in range(6):
        before = ours.loss()
        assert torch.equal(optimizer.step(closure_of(ours, optimizer)), before)
    bare_sam(plain, pytorch_optimizer.SAM(plain.groups(0.01), inner), 6, max_grad_norm)
    assert torch.equal(ours.point(), plain.point())


@pytest.mark.parametrize("selection", ["last", "refine"])
def test_an_exact_estimate_makes_true_steps_of_sam(selection: str) -> None:
    ours, plain = Problem(), Problem()
    optimizer = OptEx(ours.groups(0.01), base="sam", parallelism=4, selection=selection, horizon="fixed")
    # The first iteration knows no other gradient than that of the iterate, which makes the step of the inner base.
    optimizer.step(closure_of(ours, optimizer))
    inner = torch.optim.Adam(plain.groups(0.01))
    advance(plain, inner, 1)
    optimizer._engine.estimator = ExactEstimator(ours.copy())  # type: ignore[assignment]
    bare = pytorch_optimizer.SAM(plain.groups(0.01), torch.optim.Adam)
    assert torch.equal(ours.point(), plain.point())
    bare.base_optimizer.state.update(inner.state)
    for _ in range(3):
        optimizer.step(closure_of(ours, optimizer))
        bare_sam(plain, bare, 4)
        assert torch.equal(ours.point(), plain.point())


def test_sam_asks_at_the_perturbed_point() -> None:
    # θ = (0, 0), g = (3, 4), ρ = .5: asked at .5 · (.6, .8) = (.3, .4); SGD at rate 1 with the answer (1, 2).
    theta = nn.Parameter(torch.zeros(2))
    base = SAM([theta], base_optimizer=torch.optim.SGD, lr=1.0, rho=0.5)
    asked: list[Tensor] = []

    def gradient_function(point: Tensor) -> Tensor:
        asked.append(point)
        return torch.tensor([1.0, 2.0])

    FlatBase(base).step(torch.tensor([3.0, 4.0]), gradient_function)
    torch.testing.assert_close(asked, [torch.tensor([0.3, 0.4])])
    torch.testing.assert_close(theta.detach(), torch.tensor([-1.0, -2.0]))


def test_sam_with_one_point_takes_its_second_gradient_from_the_batch() -> None:
    ours, plain = Learner("sam", parallelism=1), Learner("sam", parallelism=1)
    bare = pytorch_optimizer.SAM(plain.policy.parameters(), torch.optim.Adam, lr=0.05)
    parameters = list(plain.policy.parameters())
    for iteration in range(4):
        obs = torch.randn(16, 3, generator=stream(iteration))

        def closure(obs: Tensor = obs) -> None:
            gradient = torch.func.grad(plain.loss)(plain.point(), obs)
            for parameter, piece in zip(parameters, split(gradient, parameters), strict=True):
                parameter.grad = piece.clone()

        closure()
        bare.step(closure)  # type: ignore[arg-type]
        ours.iterate()
        assert torch.equal(ours.point(), plain.point())


def test_sam_says_what_it_needs() -> None:
    problem = Problem()
    optimizer = OptEx(problem.parameters, base="sam", parallelism=1)
    problem.backward()
    with pytest.raises(ConfigError, match=r"SAM needs a second gradient: call step\(closure\)"):
        optimizer.step()
    with pytest.raises(ConfigError, match=r"SAM with one point needs a second gradient"):
        optimizer.tell(optimizer.ask())


# AdaHessian


def test_one_point_is_bare_adahessian_with_the_diagonal_given() -> None:
    ours, plain = Learner("adahessian", parallelism=1), Learner("adahessian", parallelism=1)
    parameters = list(plain.policy.parameters())
    bare = pytorch_optimizer.AdaHessian(parameters, lr=0.05, eps=1e-4)
    for iteration in range(4):
        obs, point = torch.randn(16, 3, generator=stream(iteration)), plain.point()
        probes = rademacher(1, point, stream(iteration))
        diagonal = hutchinson_diagonal(lambda p, obs=obs: plain.loss(p, obs), point, probes)  # type: ignore[misc]
        for parameter, piece in zip(
            parameters, split(torch.func.grad(plain.loss)(point, obs), parameters), strict=True
        ):
            parameter.grad = piece.clone()
        bare.step(hessian=split(diagonal, parameters))
        ours.iterate()
        assert torch.equal(ours.point(), plain.point())


def test_the_diagonal_stays_until_the_next_refresh() -> None:
    learner = Learner("adahessian").iterate(3)
    parameters = list(learner.policy.parameters())
    flat = FlatBase(learner.optimizer.base)
    before = [flat.base.state[p]["hessian"].clone() for p in parameters]
    for _ in range(3):
        flat.step(torch.ones_like(learner.point()))
    assert same([flat.base.state[p]["hessian"] for p in parameters], before)
    learner.iterate()
    assert not same([flat.base.state[p]["hessian"] for p in parameters], before)


def test_the_diagonal_of_a_convolution_is_averaged_over_its_kernel() -> None:
    kernel = nn.Parameter(torch.zeros(1, 2, 1, 3))
    curvature = torch.tensor([1.0, -2.0, 6.0, 4.0, 4.0, -4.0])  # |.| averages to 3 and 4
    base = AdaHessian([kernel], lr=1.0)
    base.bind(Objective(lambda point, _: 0.5 * (curvature * point.square()).sum()))
    base.refresh(None, stream(0))
    torch.testing.assert_close(base.state[kernel]["hessian"].flatten(), torch.tensor([3.0, 3.0, 3.0, 4.0, 4.0, 4.0]))


def test_adahessian_says_what_it_needs() -> None:
    parameter = nn.Parameter(torch.ones(2))
    base = AdaHessian([parameter])
    parameter.grad = torch.ones(2)
    with pytest.raises(ConfigError, match=r"call refresh\(batch, generator\) before a step"):
        base.step()
    with pytest.raises(ConfigError, match=r"call bind\(objective\) before refresh\(\)"):
        base.refresh(None, stream(0))
    with pytest.raises(ConfigError, match="needs the loss"):
        base.bind(Objective())
    base.bind(Objective(lambda point, batch: (point**3).sum() * batch))
    with pytest.raises(NonFiniteError, match="the Hessian's diagonal has NaN or infinite entries"):
        base.refresh(np.inf, stream(0))
    assert not base.state


# From the command line


CONTINUOUS = ("--env", "Pendulum-v1", "--algo", "reinforce", "--n-steps", "20")


@pytest.mark.parametrize(
    ("name", "options"),
    [(name, ()) for name in BASES]
    + [(name, ("--method", method)) for name in REFRESHED for method in ("vanilla", "data-parallel", "target")]
    + [(name, CONTINUOUS) for name in REFRESHED],
)
def test_a_run_resumes_exactly(name: str, options: tuple[str, ...], tmp_path: Path) -> None:
    assert_halves_are_the_whole(tmp_path, "--optimizer", name, "--learning-rate", "0.003", *options)


def test_a_refresh_that_fails_is_tried_again_with_new_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    config = TrainConfig(optimizer="adahessian", n_envs=2, n_steps=8, net_arch=(4,), logdir=None, eval_freq=0)
    trainer = Trainer(config)
    refresh, calls = AdaHessian.refresh, []

    def failing(self: AdaHessian, batch: Any, generator: torch.Generator) -> None:
        calls.append(generator.initial_seed())
        if len(calls) == 2:
            raise NonFiniteError("no curvature today")
        refresh(self, batch, generator)

    monkeypatch.setattr(AdaHessian, "refresh", failing)
    trainer.iterate()
    trainer.iterate()
    assert len(calls) == len(set(calls)) == 3
    assert trainer.iteration == 2
    trainer.close()


def test_protocols_know_their_classes() -> None:
    made: Callable[[str], Optimizer] = lambda name: make_base(name, MlpPolicy(*SPACES).parameters(), 0.1)  # noqa: E731
    assert {name for name in BASES if isinstance(made(name), RefreshedBase)} == set(REFRESHED)
    assert {name for name in BASES if isinstance(made(name), AskingBase)} == {"sam"}
