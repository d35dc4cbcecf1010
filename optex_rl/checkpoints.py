"""Checkpoints: written whole or not at all, loaded without running anybody's code, and checked to the last bit.

A checkpoint is a file of ``torch.save`` followed by a footer: `MAGIC`, the version of the format, and the SHA-256 of
everything before the footer. ``torch.load(path, weights_only=True)`` reads it as it stands.
"""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from .errors import RunFolderError

FORMAT_VERSION: Final = 4
MAGIC: Final = b"optex-rl checkpoint "
_DIGEST_SIZE: Final = hashlib.sha256().digest_size
_FOOTER_SIZE: Final = len(MAGIC) + 4 + _DIGEST_SIZE


def save_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Write ``content`` to a temporary file beside ``path``, then rename it: a crash leaves the old file.

    Raises:
        RunFolderError: the file cannot be written, for instance because the disk is full; the old one is unharmed.
    """
    buffer = io.BytesIO()
    torch.save({"version": FORMAT_VERSION, **content}, buffer)
    data = buffer.getvalue()
    footer = MAGIC + FORMAT_VERSION.to_bytes(4, "little") + hashlib.sha256(data).digest()
    write_atomically(path, data + footer)


def write_atomically(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data``; when this returns, the file and its name are on the disk.

    Raises:
        RunFolderError: it cannot be written; what was there before is unharmed.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise RunFolderError(f"{path} cannot be written: {error.strerror}") from error


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk, so that a rename outlives a power cut."""
    if os.name == "nt":  # Windows opens no folders; a rename there is journalled by the file system
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Content of a checkpoint, its tensors on the CPU.

    Raises:
        RunFolderError: the file is missing, damaged, or of another version.
    """
    data = _checked(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch muses about formats that end in the error below
            content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # whatever torch makes of it, somebody's file is no reason for a traceback
        raise RunFolderError(f"{path} is damaged or no checkpoint of optex-rl") from error
    if not isinstance(content, dict) or content.get("version") != FORMAT_VERSION:
        raise RunFolderError(f"{path} is no checkpoint of optex-rl, version {FORMAT_VERSION}")
    return content


def _checked(path: Path) -> bytes:
    """What stands before the footer, if the footer says that it is as it was written."""
    try:
        whole = path.read_bytes()
    except FileNotFoundError as error:
        raise RunFolderError(f"there is no checkpoint {path}") from error
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{path} cannot be read as a checkpoint: {error}") from error
    data, footer = whole[:-_FOOTER_SIZE], whole[-_FOOTER_SIZE:]
    magic, digest = footer[: len(MAGIC)], footer[-_DIGEST_SIZE:]
    if magic != MAGIC or digest != hashlib.sha256(data).digest():
        raise RunFolderError(f"{path} is damaged or no checkpoint of optex-rl: its checksum is missing or wrong")
    version = int.from_bytes(footer[len(MAGIC) : -_DIGEST_SIZE], "little")
    if version != FORMAT_VERSION:
        raise RunFolderError(f"{path} is no checkpoint of optex-rl, version {FORMAT_VERSION}, but of version {version}")
    return data


def check_like(path: str, value: Any, template: Any) -> None:
    """Refuse a loaded ``value`` that is not built like ``template``: keys, types, lengths, shapes and precisions.

    A template that is None, or an empty list or dictionary, admits anything of its kind.

    Raises:
        RunFolderError: naming the entry by its ``path``.
    """
    if template is None:
        return
    if type(value) is not type(template):
        raise RunFolderError(f"{path} must be of type {type(template).__name__}, it is {type(value).__name__}")
    if isinstance(template, Tensor):
        kinds = [(list(tensor.shape), tensor.dtype) for tensor in (value, template)]
        if kinds[0] != kinds[1]:
            raise RunFolderError(f"{path} must be {kinds[1][0]} {kinds[1][1]}, it is {kinds[0][0]} {kinds[0][1]}")
    elif isinstance(template, dict):
        _check_entries(path, value, template)
    elif isinstance(template, (list, tuple)):
        _check_entries(path, dict(enumerate(value)), dict(enumerate(template)))


def _check_entries(path: str, value: dict[Any, Any], template: dict[Any, Any]) -> None:
    if template and value.keys() != template.keys():
        names = ", ".join(sorted(map(str, value.keys() ^ template.keys())))
        raise RunFolderError(f"{path} has not the entries it must have: {names} missing or too many")
    for key in template:
        check_like(f"{path}.{key}", value[key], template[key])
