"""Videos: a GIF with more than one frame, for natively vectorised tasks and for others; clear refusals."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium.error import DependencyNotInstalled
from PIL import Image, ImageSequence

from optex_rl.cli import main
from optex_rl.envs import NativeVectorEnv
from optex_rl.runner.video import save_gif

from .helpers import expect_refusal

SMALL = ["--n-envs", "2", "--n-steps", "16", "--iterations", "1", "--eval-freq", "0", "--no-progress-bar"]


def make_run(tmp_path: Path, env: str = "CartPole-v1") -> Path:
    """A finished run."""
    assert main(["train", "--env", env, *SMALL, "--logdir", str(tmp_path), "--run-name", "run"]) == 0
    return tmp_path / "run"


def durations(video: Image.Image) -> Iterator[int]:
    """Milliseconds for which each frame is shown; equal neighbours are stored as one."""
    for frame in ImageSequence.Iterator(video):
        yield frame.info["duration"]


def test_native_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The episode drawn is the first of those evaluated; CartPole's 50 frames a second become 25."""
    run_dir = make_run(tmp_path)
    assert main(["evaluate", str(run_dir), "--episodes", "1", "--video"]) == 0
    out = capsys.readouterr().out
    steps, episode_return = int(out.split(" steps,")[0].split()[-1]), float(out.split("return ")[-1])
    assert steps == episode_return > 4
    assert f"mean return {episode_return:.2f} " in out
    with Image.open(run_dir / "video.gif") as video:
        assert video.size == (600, 400)
        shown = list(durations(video))
    assert 1 < len(shown) <= -(-steps // 2)
    assert sum(shown) == -(-steps // 2) * 40


@pytest.mark.parametrize("env", ["optex_rl/MountainCar-v0", "LunarLander-v3"])
def test_other_tasks_and_paths(env: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir, path = make_run(tmp_path, env), tmp_path / "elsewhere.GIF"
    capsys.readouterr()
    assert main(["evaluate", str(run_dir), "--episodes", "2", "--video", str(path)]) == 0
    word, _, steps, *_ = capsys.readouterr().out.splitlines()[-1].replace(",", "").split()
    assert word == "video"
    with Image.open(path) as video:
        assert 1 < len(list(durations(video))) <= int(steps)


def test_frames_come_back(tmp_path: Path) -> None:
    frames = [np.full((8, 6, 3), value, np.uint8) for value in (0, 100, 200)]
    save_gif(tmp_path / "v.gif", frames, fps=10)
    with Image.open(tmp_path / "v.gif") as video:
        frames_read = ImageSequence.Iterator(video)
        shown = [int(np.asarray(frame.convert("RGB"))[0, 0, 0]) for frame in frames_read]
        assert video.info["duration"] == 100
    assert shown == [0, 100, 200]


def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["evaluate", str(make_run(tmp_path)), "--episodes", "1", "--video"]
    with monkeypatch.context() as patched:  # all of these before an episode is played
        patched.setattr("optex_rl.runner.model.Model.evaluate", lambda *_: pytest.fail("episodes were played"))
        expect_refusal([*command, "video.avi"], "its path must end in .gif, got 'video.avi'", capsys)
        expect_refusal([*command, str(tmp_path / "none" / "v.gif")], "cannot be written: there is no folder", capsys)
        patched.setattr("optex_rl.runner.video.find_spec", lambda name: None)
        expect_refusal(command, "run: pip install 'optex-rl[video]'", capsys)

    def without_pygame(self: NativeVectorEnv) -> tuple[Any, ...]:
        raise DependencyNotInstalled("pygame is not installed")

    monkeypatch.setattr(NativeVectorEnv, "render", without_pygame)
    expect_refusal(command, "run: pip install 'optex-rl[video]'", capsys)
    monkeypatch.setattr(NativeVectorEnv, "render", lambda self: None)
    expect_refusal(command, "does not draw itself", capsys)
