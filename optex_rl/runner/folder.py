"""Run folders: their names, the consistency of their files, and a lock for one process at a time."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from torch import nn

from ..common.errors import RunFolderError
from ..common.storage import sync_folder, write_atomically
from ..training.config import TrainConfig

LONGEST_NAME: Final = 255  # bytes of a file name, on all common file systems
IDENTITY: Final = ("env", "algo", "method")  # what a trained policy cannot be used without


def make_run_folder(config: TrainConfig) -> Path | None:
    """Create the run folder, with the options and the command in it.

    Raises:
        RunFolderError: the name is taken, leads out of ``logdir``, or the folder cannot be written.
    """
    if config.logdir is None:
        return None
    if "\0" in config.logdir:
        raise RunFolderError(f"logdir must be the name of a folder, got {config.logdir!r}")
    logdir = Path(config.logdir)
    try:
        run_dir = _free_folder(logdir, config)
        run_dir.mkdir(parents=True)
        config.save(run_dir / "config.yml")
        write_atomically(run_dir / "command.txt", (" ".join(sys.argv) + "\n").encode(errors="backslashreplace"))
        sync_folder(logdir)
    except (OSError, ValueError) as error:
        if isinstance(error, RunFolderError):
            raise
        reason = error.strerror if isinstance(error, OSError) else error
        raise RunFolderError(f"a run folder in {logdir} cannot be written: {reason}") from error
    return run_dir


def _free_folder(logdir: Path, config: TrainConfig) -> Path:
    """The folder that the options name, which does not exist yet."""
    if config.run_name is None:
        stem = re.sub("[/:]", "-", f"{config.env_name}_{config.algo}_{config.method}_{config.seed}")
        names = (stem if k == 1 else f"{stem}_{k}" for k in range(1, sys.maxsize))
        return next(path for path in (logdir / name for name in names) if not os.path.lexists(path))
    check_run_name(config.run_name)
    run_dir = logdir / config.run_name
    if run_dir.is_symlink():
        raise RunFolderError(f"run_name must be a plain folder name, got {config.run_name!r}, which leads elsewhere")
    if os.path.lexists(run_dir):
        raise RunFolderError(f"run folder {run_dir} exists already: choose another run_name or remove it")
    return run_dir


def check_run_dir(run_dir: Path) -> None:
    """Refuse what is no folder.

    Raises:
        RunFolderError: there is none of this name.
    """
    if "\0" in str(run_dir) or not run_dir.is_dir():
        raise RunFolderError(f"there is no run folder {str(run_dir)!r}")


def check_run_name(name: str) -> None:
    """Refuse what is not the name of a single folder.

    Raises:
        RunFolderError: the name is empty, too long, a path, or holds characters that cannot be printed.
    """
    if name in ("", ".", "..") or any(c in "/\\" or not c.isprintable() for c in name):
        raise RunFolderError(f"run_name must be a plain folder name, got {name!r}")
    size = len(name.encode())
    if size > LONGEST_NAME:
        raise RunFolderError(f"run_name must be a plain folder name of at most {LONGEST_NAME} bytes, got {size} bytes")


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Keep other processes from writing to a folder, made if missing; the lock ends with the process, however it ends.

    Where the system has no ``flock`` (Windows) there is no lock.

    Raises:
        RunFolderError: the folder cannot be made, or another process holds it.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunFolderError(f"the folder {run_dir} cannot be made: {error.strerror}") from error
    if sys.platform == "win32":
        yield
        return
    import fcntl

    with ExitStack() as stack:
        try:
            descriptor = os.open(run_dir, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunFolderError(f"another process is writing to run folder {run_dir}: wait or stop it") from error
        except OSError as error:
            raise RunFolderError(f"run folder {run_dir} cannot be locked: {error.strerror}") from error
        yield


def describe_network(policy: nn.Module) -> dict[str, Any]:
    """What distinguishes one network from another, as plain values: its class, its activation, its tensors' shapes."""
    return {
        "class": type(policy).__name__,
        "activation": str(getattr(policy, "activation", "")),
        "shapes": {name: list(value.shape) for name, value in policy.state_dict().items()},
    }


def check_shared_options(
    path: Path, content: Mapping[str, Any], config: TrainConfig, names: tuple[str, ...] = ()
) -> None:
    """Refuse a checkpoint whose run had other options than config.yml says.

    Args:
        path: the checkpoint, for the message.
        content: what is in it.
        config: config.yml.
        names: the options to compare; by default all that shape a run.

    Raises:
        RunFolderError: naming the first option that differs.
    """
    saved, expected = content.get("options"), config.shared_options()
    if not isinstance(saved, dict):
        raise RunFolderError(f"{path} does not say which run it is from")
    for name in names or expected:
        if saved.get(name) != expected[name]:
            said = f"{name} {saved.get(name)!r}, and config.yml beside it says {expected[name]!r}"
            raise RunFolderError(f"{path} is from a run with {said}")


def check_network(path: Path, content: Mapping[str, Any], policy: nn.Module) -> None:
    """Refuse a checkpoint that holds a policy of another network.

    Raises:
        RunFolderError: class, activation or shapes differ.
    """
    saved, expected = content.get("network"), describe_network(policy)
    if saved != expected:
        name = saved.get("class") if isinstance(saved, dict) else None
        other = f" ({name}, not {expected['class']}): give the run's own, as policy=… or --policy module:factory"
        hint = "" if name in (None, expected["class"]) else other
        raise RunFolderError(f"{path} holds a policy of another network than config.yml describes{hint}")
