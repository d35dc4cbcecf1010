"""Damaged files and senseless options: each case ends in one sentence, or in the right result; never in a traceback."""

from __future__ import annotations

import copy
import dataclasses
import math
import os
import random
import shutil
import signal
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from optex_rl import OptExError, RunFolderError, TrainConfig, resume, train
from optex_rl.cli import main
from optex_rl.common.storage import MAGIC, load_checkpoint, save_checkpoint
from optex_rl.training.config import load_config

from .test_resume import assert_same_runs, start

MAGIC_AND_REST = len(MAGIC) + 4 + 32  # bytes of the footer
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


def regions(checkpoint: Path) -> list[int]:
    """A byte in each part of a checkpoint: the archive's head, values, numbers and index, and the footer's three."""
    with zipfile.ZipFile(checkpoint) as archive:
        heads = [entry.header_offset for entry in archive.infolist() if entry.filename.endswith(("data.pkl", "data/0"))]
        index = archive.start_dir
    return [0, *(head + 100 for head in heads), index + 10, -MAGIC_AND_REST, -MAGIC_AND_REST + len(MAGIC), -1]


def test_flipped_bits_and_cut_files(runs: Path, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    whole = (runs / "three" / "checkpoint.pt").read_bytes()
    damaged = [whole[:length] for length in (0, 10, len(whole) // 2, len(whole) - MAGIC_AND_REST, len(whole) - 1)]
    for place in regions(runs / "three" / "checkpoint.pt"):
        flipped = bytearray(whole)
        flipped[place] ^= 1
        damaged.append(bytes(flipped))
    assert len(set(damaged)) == 12
    for data in damaged:
        path.write_bytes(data)
        with pytest.raises(RunFolderError, match="no checkpoint of optex-rl"):
            load_checkpoint(path)


def refused_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a command says when it is refused."""
    capsys.readouterr()
    assert main(arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("optex-rl: error: ")
    return line


@pytest.fixture
def _no_waiting() -> Iterator[None]:
    """A test that waits for ever fails."""
    before = signal.signal(signal.SIGALRM, lambda *_: pytest.fail("still waiting"))
    signal.alarm(10)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def put_pipe(path: Path) -> str:
    os.mkfifo(path)
    return "it is no regular file"


def put_endless(path: Path) -> str:
    path.symlink_to("/dev/zero")
    return "it is no regular file"


def put_huge(path: Path) -> str:
    """8 GiB and a byte, all of it a hole."""
    path.touch()
    os.truncate(path, 2**33 + 1)
    return "it has 8589934593 bytes, and more than "


@pytest.mark.skipif(sys.platform == "win32", reason="no such files there")
@pytest.mark.usefixtures("_no_waiting")
@pytest.mark.parametrize("put", [put_pipe, put_endless, put_huge])
@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("config.yml", ["train", "--iterations", "4", "--resume"]),
        ("config.yml", ["evaluate"]),
        ("checkpoint.pt", ["train", "--iterations", "4", "--resume"]),
        ("checkpoint.pt", ["evaluate"]),
        ("best_model.pt", ["evaluate", "--best"]),
        ("progress.csv", ["train", "--iterations", "4", "--resume"]),
        ("progress.csv", ["plot"]),
        ("a.json", ["compare", "--report-only", "--folder"]),
    ],
)
def test_files_without_an_end(
    runs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    command: list[str],
    put: Callable[[Path], str],
) -> None:
    path = fresh_copy(runs, tmp_path) / name
    path.unlink(missing_ok=True)
    reason = put(path)
    line = refused_line([*command, str(path.parent)], capsys)
    assert f"{path} cannot be read as " in line
    assert reason in line


@pytest.mark.skipif(sys.platform == "win32", reason="no such files there")
@pytest.mark.usefixtures("_no_waiting")
def test_progress_without_an_end_and_without_a_checkpoint(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = fresh_copy(runs, tmp_path)
    for name in ("checkpoint.pt", "progress.csv"):
        (folder / name).unlink()
    put_pipe(folder / "progress.csv")
    assert "it is no regular file" in refused_line(["train", "--resume", str(folder)], capsys)


def test_a_link_to_a_file_is_the_file(runs: Path, tmp_path: Path) -> None:
    folder = fresh_copy(runs, tmp_path)
    (folder / "config.yml").rename(tmp_path / "elsewhere.yml")
    (folder / "config.yml").symlink_to(tmp_path / "elsewhere.yml")
    assert resume(folder, iterations=4).iterations == 4


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


def few_numbers(value: Any) -> Any:
    """The shape of a tensor with one number behind it."""
    return torch.zeros(()).expand(value.shape)


FORGED: list[tuple[tuple[Any, ...], Any, str]] = [
    (("options", "gamma"), torch.tensor([0.99, 0.99]), "this checkpoint does not fit, because RuntimeError: "),
    (("options", "env"), {"a": torch.zeros(2, 2)}, "is from a run with env "),
    (("network",), {"shapes": torch.zeros(2)}, "holds a policy of another network"),
    (("optimizer", "state", 0, "exp_avg"), torch.zeros(1), "optimizer.state.0.exp_avg must be [4, 4]"),
    (("optimizer", "state", 0, "exp_avg"), few_numbers, "exp_avg has fewer numbers than its shape says"),
    (("optimizer", "optex", "history", "steps"), torch.zeros(6, 55), "does not fit, because RuntimeError: "),
    (("optimizer", "optex", "with_gradient"), [True], "with_gradient is for 1 tensors"),
    (("evaluator", "envs", "elapsed_steps"), torch.full((4,), -(2**63)), "does not fit, because ValueError: "),
]


@pytest.mark.parametrize(("place", "value", "message"), FORGED, ids=[".".join(map(str, f[0])) for f in FORGED])
def test_forged_content(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], place: tuple[Any, ...], value: Any, message: str
) -> None:
    """A checksum that is right, around what no run has written: one sentence, and nothing in the folder changes."""
    folder = fresh_copy(runs, tmp_path)
    content = load_checkpoint(folder / "checkpoint.pt")
    change = value if callable(value) else lambda _: value
    save_checkpoint(folder / "checkpoint.pt", with_change(content, place, change))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    line = refused_line(["train", "--resume", str(folder), "--iterations", "4"], capsys)
    assert str(folder / "checkpoint.pt") in line
    assert message in line
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    if place[0] == "network" or place == ("options", "env"):  # what a policy cannot be used without
        assert message in refused_line(["evaluate", str(folder)], capsys)


CHANGES: list[Any] = [REMOVE, _of_another_shape, _of_another_precision, _not_finite]
CHANGES += [lambda value: None, lambda value: -7, lambda value: {}, lambda value: "x", lambda value: 10**30]


@pytest.mark.parametrize(("every", "least"), [(13, 100), pytest.param(1, 1500, marks=pytest.mark.slow)])
def test_wrong_content(runs: Path, tmp_path: Path, every: int, least: int) -> None:
    """Resume from checkpoints that are whole but wrong in one entry: every 13th case, or all of them."""
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
    print(f"{len(cases)} wrong contents, {refusals} refused")
    assert len(cases) > least
    assert refusals > 0.8 * len(cases)


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


TRAPS = ["[" * 5000, "a: 2024-13-45", "a: 0b", "? {a: 1}\n: 2", "a: &a [*a]", "\ufeff", "- 1"]
TRAPS += ["env: [1", "just words", "bogus: 1", "gamma: high", "!!python/object:os.system {}"]


@pytest.mark.parametrize("text", TRAPS)
def test_yaml_traps(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    folder = fresh_copy(runs, tmp_path)
    (folder / "config.yml").write_text(text, encoding="utf-8")
    capsys.readouterr()
    assert main(["evaluate", str(folder)]) in (1, 2)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("optex-rl: error: ")
    assert ("gamma" if "gamma" in text else "options of a run") in line


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
    "first_steps",
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
