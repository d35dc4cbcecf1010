"""Objects by name, ``"module:name"``, and the names of objects: what a file can say of a user's own code."""

from __future__ import annotations

import importlib
import sys
from importlib.metadata import packages_distributions
from types import ModuleType
from typing import Any

from .errors import ConfigError


def name_of(thing: object) -> str | None:
    """The name by which `find_named` finds a function or class again: ``"module:name"``.

    None for what has no such name: a lambda, a function within a function, a partial.
    """
    module, name = getattr(thing, "__module__", None), getattr(thing, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str):
        return None
    return f"{module}:{name}" if _attribute(sys.modules.get(module), name) is thing else None


def import_named(module: str, what: str) -> ModuleType:
    """Import a module; ``what`` says for the message what names it.

    Raises:
        ConfigError: it is no name of a module, or cannot be imported.
    """
    if not all(part.isidentifier() for part in module.split(".")):
        raise ConfigError(f"cannot import {module!r}, which {what} names: that is no name of a module.")
    try:
        return importlib.import_module(module)
    except (ImportError, SyntaxError) as error:
        raise ConfigError(f"cannot import {module!r}, which {what} names: {error}.") from error


def find_named(name: str, what: str) -> Any:
    """The object called ``"module:name"``; ``what`` says for the message what names it.

    Raises:
        ConfigError: the name is not of this form, the module cannot be imported, or it has no such object.
    """
    module, colon, attribute = name.partition(":")
    if not colon:
        raise ConfigError(f"{what} must be of the form module:name, got {name!r}")
    found = _attribute(import_named(module, what), attribute)
    if found is None:
        own = " (the program that is running, not the one that began)" if module == "__main__" else ""
        raise ConfigError(f"the module {module!r}{own} has no {attribute!r}, which {what} names")
    return found


def is_installed(module: str) -> bool:
    """Whether a module belongs to an installed distribution: not to the standard library or the working directory."""
    return module.partition(".")[0] in packages_distributions()


def _attribute(thing: Any, path: str) -> Any:
    for name in path.split("."):
        thing = getattr(thing, name, None)
    return thing
