"""The fields of `TrainConfig` as flags of a command line."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final, get_type_hints

from ..common.validation import flag_reader
from ..training.checks import is_list
from ..training.config import TrainConfig
from ..training.presets import TUNED_BASE, tuned_options
from .own_code import OWN_CODE

# The groups in which the flags are shown: each begins with a field and ends before the next one's.
GROUPS: Final = {
    "algo": "run",
    "parallelism": "points and OptEx",
    "gamma": "agent",
    "normalize_obs": "experience and network",
    "eval_freq": "evaluation, files and display",
}


def add_config_arguments(
    parser: argparse.ArgumentParser, leave_out: Collection[str] = (), tuned: Mapping[str, Any] | None = None
) -> None:
    """One flag for each field of `TrainConfig`, its help and its choices taken from there.

    A flag that is not given leaves nothing behind, so that it is known which were.

    Args:
        parser: gets the flags, in groups.
        leave_out: fields without one.
        tuned: values that the help shows in place of the defaults.
    """
    hints = get_type_hints(TrainConfig)
    group: Any = parser
    for spec in dataclasses.fields(TrainConfig):
        if spec.name in GROUPS:
            group = parser.add_argument_group(GROUPS[spec.name])
        if spec.name in leave_out:
            continue
        hint = hints[spec.name]
        flag = "--" + spec.name.replace("_", "-")
        text = f"{spec.metadata['help']} ({describe_value(spec, tuned or {})})"
        if hint is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text)
            continue
        if spec.name in OWN_CODE:
            reading, more = OWN_CODE[spec.name]
            text = spec.metadata["help"] + more
            group.add_argument(flag, nargs="+", default=argparse.SUPPRESS, help=text, **reading)
            continue
        is_tuple = is_list(hint)
        group.add_argument(
            flag,
            type=flag_reader(int | None) if is_tuple else flag_reader(hint),
            nargs="+" if is_tuple else None,
            default=argparse.SUPPRESS,
            choices=spec.metadata["choices"],
            metavar=None if spec.metadata["choices"] else spec.name.upper(),
            help=text,
        )


def describe_value(spec: dataclasses.Field[Any], tuned: Mapping[str, Any]) -> str:
    """The value that an option has if its flag is not given, and where it comes from."""
    value = tuned.get(spec.name, spec.default)
    if isinstance(value, bool):
        shown = "yes" if value else "no"
    else:
        shown = " ".join(map(str, value)) if isinstance(value, (tuple, list)) else "none" if value is None else value
    return f"{'tuned' if spec.name in tuned else 'default'}: {shown}"


def given_options(flags: Mapping[str, Any]) -> dict[str, Any]:
    """The flags of `add_config_arguments` that were given, as arguments of `TrainConfig`; other flags are left out."""
    given = {spec.name: flags[spec.name] for spec in dataclasses.fields(TrainConfig) if spec.name in flags}
    converted: dict[str, Callable[[Any], Any]] = {
        "net_arch": lambda sizes: None if sizes == [None] else tuple(sizes),
        "env_kwargs": dict,
    }
    return {name: converted.get(name, lambda value: value)(value) for name, value in given.items()}


def tuned_for(arguments: Sequence[str]) -> tuple[str, dict[str, Any]]:
    """The tuned options of the agent and task that a command line names, and a sentence about them, for its help."""
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    defaults = {spec.name: spec.default for spec in dataclasses.fields(TrainConfig)}
    names = ("env", "algo", "optimizer")
    for name in names:
        peek.add_argument(f"--{name}", nargs="?", default=defaults[name])
    given, _ = peek.parse_known_args(arguments)
    env, algo, optimizer = (str(getattr(given, name)) for name in names)
    tuned = tuned_options(env, algo)
    if optimizer != TUNED_BASE:
        tuned["learning_rate"] = f"for {TUNED_BASE} only, to be given with {optimizer}"
    which = f"Values marked tuned are for {algo} on {env}." if tuned else f"Nothing is tuned for {algo} on {env}."
    return f"{which} With --env and --algo, --help shows those of another task.", tuned
