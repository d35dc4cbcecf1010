"""The fields of `TrainConfig` as flags of a command line."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any, get_type_hints

from ..common.validation import flag_reader
from ..training.checks import is_list
from ..training.config import TrainConfig
from .own_code import OWN_CODE


def add_config_arguments(parser: argparse.ArgumentParser, leave_out: Collection[str] = ()) -> None:
    """One flag for each field of `TrainConfig`, its help and its choices taken from there.

    A flag that is not given leaves nothing behind, so that it is known which were.
    """
    hints = get_type_hints(TrainConfig)
    for spec in dataclasses.fields(TrainConfig):
        if spec.name in leave_out:
            continue
        hint = hints[spec.name]
        default: Any = spec.default
        flag = "--" + spec.name.replace("_", "-")
        if hint is bool:
            parser.add_argument(
                flag,
                action=argparse.BooleanOptionalAction,
                default=argparse.SUPPRESS,
                help=f"{spec.metadata['help']} (default: {'yes' if default else 'no'})",
            )
            continue
        if spec.name in OWN_CODE:
            parser.add_argument(
                flag, nargs="+", default=argparse.SUPPRESS, **OWN_CODE[spec.name](spec.metadata["help"])
            )
            continue
        is_tuple = is_list(hint)
        shown = "none" if default is None else " ".join(map(str, default)) if is_tuple else str(default)
        parser.add_argument(
            flag,
            type=flag_reader(int | None) if is_tuple else flag_reader(hint),
            nargs="+" if is_tuple else None,
            default=argparse.SUPPRESS,
            choices=spec.metadata["choices"],
            metavar=None if spec.metadata["choices"] else spec.name.upper(),
            help=f"{spec.metadata['help']} (default: {shown})",
        )


def given_options(flags: Mapping[str, Any]) -> dict[str, Any]:
    """The flags of `add_config_arguments` that were given, as arguments of `TrainConfig`; other flags are left out."""
    given = {spec.name: flags[spec.name] for spec in dataclasses.fields(TrainConfig) if spec.name in flags}
    converted: dict[str, Callable[[Any], Any]] = {
        "net_arch": lambda sizes: None if sizes == [None] else tuple(sizes),
        "env_kwargs": dict,
    }
    return {name: converted.get(name, lambda value: value)(value) for name, value in given.items()}
