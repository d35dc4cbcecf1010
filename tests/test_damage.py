"""Damaged files and senseless options: each case ends in one sentence, or in the right result; never in a traceback."""

from __future__ import annotations

import copy
import dataclasses
import math
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from optex_rl import OptExError, RunFolderError, TrainConfig, resume, train
from optex_rl.checkpoints import load_checkpoint, save_checkpoint
from optex_rl.cli import main
from optex_rl.config import load_config

from .test_resume import assert_same_runs, start

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 3 iterations and the same run after 4."""
    folder = tmp_path_factory.mktemp("runs")
    assert start(folder, "--lr-schedule", "constant", iterations=3, name="three") == 0
    shutil.copytree(folder / "three", folder / "four")
    resume(folder / "four", iterations=4)
    return folder


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def refusal(action: Callable[[], Any]) -> str | None:
    """What a refused action says; None if it is done."""
    try:
        action()
    except OptExError as error:
        return str(error)
    return None


def fresh_copy(runs: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    shutil.rmtree(folder, ignore_errors=True)
    return Path(shutil.copytree(runs / "three", folder))


@pytest.mark.parametrize("name", ["checkpoint.pt", "best_model.pt"])
def test_flipped_bits_and_cut_files(runs: Path, tmp_path: Path, name: str) -> None:
    """1,200 cases for each file: the checksum sees every one of them."""
    whole, rng, path = (runs / "three" / name).read_bytes(), random.Random(0), tmp_path / name
    places = [rng.randrange(8 * len(whole)) for _ in range(1000)]
    lengths = [rng.randrange(len(whole)) for _ in range(198)] + [0, len(whole) - 1]
    for place in places:
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        with pytest.raises(RunFolderError, match="no checkpoint of optex-rl"):
            load_checkpoint(path)
    for length in lengths:
        path.write_bytes(whole[:length])
        with pytest.raises(RunFolderError, match="no checkpoint of optex-rl"):
            load_checkpoint(path)


def test_damage_that_reaches_the_command_line(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng, folder = random.Random(1), fresh_copy(runs, tmp_path)
    whole = (folder / "checkpoint.pt").read_bytes()
    for _ in range(20):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        (folder / "checkpoint.pt").write_bytes(damaged)
        capsys.readouterr()
        for arguments in (["train", "--resume", str(folder), "--iterations", "4"], ["evaluate", str(folder)]):
            assert main(arguments) in (1, 2)
            (line,) = capsys.readouterr().err.splitlines()
            assert line.startswith("optex-rl: error: ")


def places_in(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The paths to every entry of a nest."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    for key, entry in entries:
        yield (*path, key)
        yield from places_in(entry, (*path, key))


def with_change(content: Any, path: tuple[Any, ...], change: Any) -> Any:
    """A copy in which ``change`` was made of the entry at a path, or which has no such entry."""
    key, *rest = path
    replaced = [change(content[key])] if not rest else [with_change(content[key], tuple(rest), change)]
    if not rest and change is REMOVE:
        replaced = []
    if isinstance(content, dict):
        rest_of_it = {k: v for k, v in content.items() if k != key}
        return {**rest_of_it, key: replaced[0]} if replaced else rest_of_it
    return type(content)([*content[:key], *replaced, *content[key + 1 :]])


def REMOVE(value: Any) -> Any:  # noqa: N802  # a constant that is compared with
    return value


def _of_another_shape(value: Any) -> Any:
    return torch.zeros(*value.shape, 3) if isinstance(value, torch.Tensor) else [value, value]


def _of_another_precision(value: Any) -> Any:
    return value.to(torch.float16) if isinstance(value, torch.Tensor) else str(value)


def _not_finite(value: Any) -> Any:
    return value * math.nan if isinstance(value, torch.Tensor) and value.is_floating_point() else math.nan


CHANGES: list[Any] = [REMOVE, _of_another_shape, _of_another_precision, _not_finite]
CHANGES += [lambda value: None, lambda value: -7, lambda value: {}, lambda value: "x", lambda value: 10**30]


def try_contents(runs: Path, tmp_path: Path, every: int) -> tuple[int, int]:
    """Resume from checkpoints that are whole but wrong in one entry: how many, and how many were refused."""
    content = copy.deepcopy(load_checkpoint(runs / "three" / "checkpoint.pt"))
    cases = [(path, change) for path in places_in(content) for change in CHANGES][::every]
    refusals, crashes = 0, []
    for path, change in cases:
        folder = fresh_copy(runs, tmp_path)
        save_checkpoint(folder / "checkpoint.pt", with_change(content, path, change))
        try:
            said = refusal(lambda: resume(tmp_path / "run", iterations=4))
        except Exception as error:
            crashes.append((path, change, error))
            continue
        refusals += said is not None
        assert "\n" not in (said or "")
    assert not crashes
    return len(cases), refusals


def test_wrong_content(runs: Path, tmp_path: Path) -> None:
    """Every 13th of the cases below."""
    cases, refusals = try_contents(runs, tmp_path, every=13)
    assert cases > 100
    assert refusals > 0.8 * cases


@pytest.mark.slow
def test_all_wrong_content(runs: Path, tmp_path: Path) -> None:
    cases, refusals = try_contents(runs, tmp_path, every=1)
    print(f"{cases} wrong contents, {refusals} refused")
    assert cases > 1500
    assert refusals > 0.8 * cases


def damaged_text(text: str, rng: random.Random) -> bytes:
    """One of: a bit flipped, bytes cut out, the end cut off, bytes put in, two lines swapped."""
    data = bytearray(text.encode())
    place, kind = rng.randrange(len(data)), rng.randrange(5)
    if kind == 0:
        data[place] ^= 1 << rng.randrange(8)
    elif kind == 1:
        del data[place : place + rng.randrange(1, 9)]
    elif kind == 2:
        del data[place:]
    elif kind == 3:
        data[place:place] = rng.choice([b"\0", b"\xff", b"- ", b"{", b"&a ", b"*a", b"!!python/name:os.system ", b"\n"])
    else:
        lines = bytes(data).splitlines(keepends=True)
        rng.shuffle(lines)
        data = bytearray(b"".join(lines))
    return bytes(data)


@pytest.mark.parametrize("cases", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_damaged_options(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], cases: int) -> None:
    """A run goes on from damaged options only where they still say the same."""
    rng, refusals = random.Random(2), 0
    text = (runs / "three" / "config.yml").read_text()
    for _ in range(cases):
        folder = fresh_copy(runs, tmp_path)
        data = damaged_text(text, rng)
        (folder / "config.yml").write_bytes(data)
        capsys.readouterr()
        status = main(["train", "--resume", str(folder), "--iterations", "4"])
        lines = capsys.readouterr().err.splitlines()
        assert status in (0, 1, 2), data
        if status == 0:
            assert_same_runs(runs / "four", folder)
        else:
            refusals += 1
            assert [line.startswith("optex-rl: error: ") for line in lines] == [True], (data, lines)
    print(f"{cases} damaged options, {refusals} refused")
    assert refusals > cases / 2


@pytest.mark.parametrize("text", ["[" * 5000, "a: 2024-13-45", "a: 0b", "? {a: 1}\n: 2", "a: &a [*a]", "\ufeff", "- 1"])
def test_yaml_traps(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yml").write_text(text, encoding="utf-8")
    with pytest.raises(RunFolderError) as error:
        load_config(tmp_path / "config.yml")
    assert "\n" not in str(error.value)


ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from(
        ["auto", "median", "a2c", "none", "cpu", "meta", "Pendulum-v1", "sgd", "last", "groups", "\0", ".."]
    ),
    st.lists(st.integers(-1, 5), max_size=3),
    st.tuples(st.integers(-1, 5)),
)
# What is large beyond reason is a question of memory, not of sense.
SIZES = (
    "n_envs",
    "n_steps",
    "parallelism",
    "history_size",
    "stride",
    "iterations",
    "eval_episodes",
    "n_critic_updates",
)
NAMES = [field.name for field in dataclasses.fields(TrainConfig)]


@settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(changes=st.dictionaries(st.sampled_from(NAMES), ODD, min_size=1, max_size=3))
def test_odd_options(tmp_path: Path, changes: dict[str, Any]) -> None:
    """150 cases: refused in one sentence, or trained."""
    for name, value in changes.items():
        if isinstance(value, int) and name in SIZES:
            changes[name] = min(value, 6)
    options: dict[str, Any] = {"n_envs": 2, "n_steps": 8, "net_arch": (4,), "parallelism": 2, "iterations": 3}
    options |= {"eval_episodes": 2, "progress_bar": False, "logdir": str(tmp_path / "logs")} | changes
    if options["logdir"] != str(tmp_path / "logs") and options["logdir"] is not None:
        options["logdir"] = f"{tmp_path}/{options['logdir']}" if isinstance(options["logdir"], str) else 3
    options["progress_bar"] = False if options["progress_bar"] is True else options["progress_bar"]
    said = refusal(lambda: train(TrainConfig(**options)))
    assert "\n" not in (said or "")


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(values=st.dictionaries(st.sampled_from([*NAMES, "bogus"]), ODD, max_size=4))
def test_odd_option_files(tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]) -> None:
    """200 cases: a file of options with odd values is refused in one sentence, or read."""
    path = tmp_path_factory.getbasetemp() / "odd.yml"
    path.write_text(yaml.safe_dump({k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}))
    assert "\n" not in (refusal(lambda: load_config(path)) or "")
