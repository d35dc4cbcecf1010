"""A copy of a base optimizer whose parameter groups are one long vector each.

An elementwise update does not know in which tensor an entry stands, so a chain of steps may be taken on two vectors
instead of a dozen small tensors: the same steps, up to the rounding of vectorised kernels, at a fraction of the cost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from .bases import is_elementwise
from .objective import Oracle


def flatten(tensors: Sequence[Tensor]) -> Tensor:
    """Copy of all entries as one vector ``[d]``."""
    return torch.cat([t.detach().reshape(-1) for t in tensors])


def split(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Views of a vector ``[d]`` in the shapes of ``like``."""
    parts = torch.split(vector, [t.numel() for t in like])
    return [part.view(t.shape) for part, t in zip(parts, like, strict=True)]


def has_twin(base: Optimizer) -> bool:
    """Whether the steps of ``base`` can be taken on flat vectors: nothing tells one tensor from another, or looks on.

    Not where a hook or a patched ``step`` sees every step, nor with parameters of several devices or precisions.
    """
    observed = base._optimizer_step_pre_hooks or base._optimizer_step_post_hooks or "step" in vars(base)
    if observed or not is_elementwise(base) or any(group.get("differentiable") for group in base.param_groups):
        return False
    parameters = [p for group in base.param_groups for p in group["params"]]
    kinds = {(p.device, p.dtype) for p in parameters}
    # A parameter without axes has the shape of its step counter, so that the two cannot be told apart.
    return len(kinds) == 1 and all(p.ndim > 0 and p.is_floating_point() for p in parameters)


def merged_state(states: Sequence[dict[str, Any]], parameters: Sequence[Tensor]) -> dict[str, Any] | None:
    """One state for all parameters of a group: entries as one vector, counters once.

    Returns:
        A copy; None if the states differ in more than their entries, as after steps without some of the gradients.
    """
    merged: dict[str, Any] = {}
    if any(state.keys() != states[0].keys() for state in states):
        return None
    for key, first in states[0].items():
        values = [state[key] for state in states]
        if all(isinstance(v, Tensor) and v.shape == p.shape for v, p in zip(values, parameters, strict=True)):
            merged[key] = flatten(values)
        elif isinstance(first, Tensor) and first.ndim == 0 and all(torch.equal(first, v) for v in values):
            merged[key] = first.clone()
        elif first is None and all(v is None for v in values):
            merged[key] = None
        else:
            return None
    return merged


class FlatTwin:
    """An elementwise base at its present parameters and state, to be stepped apart from it; see `has_twin`.

    Args:
        base: the optimizer; only `commit` changes it.
        states: the state of each group, from `merged_state`.
        max_grad_norm: gradients are clipped to this norm before a step; None for no clipping.
    """

    def __init__(self, base: Optimizer, states: Sequence[dict[str, Any]], max_grad_norm: float | None) -> None:
        self._base, self._max_grad_norm = base, max_grad_norm
        groups = base.param_groups
        self._point = flatten([p for group in groups for p in group["params"]])
        self._gradient = torch.empty_like(self._point)
        sizes = [sum(p.numel() for p in group["params"]) for group in groups]
        self._vectors = torch.split(self._point, sizes)
        for vector, gradient in zip(self._vectors, torch.split(self._gradient, sizes), strict=True):
            vector.grad = gradient
        pairs = zip(groups, self._vectors, strict=True)
        make: Callable[..., Optimizer] = type(base)  # every option is in the groups
        self._optimizer = make([{**group, "params": [vector]} for group, vector in pairs])
        for vector, state in zip(self._vectors, states, strict=True):
            if state:  # many optimizers initialise on `len(state) == 0`
                self._optimizer.state[vector] = state

    @classmethod
    def of(cls, base: Optimizer, max_grad_norm: float | None) -> FlatTwin | None:
        """The twin of ``base``, or None if it can have none."""
        if not has_twin(base):
            return None
        states = [
            merged_state([base.state.get(p, {}) for p in group["params"]], group["params"])
            for group in base.param_groups
        ]
        known = [state for state in states if state is not None]
        return cls(base, known, max_grad_norm) if len(known) == len(states) else None

    def point(self) -> Tensor:
        """The parameters θ ``[d]``, which the next step changes in place."""
        return self._point

    def move_to(self, point: Tensor) -> None:
        """Copy ``point [d]`` into the parameters."""
        self._point.copy_(point)

    def step(self, gradient: Tensor, oracle: Oracle | None = None) -> None:
        """One base step with ``gradient [d]``, clipped; an elementwise base asks no ``oracle``."""
        factor = 1.0
        if self._max_grad_norm is not None:  # as clip_grad_norm_
            factor = min(1.0, self._max_grad_norm / (float(torch.linalg.vector_norm(gradient)) + 1e-6))
        torch.mul(gradient, factor, out=self._gradient)  # some optimizers change .grad in place
        self._optimizer.step()

    @torch.no_grad()
    def commit(self) -> None:
        """Bring parameters and state of the base to where the twin is, in place."""
        for group, vector in zip(self._base.param_groups, self._vectors, strict=True):
            parameters = group["params"]
            for parameter, value in zip(parameters, split(vector, parameters), strict=True):
                parameter.copy_(value)
            for key, merged in self._optimizer.state[vector].items():
                in_entries = isinstance(merged, Tensor) and merged.shape == vector.shape
                values = split(merged, parameters) if in_entries else [merged] * len(parameters)
                for parameter, value in zip(parameters, values, strict=True):
                    _assign(self._base.state[parameter], key, value)


def _assign(state: dict[str, Any], key: str, value: Any) -> None:
    """Put a copy of ``value`` into a state; into the tensor that is there already, if there is one."""
    if isinstance(value, Tensor) and isinstance(state.get(key), Tensor):
        state[key].copy_(value)
    else:
        state[key] = value.clone() if isinstance(value, Tensor) else value
