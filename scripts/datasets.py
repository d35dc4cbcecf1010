"""Readers for the data sets of the supervised benchmark. Nothing is downloaded: the user gives the paths."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from optex_rl import ConfigError

CIFAR_RECORD = 1 + 3 * 32 * 32  # bytes: the label, then red, green and blue, each row by row
INTEGERS, CATEGORIES = 13, 26  # columns of Criteo's file, after the label


class Split(NamedTuple):
    """Examples: what the model is called with, each ``[R, ...]`` for R rows, and the classes ``[R]``."""

    inputs: tuple[Tensor, ...]
    targets: Tensor

    def rows(self, rows: Tensor) -> Split:
        """The examples of some rows."""
        return Split(tuple(column[rows] for column in self.inputs), self.targets[rows])


class Dataset(NamedTuple):
    """Examples to train on, and others to measure the error on."""

    train: Split
    held_out: Split


def shuffled(examples: Split, share: float = 0.8) -> Dataset:
    """Examples in a fixed random order, the first ``share`` of them to train on."""
    order = torch.randperm(len(examples.targets), generator=torch.Generator().manual_seed(0))
    cut = round(share * len(order))
    return Dataset(examples.rows(order[:cut]), examples.rows(order[cut:]))


def load_digits() -> Dataset:
    """scikit-learn's digits: 1797 images ``[64]`` between 0 and 1, ten classes.

    Raises:
        ConfigError: scikit-learn is missing.
    """
    try:
        from sklearn import datasets
    except ModuleNotFoundError as error:
        raise ConfigError("the digits need scikit-learn: pip install scikit-learn") from error
    images, targets = datasets.load_digits(return_X_y=True)
    return shuffled(Split((torch.tensor(images / 16.0, dtype=torch.float32),), torch.tensor(targets)))


def read_cifar_file(path: Path) -> Split:
    """One of CIFAR-10's binary files: images ``[R, 3, 32, 32]`` as bytes, and their classes.

    Raises:
        ConfigError: the file is missing, is no whole number of records, or holds a class beyond 9.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: unpack CIFAR-10's binary version into {path.parent}") from error
    if not data or len(data) % CIFAR_RECORD:
        raise ConfigError(f"{path} must hold records of {CIFAR_RECORD} bytes, it has {len(data)} bytes")
    records = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(-1, CIFAR_RECORD)
    targets = records[:, 0].long()
    if int(targets.max()) > 9:
        raise ConfigError(f"{path} has the class {int(targets.max())}; CIFAR-10's are 0 to 9")
    return Split((records[:, 1:].reshape(-1, 3, 32, 32),), targets)


def read_cifar10(folder: Path) -> Dataset:
    """CIFAR-10 from the files of its binary version (https://www.cs.toronto.edu/~kriz/cifar.html).

    Raises:
        ConfigError: a file is missing or is no such file.
    """
    parts = [read_cifar_file(folder / f"data_batch_{k}.bin") for k in range(1, 6)]
    images = torch.cat([part.inputs[0] for part in parts])
    train = Split((images,), torch.cat([part.targets for part in parts]))
    return Dataset(train, read_cifar_file(folder / "test_batch.bin"))


class Text(NamedTuple):
    """A text as numbers of characters ``[L]``, and the characters in the order of their numbers."""

    characters: Tensor
    alphabet: str

    def windows(self, starts: Tensor, context: int) -> Split:
        """Windows ``[R, context]`` from R places, and the characters that follow each of theirs."""
        places = starts[:, None] + torch.arange(context)
        return Split((self.characters[places],), self.characters[places + 1])


def read_text(path: Path) -> tuple[Text, Text]:
    """A text in UTF-8: nine tenths to train on, the rest held out.

    Raises:
        ConfigError: the file cannot be read, or is too short.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as a text in UTF-8: {error}") from error
    if len(text) < 1000:
        raise ConfigError(f"{path} must hold at least 1000 characters, it has {len(text)}")
    alphabet = "".join(sorted(set(text)))
    numbers = {character: number for number, character in enumerate(alphabet)}
    characters = torch.tensor([numbers[character] for character in text])
    cut = len(characters) * 9 // 10
    return Text(characters[:cut], alphabet), Text(characters[cut:], alphabet)


def read_criteo(path: Path, buckets: int) -> Dataset:
    """Clicks in the format of Criteo's display advertising challenge.

    A line is, separated by tabs: the label, 13 whole numbers, 26 categories as hexadecimal hashes; any but the label
    may be empty. Numbers enter as ``log(1 + max(n, 0))``, an empty one as 0; categories as their hash modulo
    ``buckets − 1``, plus one, an empty one as 0.

    Returns:
        Inputs: numbers ``[R, 13]`` and categories ``[R, 26]``; classes 0 and 1.

    Raises:
        ConfigError: the file cannot be read, or a line is not like that.
    """
    labels, numbers, categories = [], [], []
    try:
        for place, line in enumerate(path.read_text(encoding="ascii").splitlines(), 1):
            label, *fields = line.split("\t")
            if label not in ("0", "1") or len(fields) != INTEGERS + CATEGORIES:
                raise ConfigError(f"{path}, line {place}: must be 0 or 1 and {INTEGERS + CATEGORIES} fields, by tabs")
            labels.append(int(label))
            numbers.append([math.log1p(max(int(field or 0), 0)) for field in fields[:INTEGERS]])
            categories.append([int(f, 16) % (buckets - 1) + 1 if f else 0 for f in fields[INTEGERS:]])
    except (OSError, ValueError) as error:
        raise (
            error if isinstance(error, ConfigError) else ConfigError(f"{path} is no file of clicks: {error}")
        ) from error
    if not labels:
        raise ConfigError(f"{path} holds no clicks")
    return shuffled(Split((torch.tensor(numbers), torch.tensor(categories)), torch.tensor(labels)))


def write_clicks(path: Path, rows: int, seed: int = 0, vocabulary: int = 200) -> None:
    """A made-up sample in Criteo's format.

    Counts are log-normal, categories come with a chance of 1 / rank, one field in ten is empty, and a click is a coin
    whose log odds are a linear function of the counts' logarithms plus an effect of every category.
    """
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randn(rows, INTEGERS, generator=generator).add(1.0).exp().long()
    ranks = torch.multinomial(
        1.0 / torch.arange(1.0, vocabulary + 1), rows * CATEGORIES, replacement=True, generator=generator
    ).view(rows, CATEGORIES)
    slopes = 0.3 * torch.randn(INTEGERS, generator=generator)
    effects = 0.4 * torch.randn(CATEGORIES, vocabulary, generator=generator)
    log_odds = counts.float().log1p() @ slopes + effects[torch.arange(CATEGORIES), ranks].sum(1) - 1.0
    clicks = torch.rand(rows, generator=generator) < log_odds.sigmoid()
    hashes = torch.randint(16**8, (CATEGORIES, vocabulary), generator=generator)[torch.arange(CATEGORIES), ranks]
    empty = (torch.rand(rows, INTEGERS + CATEGORIES, generator=generator) < 0.1).tolist()
    with path.open("w", encoding="ascii") as file:
        for click, numbers, codes, gaps in zip(clicks.tolist(), counts.tolist(), hashes.tolist(), empty, strict=True):
            fields = [*map(str, numbers), *(f"{code:08x}" for code in codes)]
            shown = ("" if gap else value for value, gap in zip(fields, gaps, strict=True))
            file.write("\t".join([str(int(click)), *shown]) + "\n")
