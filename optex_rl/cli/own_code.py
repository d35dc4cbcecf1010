"""What the command line says of a user's own code: tasks with arguments and wrappers, networks, and trust."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import yaml


def read_pair(text: str) -> tuple[str, Any]:
    """KEY:VALUE as rl_zoo3 has it, the value read as YAML: a number, true, false, or text."""
    key, colon, value = text.partition(":")
    if not key or not colon:
        raise argparse.ArgumentTypeError(f"must be KEY:VALUE, got {text!r}")
    return key, read_yaml(value)


def read_yaml(text: str) -> Any:
    """A value in YAML."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise argparse.ArgumentTypeError(f"cannot be read, got {text!r}") from error


# The options of `TrainConfig` that take several words: how their flags read them, and the end of their help.
OWN_CODE: Final[Mapping[str, tuple[dict[str, Any], str]]] = {
    "env_kwargs": ({"type": read_pair, "metavar": "KEY:VALUE"}, " (default: none)"),
    "env_wrapper": ({"type": read_yaml, "metavar": "CLASS"}, ", or '{module.Class: {key: value}}'"),
}


def add_trust(command: argparse.ArgumentParser) -> None:
    """Add the flag of what runs a run folder."""
    text = "run code that the options of the run name: functions, and modules that are not installed packages"
    command.add_argument("--trust", action="store_true", help=text)


@contextmanager
def working_directory_importable() -> Iterator[None]:
    """A block in which modules of the working directory are found, after all others, as by ``python -m``."""
    folder = os.getcwd()
    if folder in sys.path or "" in sys.path:
        yield
        return
    sys.path.append(folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
