"""Base optimizers by name: one table from the field's names to `torch.optim` classes."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from .errors import ConfigError


class Base(NamedTuple):
    """A base optimizer: its class, the keyword arguments that make it what its name says, and what it is known to do.

    Attributes:
        cls: the class.
        kwargs: arguments for it.
        elementwise: whether an entry's update depends on that entry's gradient and state only, so that entries may be
            arranged in other tensors.
    """

    cls: type[Optimizer]
    kwargs: Mapping[str, Any] = {}
    elementwise: bool = False


BASES: Final[dict[str, Base]] = {
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
}


def resolve_base(base: str | type[Optimizer]) -> Base:
    """The entry of a name, or of a class that the user brings.

    Raises:
        ConfigError: the name is unknown, or the class is no `torch.optim.Optimizer`.
    """
    if isinstance(base, str):
        if base in BASES:
            return BASES[base]
        close = difflib.get_close_matches(base.lower(), BASES, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise ConfigError(f"unknown base optimizer {base!r}{hint}; known are {', '.join(BASES)}")
    if isinstance(base, type) and issubclass(base, Optimizer):
        return Base(base)
    raise ConfigError(f"base must be a name or a torch.optim.Optimizer class, got {base!r}")


def is_elementwise(optimizer: Optimizer) -> bool:
    """Whether the table knows the very class of ``optimizer`` as elementwise; a subclass may do anything."""
    return any(entry.elementwise and entry.cls is type(optimizer) for entry in BASES.values())


def fused_kwargs(base: str | type[Optimizer]) -> dict[str, Any]:
    """``{"fused": True}`` where the class has such an implementation: for small networks half the time of a step."""
    return {"fused": True} if "fused" in inspect.signature(resolve_base(base).cls).parameters else {}


def make_base(
    base: str | type[Optimizer],
    params: Iterable[Tensor] | Iterable[dict[str, Any]],
    lr: float | Tensor,
    kwargs: Mapping[str, Any] | None = None,
) -> Optimizer:
    """Construct a base optimizer; ``kwargs`` win over those of the table.

    Raises:
        ConfigError: the base is unknown, or its class refuses an argument.
    """
    entry = resolve_base(base)
    arguments: dict[str, Any] = {"lr": lr, **entry.kwargs, **(kwargs or {})}
    try:
        return entry.cls(params, **arguments)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{entry.cls.__name__} cannot be constructed: {error}") from error
