"""Checkpoints are written whole or not at all, and nothing but data is read from them."""

from __future__ import annotations

import os
import pickle
import sys
from pathlib import Path

import pytest
import torch

from optex_rl import ConfigError, RunFolderError
from optex_rl.common import storage
from optex_rl.common.storage import load_checkpoint, must_fit, save_checkpoint


class Trap:
    """Runs a command when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_round_trip(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c.pt", {"a": torch.arange(3), "b": {"c": [1.5, None, 2**100]}})
    content = load_checkpoint(tmp_path / "c.pt")
    assert content["a"].tolist() == [0, 1, 2]
    assert content["b"] == {"c": [1.5, None, 2**100]}


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.pt"
    save_checkpoint(path, {"step": 1})

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(RunFolderError, match="cannot be written: No space left"):
        save_checkpoint(path, {"step": 2})
    assert load_checkpoint(path)["step"] == 1
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
def test_a_link_in_place_of_the_temporary_file_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("kept")
    (tmp_path / "c.pt.tmp").symlink_to(tmp_path / "precious")
    save_checkpoint(tmp_path / "c.pt", {"step": 1})
    assert (tmp_path / "precious").read_text() == "kept"
    assert load_checkpoint(tmp_path / "c.pt")["step"] == 1


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ValueError("too many\nlines"), "ValueError: too many"),
        (KeyError("exp_avg"), "KeyError: 'exp_avg'"),
        (RecursionError(), "RecursionError: "),
        (ConfigError("this is 4 x CartPole-v1"), "this is 4 x CartPole-v1"),
    ],
)
def test_whatever_fails_behind_the_border_is_a_sentence(error: Exception, reason: str) -> None:
    with pytest.raises(RunFolderError) as refused, must_fit(Path("c.pt")):
        raise error
    assert str(refused.value) == f"c.pt: this checkpoint does not fit, because {reason}"
    assert refused.value.__cause__ is error


def test_what_passes_the_border() -> None:
    with pytest.raises(RunFolderError, match=r"^as it was$"), must_fit(Path("c.pt")):
        raise RunFolderError("as it was")
    with pytest.raises(KeyboardInterrupt), must_fit(Path("c.pt")):
        raise KeyboardInterrupt


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c.pt", {"policy": Trap(tmp_path / "trapped")})  # a footer is no proof of good will
    torch.save({"version": 2, "policy": Trap(tmp_path / "trapped")}, tmp_path / "d.pt")
    (tmp_path / "p.pt").write_bytes(pickle.dumps(Trap(tmp_path / "trapped")))
    for name in ("c.pt", "d.pt", "p.pt"):
        with pytest.raises(RunFolderError, match="is damaged or no checkpoint"):
            load_checkpoint(tmp_path / name)
    assert not (tmp_path / "trapped").exists()


@pytest.mark.parametrize("content", [[1, 2], {"version": 2}, {}])
def test_files_without_a_footer_are_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "c.pt")
    with pytest.raises(RunFolderError, match=r"no checkpoint of optex-rl: its checksum is missing or wrong"):
        load_checkpoint(tmp_path / "c.pt")


def test_another_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "FORMAT_VERSION", 7)
    save_checkpoint(tmp_path / "c.pt", {})
    monkeypatch.undo()
    with pytest.raises(RunFolderError, match="is no checkpoint of optex-rl, version 4, but of version 7"):
        load_checkpoint(tmp_path / "c.pt")


def test_torch_reads_the_file_as_it_stands(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c.pt", {"a": torch.arange(3)})
    assert torch.load(tmp_path / "c.pt", weights_only=True)["a"].tolist() == [0, 1, 2]
