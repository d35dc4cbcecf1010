"""The plot of speed-ups, from a summary written by hand."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

from scripts.plot_parallelism import main, read_iterations, speedups

SUMMARY = """env,method,chosen,iterations
CartPole-v1,vanilla,0,7
CartPole-v1,vanilla,1,40
CartPole-v1,optex:parallelism=16,1,inf
CartPole-v1,optex:parallelism=4,1,10
CartPole-v1,ppo,1,3
Acrobot-v1,vanilla,1,20
"""


def test_ratios_of_the_chosen_settings(tmp_path: Path) -> None:
    (tmp_path / "summary.csv").write_text(SUMMARY)
    tasks = read_iterations(tmp_path)
    assert tasks == {"CartPole-v1": {1: 40.0, 4: 10.0, 16: math.inf}}  # Acrobot-v1 has nothing to compare
    assert speedups(tasks["CartPole-v1"]) == {1: 1.0, 4: 4.0, 16: 0.0}


def test_the_command_prints_a_table_and_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "summary.csv").write_text(SUMMARY)
    monkeypatch.setattr(sys, "argv", ["", str(tmp_path), "--output", str(tmp_path / "plot.png")])
    assert main() == 0
    assert "| CartPole-v1 | 4 | 10 | 4.0 | 2.0 |\n| CartPole-v1 | 16 | – | 0.0 | 4.0 |" in capsys.readouterr().out
    assert (tmp_path / "plot.png").stat().st_size > 0


@pytest.mark.parametrize("summary", [None, "env,method\n", "env,method,chosen,iterations\nCartPole-v1,vanilla,1,3\n"])
def test_a_folder_without_the_runs_is_refused(
    summary: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if summary is not None:
        (tmp_path / "summary.csv").write_text(summary)
    monkeypatch.setattr(sys, "argv", ["", str(tmp_path)])
    assert main() == 2
    assert str(tmp_path) in capsys.readouterr().err
