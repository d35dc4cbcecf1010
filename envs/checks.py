"""What every environment checks and reports in the same words: seeds, masks, counts, reset options, ending infos.

Axes: E sub-environments; k blocks of E / k consecutive sub-environments.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
from gymnasium.error import ResetNeeded
from gymnasium.vector import VectorWrapper

from ..common.errors import ConfigError

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]
Observations = npt.NDArray[np.float32 | np.uint8]
Options = Mapping[str, Any]
Seed = int | Sequence[int] | None
if TYPE_CHECKING:
    Wrapper: TypeAlias = VectorWrapper[Any, Any, Any, Any, npt.NDArray[Any]]
else:
    Wrapper = VectorWrapper  # generic from Gymnasium 1.4 on


def check_seeds(seed: int | Sequence[int], num_envs: int) -> list[int]:
    """Return one seed a block: `[seed]` for a number, the list itself otherwise.

    Raises ConfigError if a seed is not a non-negative integer, or if the length of the list does not divide `num_envs`.
    """
    seeds = list(seed) if isinstance(seed, Sequence | np.ndarray) else [seed]
    if any(isinstance(s, bool) or not isinstance(s, int | np.integer) or s < 0 for s in seeds):
        raise ConfigError(f"seed must be a non-negative integer or a list of them, got {seed!r}.")
    if not seeds or num_envs % len(seeds):
        raise ConfigError(f"the number of seeds must divide num_envs={num_envs}, got {len(seeds)} seeds.")
    return [int(s) for s in seeds]


def reset_rows(options: Options | None, num_envs: int, ready: bool) -> BoolArray:
    """Where `reset` starts new episodes, bool [E]: what its option "reset_mask" says, or everywhere without one.

    Raises ConfigError unless the mask is a boolean array [E] that selects something, gymnasium.error.ResetNeeded if the
    environment is not `ready`, because the first reset is partial.
    """
    if options is None or "reset_mask" not in options:
        return np.ones(num_envs, dtype=np.bool_)
    if not ready:
        raise ResetNeeded("the first reset must be without reset_mask.")
    mask: object = options["reset_mask"]
    if not isinstance(mask, np.ndarray) or mask.shape != (num_envs,) or mask.dtype != np.bool_ or not mask.any():
        raise ConfigError(
            f"options['reset_mask'] must be a boolean array [{num_envs}] with a True in it, got {mask!r}."
        )
    return mask


def check_count(name: str, value: object) -> int:
    """Return `value` if it is a positive integer; otherwise raise ConfigError."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
        raise ConfigError(f"{name} must be a positive integer, got {value!r}.")
    return int(value)


def option_number(options: Options, name: str, default: float) -> float:
    """Return the reset option `name` as a float, or `default`; raises ConfigError if it is no finite number."""
    try:
        value = float(options.get(name, default))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"reset option {name!r} must be a number, got {options[name]!r}.") from error
    if not math.isfinite(value):
        raise ConfigError(f"reset option {name!r} must be finite, got {value}.")
    return value


def option_bounds(options: Options, low: float, high: float) -> tuple[float, float]:
    """Return the reset options "low" and "high", by default those given; raises ConfigError if they are no interval."""
    if not options:  # as whenever an episode has ended
        return low, high
    low, high = option_number(options, "low", low), option_number(options, "high", high)
    if low > high:
        raise ConfigError(f"reset option 'low' must not exceed 'high', got low={low} and high={high}.")
    return low, high


def ending_infos(ended: BoolArray, last_seen: Any, returns: FloatArray, lengths: IntArray) -> dict[str, Any]:
    """Return the infos of a step at which episodes ended, as fresh dense arrays.

    Args:
        ended: which sub-environments ended an episode, [E].
        last_seen: what each step led to, before any reset, [E, obs]; it goes into the infos as it is.
        returns: sum of the rewards of the current episodes, [E]; lengths: their steps, [E].
    """
    return {
        "final_obs": last_seen,
        "_final_obs": ended,
        "episode": {"r": np.where(ended, returns, 0.0), "l": np.where(ended, lengths, 0)},
        "_episode": ended.copy(),
    }
