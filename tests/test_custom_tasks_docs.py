"""The page on tasks of one's own: its afternoon, with a run that is killed, takes place as written and in few lines."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

PAGE = Path(__file__).parents[1] / "docs" / "custom-tasks.md"
NAMES = ("basket.py", "begin.py", "go_on.py")


@pytest.fixture
def afternoon(tmp_path: Path) -> Path:
    """A folder with the files of the page."""
    text = PAGE.read_text("utf-8").split("## Tasks\n")[0]
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert sum(len(block.splitlines()) for block in blocks) < 80
    for name, block in zip(NAMES, blocks, strict=True):
        assert f"`{name}`" in text
        (tmp_path / name).write_text(block)
    return tmp_path


def test_an_afternoon(afternoon: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    begin = subprocess.Popen([sys.executable, "begin.py"], cwd=afternoon, env=environment, stderr=subprocess.PIPE)
    progress, checkpoint = afternoon / "runs/basket/progress.csv", afternoon / "runs/basket/checkpoint.pt"
    with begin:
        while not (progress.exists() and progress.read_bytes().count(b"\n") > 7):
            assert begin.poll() is None, begin.stderr and begin.stderr.read().decode()
            time.sleep(0.02)
        begin.send_signal(signal.SIGKILL)
    assert begin.returncode == -signal.SIGKILL
    killed_at = torch.load(checkpoint, weights_only=True)["iteration"]
    assert 5 <= killed_at < 300
    options = yaml.safe_load((afternoon / "runs/basket/config.yml").read_text())
    assert (options["env"], options["policy"]) == ("basket:Basket", "basket:ConvNet")
    go_on = [sys.executable, "-W", "error", "go_on.py"]
    out = subprocess.run(go_on, cwd=afternoon, env=environment, check=True, capture_output=True, text=True).stdout
    found = re.fullmatch(r"(\d+) iterations, mean return (\S+)\n", out)
    assert found is not None, out
    assert killed_at < int(found[1]) < 300
    assert float(found[2]) > 0.85
    assert len(progress.read_text().splitlines()) == 1 + int(found[1])
    assert (afternoon / "basket.pt2").stat().st_size > 1000


def test_the_other_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8").split("## Tasks\n")[1], flags=re.DOTALL)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)
    assert next(row["patience/waited"] for row in names["result"].rows) == 0
    assert len(names["written"]) == names["result"].iterations == 3
