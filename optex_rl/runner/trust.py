"""What a run folder may have imported and called: its options name code, and code can do anything."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Final

import gymnasium
from torch import nn

from ..common.errors import RunFolderError
from ..common.imports import find_named, import_named, is_installed
from ..envs import NativeVectorEnv
from ..training.config import TrainConfig
from ..training.tasks import wrapper_names

KINDS: Final[dict[str, tuple[type, ...]]] = {
    "env": (gymnasium.Env, NativeVectorEnv),
    "env_wrapper": (gymnasium.Wrapper,),
    "policy": (nn.Module,),
}


def check_trust(config: TrainConfig, run_dir: Path, has_policy: bool) -> None:
    """Refuse options of a run folder that name code which a stranger's folder must not have run.

    Allowed are tasks that are registered, by a module that is installed or that the program has imported itself, and
    classes of such modules: environments, wrappers, networks. Functions are not, wherever they are: with arguments
    from a file, ``subprocess:run`` makes no environment. Nothing of a module that is neither installed nor imported
    yet is run to find out.

    Args:
        config: the options.
        run_dir: the run folder, for the message.
        has_policy: whether the user gives the policy, so that the one of the options is not needed.

    Raises:
        RunFolderError: naming the option.
        ConfigError: something that is named does not exist.
    """
    named = [("env", config.env_name), *(("env_wrapper", name) for name, _ in wrapper_names(config.env_wrapper))]
    if config.policy is not None and not has_policy:
        named.append(("policy", config.policy))
    for option, name in named:
        if ":" in name and not _is_harmless(option, name):
            raise RunFolderError(
                f"{run_dir / 'config.yml'} names code that may do anything, {option} {name!r}: if you trust the "
                "folder, say so with --trust, in Python trust=True"
            )


def _is_harmless(option: str, name: str) -> bool:
    module, _, attribute = name.rpartition(":")
    if not (is_installed(module) or module in sys.modules):
        return False
    import_named(module, option)
    if option == "env" and attribute in gymnasium.registry:
        return True
    found: Any = find_named(name, option)
    return isinstance(found, type) and issubclass(found, KINDS[option])
