"""Each mistake a user can make is answered with one sentence that names the value and what is allowed."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from optex_rl import ConfigError, GradientEstimator, NonFiniteError, NotPositiveDefiniteError, OptEx, OptExError
from optex_rl.bases import BASES, make_base, resolve_base
from optex_rl.bases.adapters import SAM
from optex_rl.common.errors import NumericalError, NumericalWarning, RunFolderError

from .helpers import Problem


def build(**options: Any) -> OptEx:
    return OptEx([Parameter(torch.ones(3))], **options)


def estimator(**options: Any) -> GradientEstimator:
    return GradientEstimator(3, **options)


class NeedsClosure(torch.optim.SGD):
    """Like LBFGS or SAM."""

    def step(self, closure: Callable[[], Any]) -> Any:  # type: ignore[override]
        return super().step(closure)


KERNEL_NAMES = "matern12, matern32, matern52, rbf"
BAD_OPTIONS: list[tuple[dict[str, Any], str]] = [
    ({"parallelism": 0}, "parallelism must be a whole number of at least 1, got 0"),
    ({"parallelism": -3}, "parallelism must be a whole number of at least 1, got -3"),
    ({"parallelism": 2.0}, "parallelism must be a whole number of at least 1, got 2.0"),
    ({"parallelism": True}, "parallelism must be a whole number of at least 1, got True"),
    ({"parallelism": "4"}, "parallelism must be a whole number of at least 1, got '4'"),
    ({"history_size": 1}, "history_size must be a whole number of at least 2, got 1"),
    ({"history_size": None}, "history_size must be a whole number of at least 2, got None"),
    ({"stride": 0}, "stride must be a whole number of at least 1, got 0"),
    ({"stride": 1.5}, "stride must be a whole number of at least 1, got 1.5"),
    ({"kernel": "matern"}, f"kernel must be one of {KERNEL_NAMES}, got 'matern'"),
    ({"lengthscale": 0.0}, "lengthscale must be a positive number, 'auto' or 'median', got 0.0"),
    ({"lengthscale": -1}, "lengthscale must be a positive number, 'auto' or 'median', got -1"),
    ({"lengthscale": math.inf}, "lengthscale must be a positive number, 'auto' or 'median', got inf"),
    ({"lengthscale": math.nan}, "lengthscale must be a positive number, 'auto' or 'median', got nan"),
    ({"lengthscale": "mean"}, "lengthscale must be a positive number, 'auto' or 'median', got 'mean'"),
    ({"lengthscale": None}, "lengthscale must be a positive number, 'auto' or 'median', got None"),
    ({"noise": -1e-9}, "noise must be a number of at least 0, or 'auto', got -1e-09"),
    ({"noise": math.nan}, "noise must be a number of at least 0, or 'auto', got nan"),
    ({"noise": math.inf}, "noise must be a number of at least 0, or 'auto', got inf"),
    ({"noise": "median"}, "noise must be a number of at least 0, or 'auto', got 'median'"),
    ({"noise": None}, "noise must be a number of at least 0, or 'auto', got None"),
    ({"selection": "best"}, "selection must be one of last, loss, grad_norm, refine, got 'best'"),
    ({"predictor": "oracle"}, "predictor must be one of posterior, mean, last, got 'oracle'"),
    ({"blocks": "layers"}, "blocks must be one of joint, groups, got 'layers'"),
    ({"without_closure": "skip"}, "without_closure must be one of extrapolate, emulate, got 'skip'"),
    (
        {"without_closure": "emulate", "selection": "loss"},
        "selection 'loss' needs losses, which without_closure 'emulate' never sees",
    ),
    ({"max_grad_norm": 0.0}, "max_grad_norm must be positive or None, got 0.0"),
    ({"max_grad_norm": -1.0}, "max_grad_norm must be positive or None, got -1.0"),
    ({"max_grad_norm": math.nan}, "max_grad_norm must be positive or None, got nan"),
]


def with_message(message: str) -> Any:
    """The whole message, to the letter."""
    return pytest.raises(ConfigError, match=f"^{re.escape(message)}$")


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS, ids=[str(options) for options, _ in BAD_OPTIONS])
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with with_message(message):
        build(**options)
    with with_message(message):
        OptEx.wrap(torch.optim.SGD([Parameter(torch.ones(3))]), **options)


ESTIMATOR_NAMES = ("kernel", "lengthscale", "noise")
BAD_ESTIMATOR_OPTIONS = [(o, m) for o, m in BAD_OPTIONS if next(iter(o)) in ESTIMATOR_NAMES]


@pytest.mark.parametrize(("options", "message"), BAD_ESTIMATOR_OPTIONS)
def test_bad_options_of_an_estimator(options: dict[str, Any], message: str) -> None:
    with with_message(message):
        estimator(**options)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: estimator(history_size=1), "history_size must be at least 2, got 1"),
        (lambda: estimator(block_sizes=[1, 1]), "block_sizes must be positive and sum to dim = 3, got [1, 1]"),
        (lambda: estimator(block_sizes=[3, 0]), "block_sizes must be positive and sum to dim = 3, got [3, 0]"),
        (lambda: estimator(block_sizes=[]), "block_sizes must be positive and sum to dim = 3, got []"),
        (lambda: GradientEstimator(0), "block_sizes must be positive and sum to dim = 0, got [0]"),
        (
            lambda: estimator(dtype=torch.bfloat16),
            "the history is kept in float32 or float64, not in torch.bfloat16",
        ),
        (
            lambda: estimator().insert(torch.ones(2, 3), torch.ones(2, 4)),
            "points and gradients must both be [n, 3], got [2, 3] and [2, 4]",
        ),
        (
            lambda: estimator().insert(torch.ones(3), torch.ones(3)),
            "points and gradients must both be [n, 3], got [3] and [3]",
        ),
        (
            lambda: estimator().insert(torch.ones(2, 4), torch.ones(2, 4)),
            "points and gradients must both be [n, 3], got [2, 4] and [2, 4]",
        ),
        (
            lambda: estimator().predict(torch.ones(3)),
            "the history is empty: insert at least one gradient before predicting",
        ),
    ],
)
def test_misuse_of_an_estimator(make: Callable[[], Any], message: str) -> None:
    with with_message(message):
        make()


KNOWN = (
    "sgd, momentum, nesterov, adagrad, adadelta, rmsprop, adam, adamw, nadam, radam, lars, lamb, novograd, adahessian, "
    "sam, kfac, natural"
)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base": "adma"}, f"unknown base optimizer 'adma' (did you mean 'adam'?); known are {KNOWN}"),
        ({"base": "RMSProp"}, f"unknown base optimizer 'RMSProp' (did you mean 'rmsprop'?); known are {KNOWN}"),
        ({"base": "lbfgs"}, f"unknown base optimizer 'lbfgs'; known are {KNOWN}"),
        ({"base": 3}, "base must be a name or a torch.optim.Optimizer class, got 3"),
        ({"base": dict}, "base must be a name or a torch.optim.Optimizer class, got <class 'dict'>"),
        ({"base_kwargs": {"betas": (2.0, 0.9)}}, "Adam cannot be constructed: Invalid beta parameter at index 0: 2.0"),
        ({"base": "sgd", "lr": -1.0}, "SGD cannot be constructed: Invalid learning rate: -1.0"),
        (
            {"base": torch.optim.LBFGS},
            "LBFGS cannot be a base: its step needs a closure; use a first-order one",
        ),
        ({"base": NeedsClosure}, "NeedsClosure cannot be a base: its step needs a closure; use a first-order one"),
    ],
)
def test_bad_bases(options: dict[str, Any], message: str) -> None:
    with with_message(message):
        build(**options)


def test_unknown_arguments_of_a_base() -> None:
    with pytest.raises(ConfigError, match=r"Adam cannot be constructed: .*unexpected keyword argument 'foo'"):
        build(base_kwargs={"foo": 1})


def test_arguments_of_another_kind() -> None:
    parameters = [Parameter(torch.ones(3))]
    for wrong in ("sgd", torch.optim.Adam):  # the second argument is the rate
        with with_message(f"lr must be a number, got {wrong!r}; a base optimizer is given by base=…"):
            OptEx(parameters, wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"Adam cannot be constructed: .*not a mapping"):
        OptEx(parameters, base_kwargs=[("eps", 1e-3)])  # type: ignore[arg-type]


def test_no_parameters() -> None:
    with pytest.raises(ConfigError, match="Adam cannot be constructed: optimizer got an empty parameter list"):
        OptEx([])


def test_wrap_refuses_what_is_no_optimizer_instance() -> None:
    with pytest.raises(
        ConfigError, match=r"wrap needs a torch\.optim\.Optimizer instance, got <class 'torch\.optim\.adam"
    ):
        OptEx.wrap(torch.optim.Adam)  # type: ignore[arg-type]


def test_unknown_arguments_say_where_those_of_the_base_belong() -> None:
    parameters = [Parameter(torch.ones(3))]
    hint = "arguments of the base optimizer go into base_kwargs, as in base_kwargs={'betas': …}"
    with with_message(f"OptEx has no argument 'betas': {hint}"):
        OptEx(parameters, betas=(0.9, 0.99))  # type: ignore[arg-type]
    typo = "OptEx has no argument 'paralelism' (did you mean 'parallelism'?)"
    with with_message(typo):
        OptEx(parameters, paralelism=2)  # type: ignore[arg-type]
    with with_message("OptEx has no argument 'learning_rate' (did you mean 'lr'?)"):  # as options of training call it
        OptEx(parameters, learning_rate=0.1)  # type: ignore[arg-type]
    with with_message("OptEx has no argument 'base_kwarg' (did you mean 'base_kwargs'?)"):
        OptEx(parameters, base_kwarg={})  # type: ignore[arg-type]
    with with_message(
        "OptEx has no argument 'betas': arguments of the base optimizer go into the optimizer that is wrapped"
    ):
        OptEx.wrap(torch.optim.Adam(parameters), betas=(0.9, 0.99))
    with with_message(typo):
        OptEx.wrap(torch.optim.SGD(parameters), paralelism=2)


def test_the_representation_says_what_is_wrapped() -> None:
    parameters = [Parameter(torch.ones(3))]
    shown = repr(OptEx(Problem().groups(0.25), base="nadam", parallelism=3))
    assert "Parameter Group 1\n" in shown
    assert shown.startswith("OptEx (base: NAdam, parallelism: 3\nParameter Group 0\n")
    assert "    lr: 0.25\n" in shown
    assert repr(OptEx.wrap(torch.optim.SGD(parameters), parallelism=1)).startswith("OptEx (base: SGD, parallelism: 1\n")


def test_wrap_refuses_bases_that_need_a_closure() -> None:
    with pytest.raises(ConfigError, match="LBFGS cannot be a base"):
        OptEx.wrap(torch.optim.LBFGS([Parameter(torch.ones(3))]))


@pytest.mark.parametrize("name", BASES)
def test_each_name_makes_what_it_says(name: str) -> None:
    entry = resolve_base(name)
    decay = {} if name in ("kfac", "natural") else {"weight_decay": 0.25}
    base = make_base(name, [Parameter(torch.ones(2))], 0.1, decay)
    assert type(base) is entry.cls
    classes = {"momentum": "sgd", "nesterov": "sgd", "natural": "naturalgradient"}
    assert entry.cls.__name__.lower() == classes.get(name, name)
    expected = {"lr": 0.1, **decay, **entry.kwargs}
    if isinstance(base, SAM):
        assert type(base.base_optimizer) is expected.pop("base_optimizer")
    assert {key: base.param_groups[0][key] for key in expected} == expected


def test_arguments_win_over_those_of_the_name() -> None:
    base = make_base("momentum", [Parameter(torch.ones(2))], 0.1, {"momentum": 0.3})
    assert base.param_groups[0]["momentum"] == 0.3


def asked(**options: Any) -> OptEx:
    optimizer = build(**options)
    optimizer.ask()
    return optimizer


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: build().tell(torch.ones(4, 3)), "call ask() before tell(): there are no points that these gradients"),
        (lambda: asked().tell(torch.ones(3)), "gradients must be [N, d] = [4, 3], got [3]"),
        (lambda: asked().tell(torch.ones(3, 3)), "gradients must be [N, d] = [4, 3], got [3, 3]"),
        (lambda: asked(parallelism=1).tell(torch.ones(3)), "gradients must be [N, d] = [1, 3], got [3]"),
        (lambda: asked().tell(torch.ones(4, 3), torch.ones(3)), "losses must be [N] = [4], got [3]"),
        (lambda: asked().tell(torch.ones(4, 3), torch.ones(4, 1)), "losses must be [N] = [4], got [4, 1]"),
        (
            lambda: asked(selection="loss").tell(torch.ones(4, 3)),
            "selection 'loss' needs the losses: call tell(gradients, losses) or step(closure)",
        ),
        (lambda: build().step(), "no parameter has a gradient: call loss.backward() before step()"),
        (lambda: build().step(lambda: 0.0), "no parameter has a gradient: call loss.backward() before step()"),
    ],
)
def test_misuse_of_an_optimizer(call: Callable[[], Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        call()


def test_telling_twice() -> None:
    optimizer = asked()
    optimizer.tell(torch.ones(4, 3))
    with pytest.raises(ConfigError, match=r"call ask\(\) before tell\(\)"):
        optimizer.tell(torch.ones(4, 3))


@pytest.mark.parametrize("bad", ["gradients", "losses", "missing"])
def test_a_refused_answer_can_be_given_again(bad: str) -> None:
    optimizer = asked(selection="loss")
    answer: dict[str, tuple[Tensor, Tensor | None]] = {
        "gradients": (torch.ones(2, 3), torch.ones(4)),
        "losses": (torch.ones(4, 3), torch.ones(2)),
        "missing": (torch.ones(4, 3), None),
    }
    with pytest.raises(ConfigError):
        optimizer.tell(*answer[bad])
    optimizer.tell(torch.ones(4, 3), torch.ones(4))
    assert optimizer.statistics["history"] == 4.0


@pytest.mark.parametrize("result", [None, "low", torch.ones(2)])
def test_a_closure_must_return_a_number(result: Any) -> None:
    parameter = Parameter(torch.ones(3))
    optimizer = OptEx([parameter])

    def closure() -> Any:
        parameter.grad = torch.ones(3)
        return result

    with pytest.raises(ConfigError, match="the closure must return the loss, a single number: "):
        optimizer.step(closure)
    assert torch.equal(parameter, torch.ones(3))


def test_complex_parameters_are_refused() -> None:
    parameter = Parameter(torch.ones(3, dtype=torch.complex64))
    optimizer = OptEx([parameter])
    parameter.grad = torch.ones_like(parameter)
    with pytest.raises(ConfigError, match=r"the history is kept in float32 or float64, not in torch\.complex64"):
        optimizer.step()


@pytest.mark.parametrize("without_closure", ["extrapolate", "emulate"])
def test_sparse_gradients_are_refused_with_several_points(without_closure: str) -> None:
    embedding = torch.nn.Embedding(4, 2, sparse=True)
    optimizer = OptEx(embedding.parameters(), base="sgd", without_closure=without_closure)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(ConfigError, match="OptEx does not support sparse gradients; build the layer with sparse=False"):
        optimizer.step()


def test_a_singular_history_without_noise_warns_and_goes_on() -> None:
    problem = Problem()
    optimizer = OptEx(problem.parameters, lr=0.01, lengthscale=1.0, noise=0.0)
    optimizer.tell(*problem.evaluate(optimizer.ask()))  # N copies of one point are their mean, and nothing fails
    with pytest.warns(NumericalWarning, match="kernel matrix is singular: added jitter 1e-10"):
        optimizer.tell(*problem.evaluate(optimizer.ask()))
    assert torch.isfinite(problem.point()).all()


def test_messages_are_one_sentence_and_types_are_those_of_python() -> None:
    assert issubclass(ConfigError, (OptExError, ValueError))
    assert issubclass(ConfigError, ValueError)
    assert issubclass(RunFolderError, OSError)
    for error in (NonFiniteError, NotPositiveDefiniteError):
        assert issubclass(error, NumericalError)
        assert issubclass(error, ArithmeticError)
        assert issubclass(error, OptExError)
    assert issubclass(NumericalWarning, RuntimeWarning)
    assert all("\n" not in message and not message.endswith(".") for _, message in BAD_OPTIONS)
