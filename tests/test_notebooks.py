"""The notebooks: made from their sources, small, of no machine and no time, and they run."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import nbformat
import pytest

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
SOURCES = sorted(FOLDER.glob("[0-9]_*.py"))
LARGEST = 200_000  # bytes, outputs included


def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_notebooks", FOLDER / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_are_three() -> None:
    assert [source.stem for source in SOURCES] == ["1_one_batch", "2_objectives", "3_read_a_study"]


@pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.stem)
def test_a_notebook_is_its_source_with_outputs(source: Path) -> None:
    committed = nbformat.read(source.with_suffix(".ipynb"), as_version=4)
    nbformat.validate(committed)
    expected = maker().notebook(source)
    assert [(c.cell_type, c.source) for c in committed.cells] == [
        (c.cell_type, c.source) for c in expected.cells
    ], "run `python notebooks/make.py --run`"
    code = [cell for cell in committed.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    assert any("image/png" in o.get("data", {}) for cell in code for o in cell.outputs)


@pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.stem)
def test_outputs_are_small_and_of_no_machine(source: Path) -> None:
    file = source.with_suffix(".ipynb")
    assert file.stat().st_size < LARGEST
    cells = json.loads(file.read_text())["cells"]
    for output in (o for cell in cells for o in cell.get("outputs", [])):
        assert output["output_type"] != "error"
        data = {k: v for k, v in output.get("data", {}).items() if k != "image/png"}
        text = json.dumps([output.get("text"), data])
        assert not re.search(r"/(home|root|tmp|work|Users|usr|var)/", text), text[:300]
        assert not re.search(r"\d{4}-\d\d-\d\d|\d\d:\d\d:\d\d", text), text[:300]


def test_a_picture_with_few_colours_is_smaller_and_still_a_picture() -> None:
    import base64
    import io

    import numpy as np
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 255, (60, 80, 4), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise, "RGBA").save(stream, "PNG")
    before = base64.b64encode(stream.getvalue()).decode()
    after = maker().smaller(before)
    assert len(after) < len(before) / 2
    assert Image.open(io.BytesIO(base64.b64decode(after))).size == (80, 60)


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES, ids=lambda p: p.stem)
def test_a_notebook_runs(source: Path, tmp_path: Path) -> None:
    code = (
        "import importlib.util as u, sys; from pathlib import Path\n"
        "spec = u.spec_from_file_location('make', sys.argv[1]); make = u.module_from_spec(spec)\n"
        "spec.loader.exec_module(make)\n"
        "make.execute(make.notebook(Path(sys.argv[2])), Path(sys.argv[3]), 600)\n"
    )
    words = [sys.executable, "-c", code, FOLDER / "make.py", source, tmp_path]
    root = str(FOLDER.parent)
    done = subprocess.run(
        words, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": root}, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
