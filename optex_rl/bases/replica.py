"""A copy of a base optimizer whose parameters are one long vector, or one for each run of groups treated alike.

An elementwise update does not depend on which tensor an entry is in, so a chain of steps may be taken on two vectors
instead of a dozen small tensors: the same steps, up to the rounding of vectorised kernels, at a fraction of the cost.
"""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..common.torch_private import copy_all, flatten, has_step_hooks, split
from .protocols import GradientFunction
from .registry import ELEMENTWISE


def has_replica(base: Optimizer) -> bool:
    """Whether the steps of ``base`` can be taken on flat vectors, because no step depends on the shapes of tensors.

    Not if a hook or a patched ``step`` must see every step, nor with parameters of several devices or precisions.
    """
    if has_step_hooks(base) or "step" in vars(base) or type(base) not in ELEMENTWISE:
        return False
    kinds = set()
    for group in base.param_groups:
        if group.get("differentiable") or not group["params"]:
            return False
        for p in group["params"]:
            # A parameter without axes has the shape of its step counter, so that the two cannot be told apart.
            if p.ndim == 0 or not p.is_floating_point():
                return False
            kinds.add((p.device, p.dtype))
    return len(kinds) == 1


def runs_of_groups(base: Optimizer) -> list[dict[str, Any]]:
    """The parameter groups of ``base``, neighbours as one where no option of its class and no counter differs."""
    runs: list[dict[str, Any]] = []
    treatments: list[Any] = []
    for group in base.param_groups:
        parameter = group["params"][0]
        state = base.state.get(parameter, {})
        counters = {key: value for key, value in state.items() if not _has_entries(value, parameter)}
        treatment = list(map(group.get, base.defaults)), counters
        if runs and treatment == treatments[-1]:
            runs[-1]["params"] += group["params"]
        else:
            runs.append({**group, "params": list(group["params"])})
            treatments.append(treatment)
    return runs


def _has_entries(value: Any, parameter: Tensor) -> bool:
    """Whether a value in the state of ``parameter`` has an entry for each of its entries."""
    return isinstance(value, Tensor) and value.shape == parameter.shape


def merged_state(states: Sequence[dict[str, Any]], parameters: Sequence[Tensor]) -> dict[str, Any] | None:
    """One state for several parameters: entries as one vector, counters once.

    Returns:
        A copy; None if the states differ in more than their entries, as after steps without some of the gradients.
    """
    merged: dict[str, Any] = {}
    if any(state.keys() != states[0].keys() for state in states):
        return None
    for key, first in states[0].items():
        values = [state[key] for state in states]
        if all(map(_has_entries, values, parameters)):
            merged[key] = flatten(values)
        elif isinstance(first, Tensor) and first.ndim == 0 and bool((torch.stack(values) == first).all()):
            merged[key] = first.clone()
        elif first is None and all(v is None for v in values):
            merged[key] = None
        else:
            return None
    return merged


class FlatReplica:
    """An elementwise base at its present parameters and state, stepped independently of it; see `has_replica`.

    Args:
        base: the optimizer; only `commit` changes it.
        runs: its groups, from `runs_of_groups`.
        states: the state of each of them, from `merged_state`.
        max_grad_norm: gradients are clipped to this norm before a step; None for no clipping.
    """

    def __init__(
        self,
        base: Optimizer,
        runs: Sequence[dict[str, Any]],
        states: Sequence[dict[str, Any]],
        max_grad_norm: float | None,
    ) -> None:
        self._base, self._runs, self._max_grad_norm = base, runs, max_grad_norm
        self._point = flatten([p for run in runs for p in run["params"]])
        self._gradient = torch.empty_like(self._point)
        sizes = [sum(p.numel() for p in run["params"]) for run in runs]
        self._vectors = torch.split(self._point, sizes)
        known, groups = defaultdict[Tensor, dict[str, Any]](dict), []
        gradients = torch.split(self._gradient, sizes)
        for run, state, vector, gradient in zip(runs, states, self._vectors, gradients, strict=True):
            vector.grad = gradient
            groups.append({**run, "params": [vector]})
            if state:  # many optimizers initialise on `len(state) == 0`
                known[vector] = state
        # The function that torch wraps for hooks and profilers: the wrapper costs as much as the step.
        self._step = inspect.unwrap(type(base).step)
        # As unpickling does: every option is in the groups, and the constructor's checks cost as much as two steps.
        self._optimizer: Optimizer = type(base).__new__(type(base))
        self._optimizer.__setstate__({"defaults": base.defaults, "state": known, "param_groups": groups})

    @classmethod
    def of(cls, base: Optimizer, max_grad_norm: float | None) -> FlatReplica | None:
        """The replica of ``base``, or None if it can have none."""
        if not has_replica(base):
            return None
        runs, states = runs_of_groups(base), []
        for run in runs:
            state = merged_state([base.state.get(p, {}) for p in run["params"]], run["params"])
            if state is None:
                return None
            states.append(state)
        return cls(base, runs, states, max_grad_norm)

    def point(self) -> Tensor:
        """The parameters θ ``[d]``, which the next step changes in place."""
        return self._point

    def move_to(self, point: Tensor) -> None:
        """Copy ``point [d]`` into the parameters."""
        self._point.copy_(point)

    @torch.no_grad()
    def step(self, gradient: Tensor, gradient_function: GradientFunction | None = None) -> None:
        """One base step with ``gradient [d]``, clipped; an elementwise base never calls ``gradient_function``."""
        factor = 1.0
        if self._max_grad_norm is not None:  # as clip_grad_norm_
            factor = min(1.0, self._max_grad_norm / (float(torch.linalg.vector_norm(gradient)) + 1e-6))
        torch.mul(gradient, factor, out=self._gradient)  # some optimizers change .grad in place
        self._step(self._optimizer)

    @torch.no_grad()
    def commit(self) -> None:
        """Copy parameters and state of the replica into the base, in place."""
        for run, vector in zip(self._runs, self._vectors, strict=True):
            parameters: list[Tensor] = run["params"]
            copy_all(parameters, split(vector, parameters))
            for key, merged in self._optimizer.state[vector].items():
                in_entries = _has_entries(merged, vector)
                values = split(merged, parameters) if in_entries else [merged] * len(parameters)
                _assign([self._base.state[p] for p in parameters], key, values)


def _assign(states: list[dict[str, Any]], key: str, values: list[Any]) -> None:
    """Put copies of the ``values`` into states; in place where there are tensors already."""
    present = [state.get(key) for state in states]
    if all(isinstance(value, Tensor) for value in (*present, *values)):
        copy_all(present, values)  # type: ignore[arg-type]
        return
    for state, value in zip(states, values, strict=True):
        state[key] = value.clone() if isinstance(value, Tensor) else value
