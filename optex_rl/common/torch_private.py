"""The private names of torch that this package uses, each with the test that fails if torch changes it.

Besides these, `OptEx` uses what its base class keeps for subclasses: the hooks of state dictionaries, and the flag
``_opt_called``, by which learning-rate schedulers know of a step (tests/test_conformance.py pins both).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors
from torch.optim import Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks


@torch.no_grad()
def flatten(tensors: Sequence[Tensor]) -> Tensor:
    """Copy of all entries as one vector ``[d]`` (test_flatten_and_split_are_inverse)."""
    if len(tensors) == 1:  # their vector would be a view
        return tensors[0].flatten().clone()
    vector: Tensor = _flatten_dense_tensors(tensors)  # type: ignore[no-untyped-call]
    return vector


def split(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Views of a vector ``[d]`` in the shapes of ``like`` (test_flatten_and_split_are_inverse)."""
    return list(_unflatten_dense_tensors(vector, like))  # type: ignore[no-untyped-call]


def copy_all(targets: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    """Copy many tensors in one call (test_committed_steps_are_those_of_the_base)."""
    torch._foreach_copy_(targets, values)  # type: ignore[arg-type]


def changes(tensor: Tensor) -> int:
    """How often a tensor was changed in place, 0 in inference mode, where torch does not count.

    (test_points_that_were_changed_in_place_are_refused)
    """
    return 0 if tensor.is_inference() else tensor._version


def has_step_hooks(optimizer: Optimizer) -> bool:
    """Whether a hook sees the steps of an optimizer, or of all (test_where_tensors_matter_the_base_steps_itself)."""
    own = optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks
    return bool(own or _global_optimizer_pre_hooks or _global_optimizer_post_hooks)
