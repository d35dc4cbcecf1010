"""The options of a `GradientEstimator`: their defaults and their checks."""

from __future__ import annotations

import math
from numbers import Real
from typing import Final

from ...common.errors import ConfigError
from ...common.validation import check_choice
from .kernels import KERNELS

HISTORY_SIZE: Final = 40
KERNEL: Final = "matern52"
LENGTHSCALE: Final = "auto"
NOISE: Final = "auto"


def validate_estimator_options(history_size: int, kernel: str, lengthscale: float | str, noise: float | str) -> None:
    """Check the options of a `GradientEstimator`.

    Raises:
        ConfigError: naming the first option that is outside what is allowed.
    """
    if history_size < 2:
        raise ConfigError(f"history_size must be at least 2, got {history_size}")
    check_choice("kernel", kernel, KERNELS)
    if lengthscale not in ("auto", "median") and not (_is_finite(lengthscale) and float(lengthscale) > 0.0):
        raise ConfigError(f"lengthscale must be a positive number, 'auto' or 'median', got {lengthscale!r}")
    if noise != "auto" and not (_is_finite(noise) and float(noise) >= 0.0):
        raise ConfigError(f"noise must be a number of at least 0, or 'auto', got {noise!r}")


def _is_finite(value: object) -> bool:
    return isinstance(value, Real) and math.isfinite(value)
