"""The options of OptEx, validated once at construction."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

from ..common.errors import ConfigError
from ..common.validation import check_at_least, check_choice, did_you_mean
from .estimator.options import HISTORY_SIZE, KERNEL, LENGTHSCALE, NOISE, validate_estimator_options
from .estimator.predictors import PREDICTORS
from .selection import SELECTIONS

MODES: Final = ("extrapolate", "emulate")
BLOCKS: Final = ("joint", "groups")
HORIZONS: Final = ("fixed", "auto")


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
    first_steps: int = 1
    horizon: str = "auto"
    blocks: str = "joint"
    predictor: str = "posterior"
    without_closure: str = "extrapolate"
    max_grad_norm: float | None = None

    def __post_init__(self) -> None:
        check_at_least("parallelism", self.parallelism, 1)
        check_at_least("history_size", self.history_size, 2)
        check_at_least("stride", self.stride, 1)
        check_at_least("first_steps", self.first_steps, 1)
        check_choice("selection", self.selection, SELECTIONS)
        check_choice("horizon", self.horizon, HORIZONS)
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

    @property
    def adaptive(self) -> bool:
        """Whether the horizon adapts: N points whose gradients all make the steps, as many steps as they allow."""
        refines = SELECTIONS[self.selection].choose is None
        return self.horizon == "auto" and refines and self.stride == 1 and self.parallelism > 1

    def estimator_options(self) -> dict[str, Any]:
        """The options of the predictor; only the posterior has hyperparameters."""
        fitted = ("kernel", "lengthscale", "noise") if self.predictor == "posterior" else ()
        return {name: getattr(self, name) for name in ("history_size", *fitted)}


def refuse_unknown(names: Collection[str], *, wrapping: bool = False) -> None:
    """Raise a ConfigError if there are arguments that OptEx does not have: most are of the base optimizer.

    Args:
        names: the arguments.
        wrapping: whether there is a base already, which its arguments have gone into.
    """
    known = [spec.name for spec in dataclasses.fields(OptExOptions)] + ([] if wrapping else ["lr", "base_kwargs"])
    example = ", ".join(f"{name!r}: …" for name in names)
    where = "the optimizer that is wrapped" if wrapping else f"base_kwargs, as in base_kwargs={{{example}}}"
    for name in names:
        word = "lr" if name == "learning_rate" and not wrapping else name  # options of training have the long name
        hint = did_you_mean(word, known) or f": arguments of the base optimizer go into {where}"
        raise ConfigError(f"OptEx has no argument {name!r}{hint}")
