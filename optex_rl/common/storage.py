"""Checkpoints: written whole or not at all, loaded without executing code, and verified by a checksum.

A checkpoint is a file of ``torch.save`` followed by a footer: `MAGIC`, the version of the format, and the SHA-256 of
everything before the footer. ``torch.load(path, weights_only=True)`` reads it as it stands.
"""

from __future__ import annotations

import functools
import hashlib
import io
import os
import stat
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import resources
from pathlib import Path
from typing import Any, Final

import torch
import yaml
from torch import Tensor

from .errors import OptExError, RunFolderError

FORMAT_VERSION: Final = 4
MOST_BYTES: Final = 2**33  # of a checkpoint, and of any other file of a run
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
        temporary.unlink(missing_ok=True)  # left by a killed process, or a link or pipe in its place
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)  # on a full disk what it takes is needed
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
    if not os.path.exists(path):
        raise RunFolderError(f"there is no checkpoint {path}")
    data = _checked(path, read_regular(path, "a checkpoint"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of formats before it raises the error below
            content: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # of any type; a bad file is no bug, so there is no traceback
        raise RunFolderError(f"{path} is damaged or no checkpoint of optex-rl") from error
    return content


@functools.cache
def packaged_table(package: str, name: str) -> dict[str, dict[str, dict[str, Any]]]:
    """Options by task and algorithm, from a YAML file of the package; the same object at every call, to be copied."""
    text = resources.files(package).joinpath(name).read_text(encoding="utf-8")
    table: dict[str, dict[str, dict[str, Any]]] = yaml.safe_load(text)
    return table


def read_regular(path: Path, what: str, most_bytes: int = MOST_BYTES) -> bytes:
    """Content of a file that need not be trusted: it must be a regular one of limited size.

    Args:
        path: the file, or a link to it.
        what: what it is read as, for the message.
        most_bytes: the most that it may have.

    Raises:
        RunFolderError: it is missing, too large, or a pipe, a device or a folder, which might block or never end.
    """

    def without_waiting(name: str, flags: int) -> int:  # for the other end of a pipe
        return os.open(name, flags | getattr(os, "O_NONBLOCK", 0))

    try:
        with open(path, "rb", opener=without_waiting) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise OSError("it is no regular file")
            if status.st_size > most_bytes:
                raise OSError(f"it has {status.st_size} bytes, and more than {most_bytes} are not read")
            return file.read(most_bytes)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise RunFolderError(f"{path} cannot be read as {what}: {reason}") from error


@contextmanager
def must_fit(path: Path) -> Iterator[None]:
    """Turn every error in a block that uses the content of a checkpoint into one sentence.

    Raises:
        RunFolderError: something failed in the block; it says that the checkpoint does not fit, and why.
    """
    try:
        yield
    except RunFolderError:
        raise
    except Exception as error:  # the file can make any call fail, and a traceback would not help its user
        reason = "".join(str(error).splitlines()[:1])
        kind = "" if isinstance(error, OptExError) else f"{type(error).__name__}: "
        raise RunFolderError(f"{path}: this checkpoint does not fit, because {kind}{reason}") from error


def _checked(path: Path, whole: bytes) -> bytes:
    """The data before the footer, once magic bytes, checksum and version have been verified."""
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

    Also refused are tensors whose storage is smaller than their shape implies: some kernels would write beyond it. A
    template of None accepts any value, an empty list or dictionary any one of its type.

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
        end = value.storage_offset() + value.numel()
        if end * value.element_size() > value.untyped_storage().nbytes():  # repeated by its strides alone
            raise RunFolderError(f"{path} has fewer numbers than its shape says")
    elif isinstance(template, dict):
        _check_entries(path, value, template)
    elif isinstance(template, (list, tuple)):
        _check_entries(path, dict(enumerate(value)), dict(enumerate(template)))


def _check_entries(path: str, value: dict[Any, Any], template: dict[Any, Any]) -> None:
    if template and value.keys() != template.keys():
        names = ", ".join(sorted(map(str, value.keys() ^ template.keys())))
        raise RunFolderError(f"{path} does not have the entries it must have: {names} missing or too many")
    for key in template:
        check_like(f"{path}.{key}", value[key], template[key])
