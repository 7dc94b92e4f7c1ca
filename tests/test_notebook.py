"""examples/first_run.ipynb: kept without outputs, and run from its first cell to its last."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).resolve().parents[1] / "examples" / "first_run.ipynb"
WORK = 'WORK = Path("runs/first-run")'


def test_it_is_kept_without_outputs() -> None:
    cells = [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert sum(WORK in "".join(cell["source"]) for cell in cells) == 1
    for cell in cells:
        assert cell["outputs"] == [] and cell["execution_count"] is None
        ast.parse("".join(cell["source"]))


def shown(cell: Any) -> str:
    """What a cell printed and displayed."""
    data = [output.get("data", {}) for output in cell.outputs]
    texts = [output.get("text", "") for output in cell.outputs]
    return "\n".join([*texts, *(each.get("text/html", each.get("text/plain", "")) for each in data)])


@pytest.mark.e2e
@pytest.mark.long
@pytest.mark.skipif(importlib.util.find_spec("nbclient") is None, reason="needs the extra: pip install '.[notebook]'")
def test_it_runs_and_shows_what_it_says(tmp_path: Path) -> None:
    import nbformat
    from nbclient import NotebookClient

    book = nbformat.read(NOTEBOOK, as_version=4)
    for cell in book.cells:
        cell.source = cell.source.replace(WORK, f"WORK = Path({str(tmp_path)!r})")
    NotebookClient(
        book, timeout=1200, kernel_name="python3", resources={"metadata": {"path": NOTEBOOK.parent}}
    ).execute()
    cells = {cell.id: shown(cell) for cell in book.cells if cell.cell_type == "code"}
    accuracy = [float(number) for number in re.findall(r"validation accuracy ([\d.]+)", cells["cell-4"])]
    assert accuracy[-1] - accuracy[0] >= 0.1
    assert cells["cell-6"].count("<img") == 3 and "advantage" in cells["cell-6"]
    assert "listing pays more than naming one at random" in cells["cell-10"] and cells["cell-10"].rstrip().endswith("1")
    assert "No attack pays more" in cells["cell-12"] and cells["cell-12"].rstrip().endswith("0")
    assert all(cells[name].rstrip().endswith("0") for name in ("cell-3", "cell-8", "cell-13", "cell-15"))
    assert "The model says:" in cells["cell-16"]
