"""The tutorial notebook runs from its first cell to its last."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parents[1] / "docs" / "tutorial.ipynb"


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # what Jupyter warns of is none of ours
def test_the_tutorial_runs(tmp_path: Path) -> None:
    notebook: nbformat.NotebookNode = nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]
    NotebookClient(
        notebook, timeout=1800, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    images = [output for output in outputs if "image/png" in output.get("data", {})]
    text = "".join(output.text for output in outputs if output.output_type == "stream")
    assert len(images) == 3
    assert "204,800 steps" in text  # 25 iterations of 4 points, 8 environments, 256 steps
    assert "30 iterations" in text
    assert "25/25" in text  # the progress bar
    assert (tmp_path / "tutorial-runs" / "CartPole-v1_a2c_optex_0" / "best_model.pt").exists()
