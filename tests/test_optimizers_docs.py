"""The page on optimizers and its benchmark, run as they stand but for their length."""

from __future__ import annotations

import math
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from optex_rl.bases import BASES

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "optimizers.md").read_text(encoding="utf-8")
SCRIPT = ROOT / "scripts" / "benchmark_bases.py"


def test_the_example_runs() -> None:
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    torch.manual_seed(0)
    names: dict[str, Any] = {}
    exec(block, names)
    inputs = torch.randn(64, 3)
    at_start = inputs[:, 0].tanh().square().mean()
    assert names["loss"](names["weights"].detach(), (inputs, inputs[:, 0].tanh())) < 0.5 * at_start


def test_the_tables_have_every_base() -> None:
    definitions, results = PAGE.split("## Results")
    for name in BASES:
        assert f"`{name}`" in definitions
        assert f"\n| {name} | " in results


@pytest.mark.parametrize(("best", "tried"), [(1.0, 3), (9.0, 5), (1 / 27, 6)])
def test_the_search_ends_inside_of_what_it_tried(best: float, tried: int) -> None:
    best_rate: Callable[..., float] = runpy.run_path(str(SCRIPT))["best_rate"]
    asked: list[float] = []

    def score(rate: float) -> float:
        asked.append(rate)
        return -abs(math.log(rate / best))

    assert best_rate(score, 1.0) == pytest.approx(best)
    assert len(asked) == len(set(asked)) == tried
    assert min(asked) < best < max(asked)


@pytest.mark.slow
def test_the_benchmark_runs() -> None:
    tiny = ["--bases", "sgd", "--seeds", "2", "--iterations", "3", "--n-steps", "32"]
    done = subprocess.run([sys.executable, str(SCRIPT), *tiny], capture_output=True, text=True, check=True)
    assert re.search(r"\| sgd \| [\d.e+-]+ \| \d+ \(\d+ … \d+\) \|", done.stdout)
    assert "of 1 bases" in done.stdout
