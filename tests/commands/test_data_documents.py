"""``alignlab data`` over the documents of continued pretraining: other data, whole, tokenised."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from alignlab.cli import main
from alignlab.commands.data_check import examine
from alignlab.commands.data_setup import Setup

PAIRS = [
    {"prompt": f"{i} plus {i} is", "chosen": f" {2 * i}.", "rejected": f" not {2 * i}!"}
    for i in range(60)
]
LENGTH = 300  # of a document, in bytes: more than any limit of prompts and completions


@pytest.fixture
def overrides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Documents in one file, pairs in another."""
    monkeypatch.setenv("ALIGNLAB_RUNS", str(tmp_path / "runs"))
    texts = [{"text": f"document {i} " + chr(97 + i % 26) * (LENGTH - 12)} for i in range(60)]
    for name, rows in (("papers", texts), ("pairs", PAIRS)):
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    documents = f"documents.path={tmp_path / 'papers.jsonl'}"
    return [
        "pipeline=continued_pretrain", "backbone=tiny", "data@documents=file", documents,
        "data=file", f"data.path={tmp_path / 'pairs.jsonl'}",
    ]  # fmt: skip


@pytest.mark.slow
def test_documents_are_checked_whole_and_pairs_as_ever(overrides: list[str]) -> None:
    report = examine(Setup.of(None, overrides))
    found = {one.split: one for one in report.splits}
    assert [*found][:2] == ["pretrain", "pretrain_validation"]
    documents, pairs = found["pretrain"], found["preference"]
    assert documents.need == "demonstration"
    assert documents.statistics.tokens > LENGTH * documents.statistics.rows  # and BOS, EOS
    assert "truncated" not in " ".join(f.code for f in documents.findings)
    assert pairs.need == "pairs"
    rows = documents.statistics.rows + found["pretrain_validation"].statistics.rows
    assert 50 <= rows <= len(PAIRS)


@pytest.mark.slow
def test_the_preview_shows_the_tokens_of_a_document(
    overrides: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "preview", "--split", "pretrain", "--rows", "1", *overrides]) == 0
    said = capsys.readouterr().out
    assert "whole documents, of which training cuts windows of" in said
    assert "prompt · 1 tokens" in said
    assert "<|bos|>" in said
    assert "document " in said
    assert "<|eos|>" in said
    assert main(["data", "preview", "--split", "preference", "--rows", "1", *overrides]) == 0
    assert "plus" in capsys.readouterr().out


@pytest.mark.slow
def test_without_such_a_stage_there_are_no_tokens(
    overrides: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    others = [o for o in overrides if not o.startswith(("pipeline", "data@documents", "documents"))]
    assert main(["data", "preview", "--split", "pretrain", *others]) == 2
    assert "pipeline=continued_pretrain" in capsys.readouterr().err
