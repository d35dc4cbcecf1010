"""What the algorithms with N points share: OptEx over the optimizer of their policy, and its entries in the log."""

from __future__ import annotations

from typing import Any

import torch
from stable_baselines3.common.logger import Logger

from ..optimizer import OptEx


def with_optex(
    policy_kwargs: dict[str, Any],
    parallelism: int,
    max_grad_norm: float,
    optex_kwargs: dict[str, Any],
    horizon: str,
    adam_kwargs: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Arguments of the policy with OptEx over the optimizer that they name; the same again for its own result.

    Args:
        policy_kwargs: ``optimizer_class`` and ``optimizer_kwargs`` are the base and its arguments.
        parallelism: N.
        max_grad_norm: of the algorithm. With one point it clips before the step, as ever; with more OptEx does.
        optex_kwargs: further arguments of `OptEx`.
        horizon: of `OptEx`, unless they say otherwise.
        adam_kwargs: what the policy gives Adam where no arguments are given.
    """
    cls = policy_kwargs.get("optimizer_class", torch.optim.Adam)
    options = policy_kwargs.get("optimizer_kwargs")
    if not issubclass(cls, OptEx):
        base_kwargs = adam_kwargs if cls is torch.optim.Adam and options is None else options
        cls, options = OptEx, {"base": cls, "base_kwargs": dict(base_kwargs or {})}
    clip = {"max_grad_norm": None if parallelism == 1 else max_grad_norm}
    options = {"horizon": horizon, **(options or {}), **clip, **optex_kwargs, "parallelism": parallelism}
    return {**policy_kwargs, "optimizer_class": cls, "optimizer_kwargs": options}


def record_statistics(logger: Logger, optimizer: OptEx, prefix: str = "optex") -> None:
    """Write the figures of the last iteration to the log as ``prefix/…``."""
    for name, value in optimizer.statistics.items():
        logger.record(f"{prefix}/{name}", value)
