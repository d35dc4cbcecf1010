"""A base optimizer seen as a map on flat vectors, and the copies that make its steps reversible.

``d`` is the number of entries of all parameters together, in the order of the parameter groups.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from ..common.errors import ConfigError, NonFiniteError, NumericalError
from ..common.torch_private import flatten, split
from .protocols import AskingBase, GradientFunction
from .replica import FlatReplica


class Snapshot(NamedTuple):
    """Everything one base step may change: parameters, per-parameter state, and counters kept in the groups."""

    parameters: list[Tensor]
    states: list[dict[str, Any] | None]
    groups: list[dict[str, Any]]


class Stepper(Protocol):
    """Takes base steps: the base itself, or a replica of it."""

    def point(self) -> Tensor:
        """The parameters θ ``[d]``, to be read before the next step: it may change them in place."""

    def move_to(self, point: Tensor) -> None:
        """Copy ``point [d]`` into the parameters."""

    def step(self, gradient: Tensor, gradient_function: GradientFunction | None = None) -> None:
        """One base step with ``gradient [d]``, clipped; ``gradient_function`` as for `FlatBase.step`."""


def _copy_values(values: dict[str, Any]) -> dict[str, Any]:
    """Copy of a state dictionary; tensors by clone, which is far cheaper than their deepcopy."""
    return {k: v.clone() if isinstance(v, Tensor) else copy.deepcopy(v) for k, v in values.items() if k != "params"}


class FlatBase:
    """A base optimizer as a map on flat vectors: ``(θ, s), g → (θ', s')``.

    Args:
        base: the optimizer; its parameters are θ, its state and groups are s.
        max_grad_norm: gradients are clipped to this norm before a step; None for no clipping.
    """

    def __init__(self, base: Optimizer, max_grad_norm: float | None = None) -> None:
        self.base = base
        self.max_grad_norm = max_grad_norm
        # Which parameters had a gradient at the last evaluation; None: not known.
        self.with_gradient: list[bool] | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Optimizer.__getstate__ drops the attributes of subclasses, so they are kept here. Not kept are private ones
        # (hooks and counters of torch, the objective of our bases) and a step that a scheduler has patched.
        known = {"defaults", "state", "param_groups", "step"}
        extra = {k: v for k, v in vars(self.base).items() if not (k in known or k.startswith("_"))}
        return {**vars(self), "extra": extra}

    def __setstate__(self, state: dict[str, Any]) -> None:
        extra = state.pop("extra")
        vars(self).update(state)
        vars(self.base).update(extra)

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The parameter groups of the base."""
        return self.base.param_groups

    @property
    def parameters(self) -> list[Tensor]:
        """All parameters, in the order of the groups."""
        return [p for group in self.groups for p in group["params"]]

    def point(self) -> Tensor:
        """Copy of the parameters θ ``[d]``."""
        return flatten(self.parameters)

    @torch.no_grad()
    def move_to(self, point: Tensor) -> None:
        """Copy ``point [d]`` into the parameters, in place."""
        parameters = self.parameters
        for parameter, value in zip(parameters, split(point, parameters), strict=True):
            parameter.copy_(value)

    def is_at(self, point: Tensor) -> bool:
        """Whether the parameters equal ``point [d]``, on the same device."""
        here = self.point()
        return here.device == point.device and torch.equal(here, point)

    def clip(self) -> None:
        """Clip the gradients in ``.grad`` to ``max_grad_norm``."""
        if self.max_grad_norm is not None:
            clip_grad_norm_(self.parameters, self.max_grad_norm)

    def read_gradient(self) -> tuple[Tensor, list[bool]]:
        """The gradient in ``.grad`` as one vector ``[d]``, zero where a parameter has none, and which ones have one.

        Raises:
            ConfigError: a gradient is sparse, or no parameter has one.
        """
        parameters = self.parameters
        with_gradient = [p.grad is not None for p in parameters]
        if not any(with_gradient):
            raise ConfigError("no parameter has a gradient: call loss.backward() before step()")
        if any(p.grad is not None and p.grad.is_sparse for p in parameters):
            raise ConfigError("OptEx does not support sparse gradients; build the layer with sparse=False")
        return flatten([torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]), with_gradient

    def _active(self) -> list[bool]:
        """Which parameters a step moves: not those without a gradient, as in `torch.optim`, nor those frozen since."""
        trainable = [p.requires_grad for p in self.parameters]
        if not any(trainable):  # plain tensors, whose gradients are made by hand
            trainable = [True] * len(trainable)
        if self.with_gradient is None:
            return trainable
        return [a and b for a, b in zip(trainable, self.with_gradient, strict=True)]

    @torch.no_grad()
    def step(self, gradient: Tensor, gradient_function: GradientFunction | None = None) -> None:
        """One base step with ``gradient [d]``, clipped; ``.grad`` is left as it was.

        Args:
            gradient: at the parameters.
            gradient_function: the gradient at other points, for an `AskingBase`; by default the base's true one.
        """
        parameters = self.parameters
        kept = [p.grad for p in parameters]
        self._put_gradient(gradient)
        if isinstance(self.base, AskingBase):
            ask = gradient_function or self.base.gradient
            self.base.step_asking(lambda: self._put_gradient(ask(self.point())))
        else:
            self.base.step()
        for parameter, value_before in zip(parameters, kept, strict=True):
            parameter.grad = value_before

    def _put_gradient(self, gradient: Tensor) -> None:
        """Make ``gradient [d]``, clipped, the gradients in ``.grad`` of the parameters that a step moves."""
        parameters = self.parameters
        # A copy: clipping and some optimizers change .grad in place.
        pieces = split(gradient.clone(), parameters)
        for parameter, value, is_active in zip(parameters, pieces, self._active(), strict=True):
            parameter.grad = value.to(parameter.dtype) if is_active else None
        self.clip()

    @contextmanager
    def rewound(self) -> Iterator[None]:
        """Put parameters, state and groups back at the end of the block, as if no step had been taken in it."""
        snapshot = self._snapshot()
        try:
            yield
        finally:
            self._restore(snapshot)

    @contextmanager
    def undone_on_fault(self) -> Iterator[None]:
        """Undo the steps of the block if one of them fails numerically or leaves parameters that are not finite.

        Raises:
            NonFiniteError: a parameter became NaN or infinite.
        """
        snapshot = self._snapshot()
        try:
            yield
            _check_parameters(self.point())
        except NumericalError:
            self._restore(snapshot)
            raise

    def _replica(self) -> FlatReplica | None:
        """A replica to step; None where the base itself must step, for instance because a parameter has no gradient."""
        return FlatReplica.of(self.base, self.max_grad_norm) if all(self._active()) else None

    @contextmanager
    def trial_steps(self) -> Iterator[Stepper]:
        """A stepper for the block, whose steps are undone at its end."""
        replica = self._replica()
        if replica is not None:
            yield replica
            return
        with self.rewound():
            yield self

    @contextmanager
    def committed_steps(self) -> Iterator[Stepper]:
        """A stepper for the block, whose steps are kept unless one fails numerically or leaves non-finite parameters.

        Raises:
            NonFiniteError: a parameter became NaN or infinite; parameters and state are as before.
        """
        replica = self._replica()
        if replica is not None:
            yield replica
            _check_parameters(replica.point())
            replica.commit()
            return
        with self.undone_on_fault():
            yield self

    def _snapshot(self) -> Snapshot:
        """Copy of what a step may change, to be restored once."""
        state = self.base.state
        return Snapshot(
            [p.detach().clone() for p in self.parameters],
            # Many optimizers initialise on `len(state) == 0`, so an absent state is kept apart from an empty one.
            [_copy_values(state[p]) if p in state else None for p in self.parameters],
            [_copy_values(group) for group in self.groups],
        )

    @torch.no_grad()
    def _restore(self, snapshot: Snapshot) -> None:
        """Put everything back; the tensors of the snapshot's states are taken over, not copied."""
        for parameter, value, state in zip(self.parameters, snapshot.parameters, snapshot.states, strict=True):
            parameter.copy_(value)
            if state is None:
                self.base.state.pop(parameter, None)
            else:
                self.base.state[parameter] = state
        for group, values in zip(self.groups, snapshot.groups, strict=True):
            for key in group.keys() - values.keys() - {"params"}:
                del group[key]
            # In place: schedulers hold these very dictionaries, and a learning rate may be a tensor the user holds.
            for key, value in values.items():
                if isinstance(value, Tensor) and isinstance(group.get(key), Tensor):
                    group[key].copy_(value)
                else:
                    group[key] = value


def _check_parameters(point: Tensor) -> None:
    """Raise NonFiniteError if a base step led to a ``point [d]`` with NaN or infinite entries."""
    if point.sum().isfinite():  # then so is every entry; no mask of the size of the point is needed
        return
    bad = int((~point.isfinite()).sum())
    if bad:
        raise NonFiniteError(f"the step made {bad} parameters NaN or infinite; it was undone")
