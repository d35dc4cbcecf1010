"""The documentation site: built strictly, every public name has an entry, and in a browser everything is drawn."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.check_site import public_names

ROOT = Path(__file__).parents[1]


def test_public_names_are_found() -> None:
    names = dict(public_names())
    assert {"optex_rl.OptEx", "optex_rl.train", "optex_rl.agents.PPO", "optex_rl.envs.make_vec"} <= names.keys()
    assert not any(name.rpartition(".")[2].startswith("_") for name in names)


@pytest.mark.slow
def test_the_site_builds_and_works_in_a_browser(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    subprocess.run(build, cwd=ROOT, check=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"})
    check = [sys.executable, "scripts/check_site.py", str(tmp_path / "site")]
    done = subprocess.run(check, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "<td><code>clip_range</code></td>" in (tmp_path / "site" / "reference" / "training.html").read_text()
    # A page whose formula, image or entry is missing is found: the check is one.
    algorithm = tmp_path / "site" / "algorithm.html"
    algorithm.write_text(algorithm.read_text().replace("</math>", '</math><span class="arithmatex">x</span>', 1))
    (tmp_path / "site" / "figures" / "iteration.svg").unlink()
    (tmp_path / "site" / "search" / "search_index.json").write_text('{"docs": [], "config": {"lang": ["en"]}}')
    done = subprocess.run(check, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "algorithm.html: a formula was left as text" in done.stdout
    assert "index.html: the image" in done.stdout
    assert "the search for OptEx.tell does not find" in done.stdout
