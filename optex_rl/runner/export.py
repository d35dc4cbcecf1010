"""Policies as programs of their own: normalisation, network and the form of the actions in one file."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import torch
from gymnasium import Space
from torch import nn

from ..agents import sample_observations
from ..common.errors import ConfigError
from ..common.storage import write_atomically
from ..training.rollouts.normalization import Normalizer
from .program import Program

CHECKED: Final = 64  # observations on which the program must act as the policy does
TOLERANCE: Final = 1e-5  # of continuous actions

Acting = Callable[[Any], Any]  # from observations to actions, tensors [B, …]


def export_policy(
    policy: nn.Module, normalizer: Normalizer, space: Space[Any], predict: Callable[[Any], tuple[Any, Any]], path: Path
) -> None:
    """Write a `Program`, once it has been read again and acts as ``predict`` does.

    Args:
        policy: the network.
        normalizer: its statistics.
        space: of a single observation.
        predict: from observations ``[B, …]`` to actions ``[B, …]``.
        path: the file, which ends in .pt2 or .pt.

    Raises:
        ConfigError: the path ends differently, torch cannot export the network, or the actions differ.
        RunFolderError: the file cannot be written.
    """
    if path.suffix not in FORMATS:
        words = ".pt2 for a program of torch.export, or in .pt for one of TorchScript"
        raise ConfigError(f"the path of an exported policy must end in {words}, got {str(path)!r}")
    obs = sample_observations(space, CHECKED)
    program = Program(deepcopy(policy), normalizer, space).eval().requires_grad_(False)
    if path.suffix == ".pt" and program.layout.images and program.layout.plain:
        raise ConfigError("TorchScript cannot read numbers beside images in one row: export to .pt2, not to .pt")
    try:
        data, act = FORMATS[path.suffix](program, as_tensors(obs))
    except Exception as error:  # of any type, since the network may be anything
        reason = (str(error) or type(error).__name__).splitlines()[0]
        if "specialized it to be a constant" in str(error) or "Using len to get tensor shape" in str(error):
            reason = "it works for one number of rows only; obs.shape[0] is kept open, where len(obs) is not"
        raise ConfigError(f"torch cannot export {type(policy).__name__} to {path.suffix}: {reason}") from error
    for rows in (obs, first_row(obs)):
        expected, given = np.asarray(predict(rows)[0]), act(as_tensors(rows)).numpy()
        if expected.dtype != given.dtype or not np.allclose(expected, given, rtol=0, atol=TOLERANCE):
            raise ConfigError(f"the program exported from {type(policy).__name__} does not act as the policy does")
    write_atomically(path, data)


def as_tensors(obs: Any) -> Any:
    """Arrays, or a dictionary of arrays, as tensors."""
    return {k: torch.from_numpy(v) for k, v in obs.items()} if isinstance(obs, dict) else torch.from_numpy(obs)


def first_row(obs: Any) -> Any:
    """Observations ``[B, …]`` -> ``[1, …]``."""
    return {key: part[:1] for key, part in obs.items()} if isinstance(obs, dict) else obs[:1]


def by_torch_export(program: nn.Module, obs: Any) -> tuple[bytes, Acting]:
    """A program of ``torch.export`` that takes any number of rows: the file, and what is read from it."""
    buffer, batch = io.BytesIO(), {0: torch.export.Dim("batch", min=1)}
    shapes = dict.fromkeys(obs, batch) if isinstance(obs, dict) else batch
    torch.export.save(torch.export.export(program, (obs,), dynamic_shapes=(shapes,)), buffer)
    act: Any = torch.export.load(io.BytesIO(buffer.getvalue())).module()
    return buffer.getvalue(), act


def by_torchscript(program: nn.Module, obs: Any) -> tuple[bytes, Acting]:
    """A traced program of TorchScript, which torch calls deprecated: the file, and what is read from it.

    Where a trace might not hold for other observations torch only warns; that is an error here.
    """
    buffer, script = io.BytesIO(), cast(Any, torch.jit)  # which has no types
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("always", script.TracerWarning)
        script.save(script.trace(program, (obs,), check_trace=False), buffer)
        act: Acting = script.load(io.BytesIO(buffer.getvalue()))
    for warning in given:
        if issubclass(warning.category, script.TracerWarning):
            raise warning.category(warning.message)
    return buffer.getvalue(), act


FORMATS: Final[Mapping[str, Callable[[nn.Module, Any], tuple[bytes, Acting]]]] = {
    ".pt2": by_torch_export,
    ".pt": by_torchscript,
}
