"""The table of mixtures: what each part gave, from the records of the runs that read one."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from alignlab.report.mixtures import mixture_rows, mixtures

PARTS = {"own": {"rows": 90, "given": 30}, "<i>": {"rows": 10, "given": 10}}
STEPS = {"sft": [{"step": "exact", "rows_in": 3, "rows_out": 2}]}  # the card of refined data


def study(*records):
    runs = {
        f"sft-{number}": SimpleNamespace(name=f"sft-{number}", kind="sft", label="a", record=record)
        for number, record in enumerate(records)
    }
    return SimpleNamespace(runs=runs)


def test_every_part_once_with_its_share():
    corpus = {"parts": {"own": {"tokens": 900, "share": 0.9}}}
    record = {"data_card": {"splits": {"pretrain": PARTS}}, "corpus": corpus}
    rows = mixture_rows(study(record, record))  # two seeds read the same
    assert [(r["part"], r["rows"], r["given"]) for r in rows] == [("own", 90, 30), ("<i>", 10, 10)]
    assert [r["share"] for r in rows] == pytest.approx([0.75, 0.25])
    assert [r["tokens"] for r in rows] == [900, None]
    page = mixtures(study(record))
    assert "75.0%" in page
    assert "90.0%" in page
    assert "&lt;i&gt;" in page
    assert "<i>" not in page


def test_no_mixture_no_table():
    assert mixtures(study({}, {"data_card": {"splits": STEPS}}, {"data_card": None})) == ""
