"""The notebook of the docs: a sound file without outputs, whose cells run one after the other."""

import ast
import json
from pathlib import Path

import pytest
from PIL import Image

NOTEBOOK = Path(__file__).parents[1] / "docs/tour.ipynb"


def code_cells():
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def run_cell(source, names):
    """Run a cell as a notebook does; the value of its last line, if that is an expression."""
    body = ast.parse(source).body
    last = body.pop() if isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body, []), "cell", "exec"), names)
    return last and eval(compile(ast.Expression(last.value), "cell", "eval"), names)


def test_the_notebook_is_of_the_current_format_and_holds_no_outputs():
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    assert not any(cell.get("outputs") for cell in notebook["cells"])


@pytest.mark.slow
def test_the_cells_of_the_notebook_run_one_after_the_other(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    shown = [run_cell(source, names) for source in code_cells()]
    pictures = [one for one in shown if isinstance(one, Image.Image)]
    assert len(pictures) == 3 and all(
        len(one.convert("RGB").getcolors(1 << 20)) > 50 for one in pictures
    )
    assert shown[-1].keys() == {"spatial", "temporal", "fused"}
    assert (tmp_path / "runs/report.html").exists()
