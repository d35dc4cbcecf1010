"""Base optimizers by name: a table from their usual names to their classes."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..common.errors import ConfigError
from ..common.validation import did_you_mean


class Base(NamedTuple):
    """A base optimizer: its class, and the keyword arguments that its name implies.

    Attributes:
        cls: the class.
        kwargs: arguments besides parameters and learning rate; docs/optimizers.md says why these.
        elementwise: whether the step of each coordinate depends on that coordinate's gradient and state alone, so that
            it does not matter into which tensors the parameters are cut.
    """

    cls: type[Optimizer]
    kwargs: Mapping[str, Any] = {}
    elementwise: bool = False


class ImportedBase(NamedTuple):
    """A base whose class is imported when it is first asked for: its package is optional, or slow to import.

    Attributes:
        path: module and class, "module.Class"; a leading dot means this package.
        extra: the extra of optex-rl that installs the package; None if none is needed.
        kwargs, elementwise: as of `Base`.
    """

    path: str
    extra: str | None
    kwargs: Mapping[str, Any] = {}
    elementwise: bool = False

    def load(self) -> Base:
        """The entry with its class.

        Raises:
            ConfigError: the package is not installed.
        """
        module, _, name = self.path.rpartition(".")
        try:
            cls: type[Optimizer] = getattr(importlib.import_module(module, __package__), name)
        except ModuleNotFoundError as error:
            install = f"pip install 'optex-rl[{self.extra}]'"
            raise ConfigError(f"base optimizer {name} needs the package {error.name}: {install}") from error
        return Base(cls, self.kwargs, self.elementwise)


BASES: Final[dict[str, Base | ImportedBase]] = {
    "sgd": Base(torch.optim.SGD, elementwise=True),
    "momentum": Base(torch.optim.SGD, {"momentum": 0.9}, elementwise=True),
    "nesterov": Base(torch.optim.SGD, {"momentum": 0.9, "nesterov": True}, elementwise=True),
    "adagrad": Base(torch.optim.Adagrad, elementwise=True),
    "adadelta": Base(torch.optim.Adadelta, elementwise=True),
    "rmsprop": Base(torch.optim.RMSprop, elementwise=True),
    "adam": Base(torch.optim.Adam, elementwise=True),
    "adamw": Base(torch.optim.AdamW, elementwise=True),
    "nadam": Base(torch.optim.NAdam, elementwise=True),
    "radam": Base(torch.optim.RAdam, elementwise=True),
    "lars": ImportedBase("pytorch_optimizer.LARS", "optimizers"),
    "lamb": ImportedBase("pytorch_optimizer.Lamb", "optimizers", {"adam_debias": True, "weight_decouple": False}),
    "novograd": ImportedBase("pytorch_optimizer.NovoGrad", "optimizers"),
    "adahessian": ImportedBase(".adapters.AdaHessian", "optimizers", {"eps": 1e-4}),
    "sam": ImportedBase(".adapters.SAM", "optimizers", {"base_optimizer": torch.optim.Adam}),
    "kfac": ImportedBase(".kfac.KFAC", "kfac"),
    "natural": ImportedBase(".natural.NaturalGradient", None),
}
# The very classes: a subclass may do anything.
ELEMENTWISE: Final = frozenset(entry.cls for entry in BASES.values() if isinstance(entry, Base) and entry.elementwise)


def check_name(name: str) -> None:
    """Raise a ConfigError unless the table has ``name``."""
    if name not in BASES:
        raise ConfigError(f"unknown base optimizer {name!r}{did_you_mean(name, BASES)}; known are {', '.join(BASES)}")


def resolve_base(base: str | type[Optimizer]) -> Base:
    """The entry of ``base``, a name of the table or a class of one's own.

    Raises:
        ConfigError: the name is unknown, its package is not installed, or the class is no `torch.optim.Optimizer`.
    """
    if isinstance(base, str):
        check_name(base)
        entry = BASES[base]
        return entry.load() if isinstance(entry, ImportedBase) else entry
    if isinstance(base, type) and issubclass(base, Optimizer):
        return Base(base, elementwise=base in ELEMENTWISE)
    raise ConfigError(f"base must be a name or a torch.optim.Optimizer class, got {base!r}")


def fused_kwargs(base: str | type[Optimizer]) -> dict[str, Any]:
    """``{"fused": True}`` where ``base`` has such an implementation: for small networks half the time of a step.

    Raises:
        ConfigError: as of `resolve_base`.
    """
    return {"fused": True} if "fused" in inspect.signature(resolve_base(base).cls).parameters else {}


def make_base(
    base: str | type[Optimizer],
    params: Iterable[Tensor] | Iterable[dict[str, Any]],
    lr: float | Tensor,
    kwargs: Mapping[str, Any] | None = None,
) -> Optimizer:
    """A new base optimizer.

    Args:
        base: a name of the table, or a class of one's own.
        params: parameters ``[*shape]``, or parameter groups.
        lr: the learning rate.
        kwargs: further arguments of the class; they win over those of the table.

    Raises:
        ConfigError: the base is unknown or not installed, the rate is no number, or its class refuses an argument.
    """
    if not isinstance(lr, (Real, Tensor)):
        raise ConfigError(f"lr must be a number, got {lr!r}; a base optimizer is given by base=…")
    entry = resolve_base(base)
    try:
        arguments: dict[str, Any] = {"lr": lr, **entry.kwargs, **(kwargs or {})}
        return entry.cls(params, **arguments)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{entry.cls.__name__} cannot be constructed: {error}") from error
