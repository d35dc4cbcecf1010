"""Checks of single options, by what their fields say is allowed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, get_args, get_origin

import torch

from ..common.errors import ConfigError
from ..common.validation import check_between, check_choice, shown

MOST_LAYERS: Final = 16


def check_option(name: str, value: Any, hint: Any, known: Mapping[str, Any]) -> None:
    """Raise a ConfigError unless an option has its type and is within what `_option` says.

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
