"""The options of OptEx, validated once at construction."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from .errors import ConfigError
from .estimator_options import HISTORY_SIZE, KERNEL, LENGTHSCALE, NOISE, validate_estimator_options
from .predictors import PREDICTORS
from .selections import SELECTIONS

MODES: Final = ("extrapolate", "emulate")
BLOCKS: Final = ("joint", "groups")


def check_choice(name: str, value: Any, allowed: Iterable[str]) -> None:
    """Raise a ConfigError unless ``value`` is one of ``allowed``."""
    if value not in allowed:
        raise ConfigError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")


def check_at_least(name: str, value: int, least: int) -> None:
    """Raise a ConfigError unless ``value`` is a whole number of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name} must be a whole number of at least {least}, got {value!r}")


def check_between(
    name: str, value: float, low: float, high: float, kind: str = "a whole number", other: str = ""
) -> None:
    """Raise a ConfigError unless ``low <= value <= high``, where ``kind`` is a whole number or any.

    The message names what ``other`` is allowed as well.
    """
    fits = isinstance(value, int if kind == "a whole number" else (int, float)) and not isinstance(value, bool)
    if not (fits and low <= value <= high):
        allowed = f"{kind} between {low} and {high}" + (f", or {other}" if other else "")
        raise ConfigError(f"{name} must be {allowed}, got {shown(value)}")


def shown(value: Any) -> str:
    """``value`` for a message, of bounded length whatever a file of options holds."""
    try:
        return reprlib.repr(value) if isinstance(value, (list, tuple, dict)) else repr(value)
    except ValueError:  # Python prints no whole number of thousands of digits
        return f"one of type {type(value).__name__} that is too long to be printed"


@dataclass(frozen=True, kw_only=True)
class OptExOptions:
    """How OptEx proposes, estimates and selects; `OptEx` says what each option means.

    Raises:
        ConfigError: an option is outside what is allowed.
    """

    parallelism: int = 4
    history_size: int = HISTORY_SIZE
    kernel: str = KERNEL
    lengthscale: float | str = LENGTHSCALE
    noise: float | str = NOISE
    selection: str = "refine"
    stride: int = 1
    blocks: str = "joint"
    predictor: str = "posterior"
    without_closure: str = "extrapolate"
    max_grad_norm: float | None = None

    def __post_init__(self) -> None:
        check_at_least("parallelism", self.parallelism, 1)
        check_at_least("history_size", self.history_size, 2)
        check_at_least("stride", self.stride, 1)
        check_choice("selection", self.selection, SELECTIONS)
        check_choice("blocks", self.blocks, BLOCKS)
        check_choice("predictor", self.predictor, PREDICTORS)
        check_choice("without_closure", self.without_closure, MODES)
        validate_estimator_options(self.history_size, self.kernel, self.lengthscale, self.noise)
        if 1 < self.parallelism and self.history_size <= self.parallelism:
            # The copies of the first iterate would fill the history: no two distinct points, no estimate, ever.
            raise ConfigError(
                f"history_size must be more than parallelism = {self.parallelism}, best a few times as much, "
                f"got {self.history_size}"
            )
        if self.without_closure == "emulate" and SELECTIONS[self.selection].needs_losses:
            raise ConfigError(f"selection {self.selection!r} needs losses, which without_closure 'emulate' never sees")
        if self.max_grad_norm is not None and not self.max_grad_norm > 0:
            raise ConfigError(f"max_grad_norm must be positive or None, got {self.max_grad_norm}")

    def estimator_options(self) -> dict[str, Any]:
        """The part that concerns the predictor: only the posterior has something to fit."""
        fitted = ("kernel", "lengthscale", "noise") if self.predictor == "posterior" else ()
        return {name: getattr(self, name) for name in ("history_size", *fitted)}
