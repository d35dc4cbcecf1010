"""A small training problem, the table of base optimizers, and exact comparison: what tests of the optimizer share."""

from __future__ import annotations

import copy
import csv
import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import pytest
import pytorch_optimizer
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from optex_rl import OptEx, TrainConfig, resume, train
from optex_rl.cli import main


class Problem:
    """A small regression with a tanh layer: two groups, five parameters, one of which (`idle`) never has a gradient.

    Args:
        matrices: leave the bias out, for optimizers that take matrices only.
        dtype: of parameters and data.
    """

    def __init__(self, *, matrices: bool = False, dtype: torch.dtype = torch.float32) -> None:
        generator = torch.Generator().manual_seed(7)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(dtype)

        self.inputs, self.targets = normal(6, 5), normal(6, 3)
        self.first, self.idle = Parameter(normal(5, 4)), Parameter(normal(2, 3))
        self.second, self.third = Parameter(normal(4, 3)), Parameter(normal(3, 3))
        self.bias = None if matrices else Parameter(normal(3))

    @property
    def parameters(self) -> list[Parameter]:
        """In the order of the groups."""
        return [p for group in self.groups() for p in group["params"]]

    def groups(self, lr: float = 0.0) -> list[dict[str, Any]]:
        """Two groups; with `lr`, the second goes at twice the rate."""
        last = [self.second, self.third] + ([] if self.bias is None else [self.bias])
        groups: list[dict[str, Any]] = [{"params": [self.first, self.idle]}, {"params": last, "name": "head"}]
        if lr:
            groups[0]["lr"], groups[1]["lr"] = lr, 2 * lr
        return groups

    def loss(self) -> Tensor:
        output = torch.tanh(self.inputs @ self.first) @ self.second @ self.third
        if self.bias is not None:
            output = output + self.bias
        return (output - self.targets).square().mean()

    @torch.enable_grad()
    def backward(self) -> Tensor:
        """Fresh gradients in `.grad`; returns the loss."""
        for parameter in self.parameters:
            parameter.grad = None
        loss = self.loss()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    def point(self) -> Tensor:
        return torch.cat([p.detach().reshape(-1) for p in self.parameters])

    def copy(self) -> Problem:
        return copy.deepcopy(self)

    def at(self, point: Tensor) -> Problem:
        """A copy with other values of its parameters."""
        other = self.copy()
        parameters = other.parameters
        with torch.no_grad():
            for parameter, values in zip(parameters, torch.split(point, [p.numel() for p in parameters]), strict=True):
                parameter.copy_(values.view_as(parameter))
        return other

    def gradient(self) -> Tensor:
        """The gradient as one vector, zero where there is none; leaves `.grad` alone."""
        other = self.copy()
        other.backward()
        return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in other.parameters])

    def evaluate(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients `[N, d]` and losses `[N]` at points `[N, d]`."""
        others = [self.at(point) for point in points]
        return torch.stack([o.gradient() for o in others]), torch.stack([o.loss().detach() for o in others])


class ExactEstimator:
    """Stands in for the posterior: its mean is the true gradient of a problem, its variance 0."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.ready = True
        self.inserted = 0

    def __len__(self) -> int:
        return self.inserted

    def insert(self, points: Tensor, gradients: Tensor) -> Tensor:
        assert points.shape == gradients.shape
        self.inserted += len(points)
        return torch.zeros(len(points), 1, 0, dtype=torch.float64)

    def hyperparameters(self) -> dict[str, Tensor]:
        return {}

    def distances_to(self, point: Tensor, near: int = 0) -> Tensor:
        return torch.zeros(*point.shape[:-1], 1, 0, dtype=torch.float64)

    def mean(self, point: Tensor, distances: Tensor | None = None, out: Tensor | None = None) -> Tensor:
        rows = point.reshape(-1, point.shape[-1])
        gradient = torch.stack([self.problem.at(row).gradient() for row in rows]).view_as(point)
        return gradient if out is None else out.copy_(gradient)

    def variances(self, distances: Tensor) -> Tensor:
        return torch.zeros(distances.shape[:2], dtype=torch.float64)

    def new_means(self, n: int) -> Tensor:
        return torch.empty(n, self.problem.point().numel())

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        assert (device, dtype) == (torch.device("cpu"), torch.float32)


class Case(NamedTuple):
    """A base optimizer with its arguments."""

    cls: type[Optimizer]
    kwargs: dict[str, Any]

    @property
    def matrices(self) -> bool:
        """Whether it takes matrices only."""
        return self.cls.__name__ == "Muon"

    def problem(self) -> Problem:
        return Problem(matrices=self.matrices)

    def base(self, problem: Problem) -> Optimizer:
        return self.cls(problem.groups(lr=0.01), **self.kwargs)

    def optex(self, problem: Problem, **options: Any) -> OptEx:
        return OptEx(problem.groups(lr=0.01), base=self.cls, base_kwargs=self.kwargs, **options)


def _dense_first_order(cls: Any) -> bool:
    """Any but the abstract class, LBFGS, which needs a closure, and SparseAdam, which takes no dense gradients."""
    excluded = ("Optimizer", "LBFGS", "SparseAdam")
    return isinstance(cls, type) and issubclass(cls, Optimizer) and cls.__name__ not in excluded


# Whatever torch.optim holds, also in versions to come, and the options that change how state is kept.
CASES: dict[str, Case] = {
    name: Case(cls, {}) for name, cls in sorted(vars(torch.optim).items()) if _dense_first_order(cls)
} | {
    "SGD momentum": Case(torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.01}),
    "SGD Nesterov": Case(torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    "Adam maximize": Case(torch.optim.Adam, {"maximize": True}),
    "Adam amsgrad": Case(torch.optim.Adam, {"amsgrad": True, "weight_decay": 0.01}),
    "Adam foreach": Case(torch.optim.Adam, {"foreach": True}),
    "Adam fused": Case(torch.optim.Adam, {"fused": True}),
    "RMSprop centered": Case(torch.optim.RMSprop, {"centered": True, "momentum": 0.5}),
    "ASGD early": Case(torch.optim.ASGD, {"t0": 3.0}),
    "LARS": Case(pytorch_optimizer.LARS, {"weight_decay": 0.01}),
    "LAMB": Case(pytorch_optimizer.Lamb, {"adam_debias": True, "weight_decouple": False, "weight_decay": 0.01}),
    "NovoGrad": Case(pytorch_optimizer.NovoGrad, {"weight_decay": 0.01}),
}
TYPICAL: dict[str, Case] = {
    name: CASES[name]
    for name in ("SGD momentum", "Adam", "RMSprop", "Adagrad", "NAdam", "Adadelta", "Adam amsgrad", "LAMB", "NovoGrad")
}


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=stream(seed), dtype=torch.float64).to(dtype)


def through_a_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@contextmanager
def registered(name: str, task: Any, **options: Any) -> Iterator[str]:
    """A task known to Gymnasium for the length of the block."""
    gymnasium.register(name, entry_point=task, **options)
    try:
        yield name
    finally:
        del gymnasium.registry[name]


def python_blocks(text: str) -> list[str]:
    """The examples of a page."""
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a table with a head."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def expect_refusal(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], status: int | None = None
) -> None:
    """The command fails with a status, 1 or 2 by default, and one line that holds the message."""
    capsys.readouterr()
    assert main(arguments) in ((1, 2) if status is None else (status,))
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("optex-rl: error: ")
    assert message in lines[0]


def weights(model: Any) -> dict[str, Tensor]:
    """Copy of the weights of a model of stable-baselines3."""
    return {name: value.clone() for name, value in model.policy.state_dict().items()}


def reloaded(model: Any, **kwargs: Any) -> Any:
    """A model of stable-baselines3, saved and loaded."""
    file = io.BytesIO()
    model.save(file)
    file.seek(0)
    return type(model).load(file, device="cpu", **kwargs)


def assert_resumed_exactly(tmp_path: Path, make_policy: Callable[[], Any] = lambda: None, **options: Any) -> None:
    """A run of two iterations, resumed to five, is the run of five that nothing stopped: the policies agree."""
    options |= {"logdir": str(tmp_path), "progress_bar": False, "eval_freq": 0, "lr_schedule": "constant"}
    whole = train(TrainConfig(**options, iterations=5, run_name="whole"), make_policy())
    first = train(TrainConfig(**options, iterations=2, run_name="run"), make_policy())
    assert first.run_dir is not None
    assert same(resume(first.run_dir, 5, make_policy()).policy.state_dict(), whole.policy.state_dict())


def closure_of(problem: Problem, optimizer: Optimizer) -> Callable[[], Any]:
    """The closure a user would write."""

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = problem.loss()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    return closure


def advance(problem: Problem, optimizer: Optimizer, steps: int) -> None:
    """Calls of `step()`, each after a fresh `backward()`."""
    for _ in range(steps):
        problem.backward()
        optimizer.step()


def same(a: Any, b: Any) -> bool:
    """Whether two nests of dictionaries, sequences, tensors and plain values agree exactly, types included."""
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b)
