"""Tables as CSV, Parquet, Markdown and LaTeX, and the documents made of them."""

from __future__ import annotations

import csv
import re
import shutil
import subprocess

import pyarrow.parquet as pq
import pytest

from alignlab.report.page import build_report
from alignlab.report.writing import (
    READABLE,
    escape_latex,
    escape_markdown,
    latex,
    markdown,
    readable,
    write_table,
)

ROWS = [
    {"method": "DPO", "gold": 0.51234, "gold_low": 0.45, "gold_high": 0.57, "seeds": 5,
     "kl": 0.00012345, "flops": 3.2e12, "tokens": 120_000, "exact": True, "empty": None},
    {"method": "PPO_1 & co", "gold": -0.2, "gold_low": -0.31, "gold_high": -0.1, "seeds": 4,
     "kl": float("nan"), "flops": None, "tokens": 7, "exact": False, "empty": None},
]  # fmt: skip


def test_numbers_join_their_intervals_and_are_rounded_by_them():
    shown = readable(ROWS)
    assert shown.head == ("method", "gold", "seeds", "kl", "flops", "tokens", "exact")
    # half widths 0.06 and 0.105: standard errors 0.031 and 0.054, so two decimals
    assert shown.cells[0] == (
        "DPO", "0.51 [0.45, 0.57]", "5", "0.0001234", "3.2e12", "120,000", "yes",
    )  # fmt: skip
    assert shown.cells[1] == ("PPO_1 & co", "−0.20 [−0.31, −0.10]", "4", "—", "—", "7", "no")
    assert shown.numeric == (False, True, True, True, True, True, False)


def test_low_and_high_belong_to_the_column_before_them():
    shown = readable([{"a": "x", "difference": 1.0, "low": 0.5, "high": 1.5, "p": 0.04}])
    assert shown.head == ("a", "difference", "p")
    assert shown.cells == (("x", "1.0 [0.5, 1.5]", "0.04"),)
    alone = readable([{"low": 1.0, "kl": 2.0, "high": 3.0}])
    assert alone.head == ("low", "kl", "high")


def test_files_of_a_table(tmp_path):
    write_table(ROWS, "t", tmp_path)
    with (tmp_path / "t.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["gold"] == "0.51234"
    assert (rows[1]["kl"], rows[1]["flops"]) == ("", "")
    table = pq.read_table(tmp_path / "t.parquet").to_pylist()
    assert table[0] == ROWS[0]
    assert table[1]["method"] == "PPO_1 & co"
    assert table[1]["flops"] is None
    assert (tmp_path / "t.md").read_text(encoding="utf-8").count("\n") == 4
    assert r"\toprule" in (tmp_path / "t.tex").read_text(encoding="utf-8")


def test_columns_of_several_types_and_halves_of_characters(tmp_path):
    rows = [{"a": 1, "b": 1}, {"a": "x\ud83d", "b": 2.5}, {"a": None}]
    write_table(rows, "t", tmp_path)
    table = pq.read_table(tmp_path / "t.parquet").to_pylist()
    assert [row["a"] for row in table] == ["1", "x\\ud83d", None]
    assert [row["b"] for row in table] == [1.0, 2.5, None]
    assert "x\\ud83d" in (tmp_path / "t.csv").read_text(encoding="utf-8")


def test_an_empty_table_is_an_empty_file(tmp_path):
    write_table([], "t", tmp_path)
    assert pq.read_table(tmp_path / "t.parquet").num_rows == 0
    assert (tmp_path / "t.md").read_text(encoding="utf-8") == ""


def test_a_long_table_is_data_and_no_text(tmp_path):
    write_table([{"a": i} for i in range(READABLE + 1)], "t", tmp_path)
    assert (tmp_path / "t.parquet").is_file()
    assert not (tmp_path / "t.md").exists()
    assert not (tmp_path / "t.tex").exists()


def test_markdown_stands_for_itself():
    assert escape_markdown("a|b *c* <d> [e](f)") == r"a\|b \*c\* &lt;d&gt; [e\](f)"
    lines = markdown(ROWS).splitlines()
    assert lines[1] == "| :--- | ---: | ---: | ---: | ---: | ---: | :--- |"
    assert lines[3].startswith(r"| PPO\_1 &amp; co |")
    assert all(line.count("|") - line.count(r"\|") == 8 for line in lines)


def test_latex_stands_for_itself():
    wanted = r"50\% \& \$5 \#1 a\_b \{c\} \textbackslash{}d \textasciitilde{}e \textasciicircum{}f"
    assert escape_latex("50% & $5 #1 a_b {c} \\d ~e ^f") == wanted
    assert escape_latex("−0.1 β ≤ 2") == r"$-$0.1 $\beta$ $\leq$ 2"
    assert escape_latex("[0, 1]") == "{[0, 1]}"  # a line end takes [ for its own argument
    text = latex(ROWS)
    assert text.count("&") - text.count(r"\&") == 3 * 6
    assert text.splitlines()[0] == r"\begin{tabular}{lrrrrrl}"


@pytest.fixture(scope="module")
def folder(store):
    return build_report("demo", store).parent


def balanced(text: str) -> None:
    """Braces, environments and columns of a LaTeX source."""
    text = re.sub(r"(?<!\\)%.*", "", text)
    plain = re.sub(r"\\[\\{}]", "", text)
    depth = 0
    for sign in re.findall(r"[{}]", plain):
        depth += 1 if sign == "{" else -1
        assert depth >= 0
    assert depth == 0
    opened: list[str] = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        if kind == "begin":
            opened.append(name)
        else:
            assert opened.pop() == name
    assert opened == []
    for columns, body in re.findall(r"\\begin\{tabular\}\{([lr]+)\}(.*?)\\end\{tabular\}", text,
                                    flags=re.S):  # fmt: skip
        for line in body.strip().splitlines():
            if line.endswith(r"\\"):
                assert len(re.findall(r"(?<!\\)&", line)) == len(columns) - 1, line


@pytest.mark.slow
def test_report_tex_is_whole(folder):
    text = (folder / "report.tex").read_text(encoding="utf-8")
    balanced(text)
    assert text.count(r"\begin{document}") == text.count(r"\end{document}") == 1
    for name in re.findall(r"\\includegraphics\[[^]]*\]\{([^}]+)\}", text):
        assert (folder / name).is_file()
    used = set(re.findall(r"\\(toprule|resizebox|rightarrow|surd)", text))
    assert "toprule" in used
    assert "booktabs" in text
    assert not re.search(r"[^\x00-\xff]", text)  # pdflatex knows no other signs


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="pdflatex is not installed")
def test_report_tex_compiles(folder, tmp_path):
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error",
               f"-output-directory={tmp_path}", "report.tex"]  # fmt: skip
    done = subprocess.run(command, cwd=folder, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stdout.decode("latin-1")[-2000:]
    assert (tmp_path / "report.pdf").stat().st_size > 10_000


def test_a_heading_has_something_below_it(folder):
    source = (folder / "report.tex").read_text(encoding="utf-8")
    assert len(re.findall(r"\\section\*", source)) > 4
    assert not re.search(r"\\section\*\{[^}]*\}\s*\\(section|end\{document)", source)
    plain = (folder / "report.md").read_text(encoding="utf-8")
    assert not re.search(r"^## .*\s+^## ", plain, flags=re.M)


def test_every_table_is_balanced_latex(folder):
    found = list((folder / "tables").glob("*.tex"))
    assert {p.stem for p in found} >= {"methods", "ranking", "gains", "length", "doubts"}
    for path in found:
        balanced(path.read_text(encoding="utf-8"))


def test_report_md_links_what_is_there(folder):
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert text.startswith("# demo\n\n**On 60 held-out prompts")
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert len(links) > 8
    assert all((folder / link).is_file() for link in links)
    assert "## What could be wrong with this comparison" in text
    assert "<script" not in text


def test_every_table_of_the_page_is_a_file_in_every_format(folder):
    stems = {p.stem for p in (folder / "tables").glob("*.csv")}
    wanted = {"methods", "differences", "cost", "samples", "ranking", "properties", "gains",
              "length", "doubts"}  # fmt: skip
    assert stems >= wanted  # and those of the other rooms
    assert stems == {p.stem for p in (folder / "tables").glob("*.parquet")}
    assert {p.stem for p in (folder / "tables").glob("*.md")} == stems - {"samples"}
    assert {p.stem for p in (folder / "tables").glob("*.tex")} == stems - {"samples"}
    for stem in ("methods", "differences", "cost", "samples"):
        beside = (folder / f"{stem}.csv").read_bytes()
        assert beside == (folder / "tables" / f"{stem}.csv").read_bytes()
