"""The notebook, run from its first cell to its last."""

import nbformat
import pytest
from nbclient import NotebookClient
from paths import EMBEDDED_DATA, ROOT


@pytest.mark.slow
def test_the_notebook_runs(tmp_path):
    (tmp_path / "data").symlink_to(EMBEDDED_DATA.parent)
    notebook = nbformat.read(ROOT / "examples" / "quickstart.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert sum("image/png" in output.get("data", {}) for output in shown) == 6
    text = "".join(output.get("text", "") for output in shown)
    assert "pre-training helps" in text
