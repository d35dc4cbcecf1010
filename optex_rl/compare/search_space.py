"""What `optex-rl tune` searches: ranges and lists of values for options of `TrainConfig`. Needs the extra ``tune``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias, get_type_hints

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from ..common.errors import ConfigError
from ..common.validation import flag_reader
from ..training.config import TrainConfig

Space: TypeAlias = Mapping[str, BaseDistribution]

# Decided by the search itself, or without a meaning in it.
FIXED: Final = frozenset(
    {"env", "env_kwargs", "env_wrapper", "policy", "net_arch"}
    | {"seed", "logdir", "run_name", "progress_bar", "checkpoint_freq", "eval_freq"}
)
YES_OR_NO: Final = {"yes": True, "no": False}


def usual_space(config: TrainConfig) -> Space:
    """What is searched by default: rates within a factor of ten of ``config``'s, and entropy coefficients from 0 on."""
    rate, ent_coef = config.learning_rate, config.ent_coef
    return {
        "learning_rate": FloatDistribution(rate / 10, rate * 10, log=True),
        "ent_coef": FloatDistribution(0.0, max(0.05, 2 * ent_coef)),
    }


def read_space(specifications: Sequence[str]) -> Space:
    """The ranges ``NAME=LOW..HIGH`` and lists ``NAME=A/B/C`` of ``specifications``; above 0 ranges are logarithmic.

    Raises:
        ConfigError: an option cannot be searched, or its values are neither range nor list.
    """
    hints = get_type_hints(TrainConfig)
    space: dict[str, BaseDistribution] = {}
    for specification in specifications:
        name, _, text = specification.partition("=")
        name = name.strip().replace("-", "_")
        if name not in hints or name in FIXED or name in space:
            reason = "is searched already" if name in space else "is no option that can be searched"
            raise ConfigError(f"{name!r} in {specification!r} {reason}")
        read = YES_OR_NO.__getitem__ if hints[name] is bool else flag_reader(hints[name])
        try:
            values = [read(part) for part in text.split(".." if ".." in text else "/")]
            space[name] = _distribution(values, is_range=".." in text)
        except (ValueError, KeyError) as error:
            raise ConfigError(f"search must be NAME=LOW..HIGH or NAME=A/B/C, got {specification!r}") from error
    return space


def _distribution(values: Sequence[Any], *, is_range: bool) -> BaseDistribution:
    """The distribution of a range or of a list; ValueError where the values are neither."""
    if not is_range:
        if len(set(values)) < max(2, len(values)):
            raise ValueError("a list needs two values or more, each once")
        return CategoricalDistribution(values)
    low, high = values
    if not all(isinstance(value, (int, float)) for value in values) or not low < high:
        raise ValueError("a range has two ends, the lower one first")
    if all(type(value) is int for value in values):
        return IntDistribution(low, high, log=low > 0)
    return FloatDistribution(low, high, log=low > 0)


def ends(distribution: BaseDistribution) -> Sequence[Any]:
    """The values between which, or among which, a distribution chooses."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices
    assert isinstance(distribution, (FloatDistribution, IntDistribution))
    return distribution.low, distribution.high


def holds(distribution: BaseDistribution, value: Any) -> bool:
    """Whether a value is between the ends of a distribution, or among those that it chooses from."""
    if isinstance(distribution, CategoricalDistribution):
        return value in distribution.choices
    low, high = ends(distribution)
    return bool(low <= value <= high)
