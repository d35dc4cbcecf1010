"""Run folders and checkpoints: written whole or not at all, loaded without running anybody's code."""

from __future__ import annotations

import os
import pickle
import sys
import warnings
from pathlib import Path
from typing import Any, Final

import torch

from .config import TrainConfig
from .errors import RunFolderError

FORMAT_VERSION: Final = 1


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write ``content`` to a temporary file beside ``path``, then rename it: a crash leaves the old file."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        torch.save({"version": FORMAT_VERSION, **content}, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Content of a checkpoint, its tensors on the CPU.

    Raises:
        RunFolderError: the file is missing, damaged, or of another version.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch muses about formats that end in the error below
            content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise RunFolderError(f"there is no checkpoint {path}") from error
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, ValueError, KeyError) as error:
        raise RunFolderError(f"{path} is damaged or no checkpoint of optex-rl") from error
    if not isinstance(content, dict) or content.get("version") != FORMAT_VERSION:
        raise RunFolderError(f"{path} is no checkpoint of optex-rl, version {FORMAT_VERSION}")
    return content


def make_run_folder(config: TrainConfig) -> Path | None:
    """Create the run folder, with the options and the command in it.

    Raises:
        RunFolderError: the name is taken, leads out of ``logdir``, or the folder cannot be written.
    """
    if config.logdir is None:
        return None
    logdir = Path(config.logdir)
    if config.run_name is not None:
        run_dir = logdir / config.run_name
        if run_dir.resolve().parent != logdir.resolve():
            raise RunFolderError(f"run_name must be a plain folder name, got {config.run_name!r}")
        if run_dir.exists():
            raise RunFolderError(f"run folder {run_dir} exists already: choose another run_name or remove it")
    else:
        stem = f"{config.env}_{config.algo}_{config.method}_{config.seed}".replace("/", "-")
        names = (stem if k == 1 else f"{stem}_{k}" for k in range(1, sys.maxsize))
        run_dir = next(path for path in (logdir / name for name in names) if not path.exists())
    try:
        run_dir.mkdir(parents=True)
        config.save(run_dir / "config.yml")
        (run_dir / "command.txt").write_text(" ".join(sys.argv) + "\n")
    except OSError as error:
        raise RunFolderError(f"run folder {run_dir} cannot be written: {error.strerror}") from error
    return run_dir
