"""The README: its examples run as they stand, it fits on a page, and what it links to is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .helpers import python_blocks

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_python_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    loop, agent, sb3 = python_blocks(README)
    names: dict[str, object] = {}
    exec(loop, names)
    assert float(names["loss"].detach()) < 1.5  # type: ignore[attr-defined]  # from 404; plain Adam is at 5.3
    exec(agent.replace("iterations=100", "iterations=5"), {})
    assert (tmp_path / "runs" / "CartPole-v1_a2c_optex_0" / "checkpoint.pt").exists()
    exec(sb3.replace("100_000", "1_000"), names)
    assert names["model"].num_timesteps == 4 * 8 * 128  # type: ignore[attr-defined]  # one rollout of all points


def test_getting_started_has_the_same_examples() -> None:
    page = (ROOT / "docs" / "getting-started.md").read_text(encoding="utf-8")
    assert python_blocks(page) == python_blocks(README)[:2]


def test_it_is_one_page_whose_links_lead_somewhere() -> None:
    assert len(README.split()) <= 900
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", README)]
    inside = [target for target in targets if not target.startswith("https://")]
    assert len(inside) > 15
    assert [target for target in inside if not (ROOT / target).exists()] == []
