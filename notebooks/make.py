"""Make the notebooks from their sources: ``python notebooks/make.py [--run] [NAME …]``.

A source is a Python file with cells that begin with ``# %%`` or ``# %% [markdown]``. With ``--run``
every notebook is executed and keeps its outputs; without, only its cells are written.
"""

from __future__ import annotations

import argparse
import base64
import io
import re
from pathlib import Path

import nbformat
from PIL import Image

FOLDER = Path(__file__).parent
COLOURS = 64  # of a picture: lines and letters need no more, and the file is a third
_LOG = re.compile(r"^\[\d{4}-\d\d-\d\d .*\n", re.MULTILINE)  # lines that libraries print with a date
_CELL = re.compile(r"^# %%( \[markdown\])?\n", re.MULTILINE)


def cells(source: str) -> list[nbformat.NotebookNode]:
    """Cells of a source, with ids that do not change from one making to the next."""
    parts = _CELL.split(source)[1:]
    made = []
    for number, (kind, text) in enumerate(zip(parts[::2], parts[1::2], strict=True)):
        body = text.strip()
        if kind:
            body = "\n".join(line.removeprefix("#").removeprefix(" ") for line in body.split("\n"))
            cell = nbformat.v4.new_markdown_cell(body)
        else:
            cell = nbformat.v4.new_code_cell(body)
        cell["id"] = f"cell-{number:02d}"
        made.append(cell)
    return made


def notebook(source: Path) -> nbformat.NotebookNode:
    """The notebook of a source, without outputs."""
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    made = nbformat.v4.new_notebook(metadata={"kernelspec": kernel})
    made.cells = cells(source.read_text(encoding="utf-8"))
    return made


def execute(made: nbformat.NotebookNode, folder: Path, timeout: float) -> None:
    """Execute every cell in ``folder``; keep outputs, and nothing of the time or the machine.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell that raises.
    """
    from nbclient import NotebookClient

    where = {"metadata": {"path": str(folder)}}
    client = NotebookClient(made, timeout=timeout, record_timing=False, resources=where)
    client.execute()
    made.metadata.pop("language_info", None)
    for cell in made.cells:
        if cell.cell_type == "code":
            cell.outputs = [kept for o in cell.outputs if (kept := clean(o)) is not None]


def clean(output: nbformat.NotebookNode) -> nbformat.NotebookNode | None:
    """An output without warnings of libraries, which name files and times; pictures made small."""
    if output.output_type == "stream":
        output.text = _LOG.sub("", output.text)
        return output if output.name == "stdout" and output.text.strip() else None
    if "image/png" in output.get("data", {}):
        output.data["image/png"] = smaller(output.data["image/png"])
    return output


def smaller(picture: str) -> str:
    """A PNG (base64) with few colours."""
    image = Image.open(io.BytesIO(base64.b64decode(picture)))
    flat = Image.new("RGB", image.size, "white")
    flat.paste(image, mask=image.getchannel("A") if image.mode == "RGBA" else None)
    stream = io.BytesIO()
    flat.quantize(COLOURS, dither=Image.Dither.NONE).save(stream, "PNG", optimize=True)
    return base64.b64encode(stream.getvalue()).decode()


def main() -> None:
    """Make all notebooks, or those named."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", help="as 1_one_batch; default: all")
    parser.add_argument("--run", action="store_true", help="execute them and keep the outputs")
    parser.add_argument("--timeout", type=float, default=600, help="seconds per cell")
    asked = parser.parse_args()
    for source in sorted(FOLDER.glob("[0-9]_*.py")):
        if asked.names and source.stem not in asked.names:
            continue
        made = notebook(source)
        if asked.run:
            execute(made, FOLDER, asked.timeout)
        nbformat.write(made, source.with_suffix(".ipynb"))
        print(f"{source.stem}.ipynb  {source.with_suffix('.ipynb').stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
