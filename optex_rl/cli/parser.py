"""The parser of the command line: every error is one sentence, and what is misspelt gets a suggestion."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from typing import Any, Final, NoReturn

from ..common.errors import ConfigError
from ..common.validation import did_you_mean

# What other toolkits call our flags, where the spelling alone would not lead there.
ALIASES: Final = {
    "lr": "learning-rate",
    "n-timesteps": "iterations",
    "total-timesteps": "iterations",
    "hidden-sizes": "net-arch",
}


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` without abbreviations that raises a `ConfigError` where argparse prints its usage and exits.

    Flags and commands that do not exist are refused before anything else is looked at.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})
        self._commands: Any = None

    def add_subparsers(self, **kwargs: Any) -> Any:
        """As argparse; their parsers are of this class, too."""
        self._commands = super().add_subparsers(**kwargs)
        return self._commands

    def parse_known_args(  # type: ignore[override]  # of which argparse has two forms
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """As argparse, but nothing may be left over.

        Raises:
            ConfigError: something in ``args`` cannot be used.
        """
        given = list(sys.argv[1:] if args is None else args)
        self._check_words(given)
        options, rest = super().parse_known_args(given, namespace)
        if rest:
            self.error(f"unexpected argument {rest[0]!r}")
        return options, []

    def error(self, message: str) -> NoReturn:
        """Raise a `ConfigError` that says where to read more."""
        raise ConfigError(f"{message} (see {self.prog} --help)")

    def _check_words(self, words: Sequence[str]) -> None:
        """Refuse the first flag or command that does not exist; behind ``--`` and a command there may be others."""
        for word in words:
            if word == "--":
                return
            if re.match("--?[A-Za-z]", word):
                self._check_flag(word.partition("=")[0])
            elif self._commands is not None:
                self._check_command(word)
                return

    def _check_flag(self, flag: str) -> None:
        known = self._option_string_actions
        if flag in known:
            return
        words = flag.strip("-").lower().replace("_", "-")
        if f"--{ALIASES.get(words)}" in known:
            words = ALIASES[words]
        # Without the dashes, which would make all short words alike.
        hint = did_you_mean(words, [name[2:] for name in known if name.startswith("--")], prefix="--")
        if hint:
            raise ConfigError(f"unknown flag {flag}{hint}")
        self.error(f"unknown flag {flag}")

    def _check_command(self, word: str) -> None:
        known = self._commands.choices
        if word not in known:
            raise ConfigError(f"unknown command {word!r}{did_you_mean(word, known)}; known are {', '.join(known)}")
