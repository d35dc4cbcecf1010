"""Fields of options, and the checks of options by what their fields say is allowed."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import field
from typing import Any, Final, get_args, get_origin

import torch

from ..common.errors import ConfigError
from ..common.validation import check_between, check_choice, shown

MOST_LAYERS: Final = 16


def option(
    default: Any,
    text: str,
    choices: tuple[str, ...] | None = None,
    *,
    low: float = 0,
    high: float | None = None,
    other: str = "",
    convert: Callable[[Any], Any] | None = None,
) -> Any:
    """Dataclass field with the metadata that the command line needs.

    Args:
        default: the default.
        text: what it means.
        choices: the words that are allowed; None for any.
        low: the least number that is allowed.
        high: the largest one; every number has one.
        other: what is allowed besides numbers, for the message.
        convert: checks the value, in place of all that, and returns the one to keep.
    """
    known = {"help": text, "choices": choices, "low": low, "high": high, "other": other, "convert": convert}
    return field(default=default, metadata=known, hash=None if convert is None else False)


def check_option(name: str, value: Any, hint: Any, known: Mapping[str, Any]) -> None:
    """Raise a ConfigError unless an option has its type and is within what `option` says.

    Whole numbers may stand for real ones. The bounds of a tuple are those of its entries.
    """
    low, high = known["low"], known["high"]
    allowed = set(get_args(hint) or (hint,))
    if is_list(hint):
        if value is None and type(None) in allowed:
            return
        sizes = value if isinstance(value, tuple) and len(value) <= MOST_LAYERS else (None,)
        if not all(type(size) is int and low <= size <= high for size in sizes):
            words = f"a list of at most {MOST_LAYERS} whole numbers between {low} and {high}"
            raise ConfigError(f"{name} must be {words}, got {shown(value)}")
        return
    if type(value) not in (allowed | {int} if float in allowed else allowed):
        raise ConfigError(f"{name} must be {getattr(hint, '__name__', hint)}, got {shown(value)}")
    if known["choices"] is not None:
        check_choice(name, value, known["choices"])
    if high is not None and isinstance(value, (int, float)):
        check_between(name, value, low, high, "a number" if float in allowed else "a whole number", known["other"])


def is_list(hint: Any) -> bool:
    """Whether an option of this type is a tuple, or may be one."""
    return any(get_origin(kind) is tuple for kind in (hint, *get_args(hint)))


def check_device(device: str) -> None:
    """Raise a ConfigError unless torch has the device."""
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device {device!r} cannot be used here, try 'cpu' ({reason})") from error


def check_workers(workers: int | None, ray_address: str | None, parts: int, method: str, parallelism: int) -> None:
    """Raise a ConfigError unless there is something to do for each worker, and a cluster can have this address.

    Args:
        workers: processes, or None.
        ray_address: of a cluster, or None.
        parts: points, or groups of environments, that can be divided among the workers.
        method: which decides how many, for the message.
        parallelism: likewise.
    """
    if workers is not None and workers > parts:
        words = f"{parts} with method {method} and parallelism {parallelism}, got {workers}"
        raise ConfigError(f"workers must be at most {words}: the others would have nothing to do")
    if ray_address is not None:
        if workers is None:
            raise ConfigError(f"ray_address needs workers, the number of processes; got {ray_address!r} alone")
        if not re.fullmatch(r"auto|[^\s:/]+:\d{1,5}", ray_address):
            raise ConfigError(f"ray_address must be 'auto' or HOST:PORT, got {ray_address!r}")
