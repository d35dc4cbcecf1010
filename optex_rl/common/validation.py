"""Checks of what users pass, numbers, choices and text: accepted, or refused in one sentence."""

from __future__ import annotations

import difflib
import math
import reprlib
from collections.abc import Callable, Iterable
from typing import Any, get_args

from .errors import ConfigError


def check_choice(name: str, value: Any, allowed: Iterable[str]) -> None:
    """Raise a ConfigError unless ``value`` is one of ``allowed``."""
    if value not in allowed:
        raise ConfigError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")


def did_you_mean(word: str, known: Iterable[str], prefix: str = "") -> str:
    """What was probably meant by ``word``, as the end of a message; empty if nothing in ``known`` is like it.

    That is the only name that begins with the word, or else the one spelt most like it; ``prefix`` is put before it.
    """
    names = list(known)
    begun = [name for name in names if name.startswith(word.lower())]
    close = begun if len(begun) == 1 else difflib.get_close_matches(word.lower(), names, n=1)
    return f" (did you mean {prefix + close[0]!r}?)" if close else ""


def check_at_least(name: str, value: int, least: int) -> None:
    """Raise a ConfigError unless ``value`` is a whole number of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name} must be a whole number of at least {least}, got {value!r}")


def check_number(name: str, value: float, high: float = math.inf) -> None:
    """Raise `ConfigError` unless `value` is a finite number in [0, high]."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= high or math.isinf(value):
        allowed = "a finite number >= 0" if math.isinf(high) else f"a number between 0 and {high:g}"
        raise ConfigError(f"{name} must be {allowed}, got {value!r}.")


def check_flag(name: str, value: bool) -> None:
    """Raise `ConfigError` unless `value` is True or False."""
    if not isinstance(value, bool):
        raise ConfigError(f"{name} must be True or False, got {value!r}.")


def flag_reader(hint: Any) -> Callable[[str], Any]:
    """A parser of the text of a flag for type ``hint``: the first of None, int, float and str that fits."""
    allowed = get_args(hint) or (hint,)

    def value(text: str) -> Any:
        if type(None) in allowed and text.lower() == "none":
            return None
        for kind in (int, float):
            if kind in allowed:
                try:
                    return kind(text)
                except ValueError:
                    continue
        if str in allowed:
            return text
        raise ValueError(text)

    value.__name__ = "number" if str not in allowed else "value"
    return value


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
