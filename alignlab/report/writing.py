"""Rows of a table as CSV, Parquet, Markdown and LaTeX."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignlab.report.elements import clean, column_digits
from alignlab.report.statistics import Interval
from alignlab.report.verdict import between, plain

Rows = Sequence[Mapping[str, Any]]
READABLE = 200  # rows; a longer table is data: it is written as CSV and Parquet only
_LATEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#",
    "_": r"\_", "%": r"\%", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}",
    "−": r"$-$", "–": "--", "—": "---", "…": r"\dots{}", "\u00a0": "~", "·": r"$\cdot$",
    "×": r"$\times$", "≤": r"$\leq$", "≥": r"$\geq$", "±": r"$\pm$", "√": r"$\surd$",
    "α": r"$\alpha$", "β": r"$\beta$", "γ": r"$\gamma$", "ε": r"$\varepsilon$",
    "λ": r"$\lambda$", "τ": r"$\tau$", "θ": r"$\theta$", "σ": r"$\sigma$", "Δ": r"$\Delta$",
    "→": r"$\rightarrow$", "‖": r"$\Vert$", "’": "'", "‘": "`", "“": "``", "”": "''",
}  # fmt: skip


@dataclass(frozen=True)
class Readable:
    """A table for people: headings, cells as text, and which columns are numbers."""

    head: tuple[str, ...]
    cells: tuple[tuple[str, ...], ...]
    numeric: tuple[bool, ...]


def write_table(rows: Rows, stem: str, folder: Path) -> None:
    """Write ``stem`` as .csv and .parquet, and as .md and .tex when people could read it."""
    folder.mkdir(parents=True, exist_ok=True)
    write_csv(rows, folder / f"{stem}.csv")
    write_parquet(rows, folder / f"{stem}.parquet")
    if len(rows) <= READABLE:
        (folder / f"{stem}.md").write_text(markdown(rows), encoding="utf-8")
        (folder / f"{stem}.tex").write_text(latex(rows), encoding="utf-8")


def columns_of(rows: Rows) -> list[str]:
    """Columns of a table, in the order in which its rows name them."""
    return list(dict.fromkeys(key for row in rows for key in row))


def write_csv(rows: Rows, path: Path) -> None:
    """Write rows with six digits per number; nothing stands for a missing value."""
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.DictWriter(file, columns_of(rows), restval="")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: _cell(v) for k, v in row.items()})


def _cell(value: Any) -> Any:
    if value is None or (isinstance(value, float) and value != value):
        return ""
    return f"{value:.6g}" if isinstance(value, float) else value


def write_parquet(rows: Rows, path: Path) -> None:
    """Write rows with all digits; a column of several types is written as text."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrays = {name: _column([row.get(name) for row in rows]) for name in columns_of(rows)}
    pq.write_table(pa.table(arrays), path, compression="zstd")


def _column(values: Sequence[Any]) -> Any:
    import pyarrow as pa

    known = {type(v) for v in values if v is not None}
    if known <= {int, float} and float in known:
        return pa.array([None if v is None else float(v) for v in values], pa.float64())
    if len(known) == 1 and known <= {int, bool}:
        return pa.array(values)
    texts = [None if v is None else v if isinstance(v, str) else str(v) for v in values]
    whole = [t if t is None else t.encode("utf-8", "backslashreplace").decode() for t in texts]
    return pa.array(whole, pa.string())


def readable(rows: Rows) -> Readable:
    """Round numbers, join ``x``, ``x_low``, ``x_high`` into one column, leave out empty columns.

    Columns named ``low`` and ``high`` belong to the column before them.
    """
    columns = columns_of(rows)
    kept, cells = [], []
    for place, name in enumerate(columns):
        if _belongs(columns, name) or all(_cell(row.get(name)) == "" for row in rows):
            continue
        ends = _ends(columns, place)
        found = [_interval(row, name, ends) for row in rows]
        digits = column_digits(found)
        kept.append(name)
        cells.append(
            [
                f"{plain(one.value, digits)} {between(one, digits)}" if one else _text(row[name])
                for one, row in zip(found, ({name: None, **r} for r in rows), strict=True)
            ]
        )
    numeric = tuple(
        all(isinstance(r.get(n), int | float | None) and not isinstance(r.get(n), bool)
            for r in rows)
        for n in kept
    )  # fmt: skip
    head = tuple(name.replace("_", " ") for name in kept)
    return Readable(head, tuple(zip(*cells, strict=True)), numeric)


def _ends(columns: Sequence[str], place: int) -> tuple[str, str] | None:
    name = columns[place]
    if f"{name}_low" in columns and f"{name}_high" in columns:
        return f"{name}_low", f"{name}_high"
    following = list(columns[place + 1 : place + 3])
    return ("low", "high") if following == ["low", "high"] else None


def _belongs(columns: Sequence[str], name: str) -> bool:
    """Whether a column is an end or the error of another one's interval."""
    if name in ("low", "high"):
        return any(_ends(columns, i) == ("low", "high") for i in range(len(columns)))
    stem, _, last = name.rpartition("_")
    return last in ("low", "high", "error") and stem in columns


def _interval(row: Mapping[str, Any], name: str, ends: tuple[str, str] | None) -> Interval | None:
    """A number with its interval, whose standard error is a quarter of its 95 % width."""
    low, value, high = (row.get(key) for key in (ends[0], name, ends[1])) if ends else (None,) * 3
    if not all(isinstance(x, int | float) and math.isfinite(x) for x in (low, value, high)):
        return None
    error = (float(high) - float(low)) / 3.92  # type: ignore[arg-type]
    return Interval(value, low, high, error) if error > 0 else None  # type: ignore[arg-type]


def _text(value: Any) -> str:
    if value is None:
        return "—"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return _number(value)
    return " ".join(clean(str(value)).split())


def _number(value: float) -> str:
    """Four digits; thousands apart, powers of ten from ten millions on."""
    if not math.isfinite(value):
        return "—"
    size = abs(value)
    if isinstance(value, int) and size < 10_000:
        text = str(value)
    elif 1000 <= size < 1e7:
        text = f"{value:,.0f}"
    elif size and not 1e-4 <= size < 1e7:
        text = re.sub(r"e([+-])0*", r"e\1", f"{value:.3g}").replace("e+", "e")
    else:
        text = f"{value:.4g}"
    return text.replace("-", "−")


def markdown(rows: Rows) -> str:
    """The table in Markdown's pipe syntax; empty text for no rows."""
    if not rows:
        return ""
    shown = readable(rows)
    lines = [
        _pipes(shown.head),
        _pipes("---:" if number else ":---" for number in shown.numeric),
        *(_pipes(line) for line in shown.cells),
    ]
    return "\n".join(lines) + "\n"


def _pipes(cells: Any) -> str:
    return f"| {' | '.join(escape_markdown(c) for c in cells)} |"


def escape_markdown(text: str) -> str:
    """Make ``text`` stand for itself in Markdown, within a table too."""
    if re.fullmatch(r":?-+:?", text):
        return text
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_|~$#!]|\](?=\())", r"\\\1", text)


def latex(rows: Rows) -> str:
    """The table as a ``tabular`` with the rules of the booktabs package; empty for no rows."""
    if not rows:
        return ""
    shown = readable(rows)
    layout = "".join("r" if number else "l" for number in shown.numeric)
    body = [" & ".join(map(escape_latex, line)) + r" \\" for line in shown.cells]
    head = " & ".join(map(escape_latex, shown.head)) + r" \\"
    lines = [rf"\begin{{tabular}}{{{layout}}}", r"\toprule", head, r"\midrule", *body,
             r"\bottomrule", r"\end{tabular}"]  # fmt: skip
    return "\n".join(lines) + "\n"


def escape_latex(text: str) -> str:
    """Make ``text`` stand for itself in LaTeX; the signs of this report become math.

    A bracket at the start of a cell would be read as an argument of the line end before it.
    """
    escaped = "".join(_LATEX.get(c, c) for c in text)
    return f"{{{escaped}}}" if escaped.startswith(("[", "*")) else escaped
