"""What an annotate run holds is read once into mapped shards, whatever version wrote it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from stage_lab import Chain

from alignlab.data import mapped
from alignlab.run import Run
from alignlab.stages import annotate, annotations
from alignlab.stages.annotate import FILE, read


def rows_of(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.path / FILE).read_text().splitlines()]


def copy_of(chain: Chain, name: str, rows: list[dict[str, Any]]) -> Run:
    run = chain.lab.store.run("annotate", name)
    run.path.mkdir(parents=True, exist_ok=True)
    (run.path / FILE).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


def test_the_file_is_parsed_once_for_all_stages(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{**row, "id": f"other {row['id']}"} for row in rows_of(chain.annotations)]
    run = copy_of(chain, "0c0d0e", rows)
    parsed: list[Any] = []
    parse = annotations._token_groups
    monkeypatch.setattr(
        annotations, "_token_groups", lambda *given: parsed.append(given) or parse(*given)
    )
    monkeypatch.setattr(mapped, "SHARD", 8)
    found = {split: read(run, split) for split in ("train", "validation")}
    assert len(parsed) == 1
    for split, groups in found.items():
        wanted = [row for row in rows if row["split"] == split]
        assert [g.id for g in groups] == [row["id"] for row in wanted]
        assert [g.row for g in groups] == [row["row"] for row in wanted]
        assert [g.prompt.tolist() for g in groups] == [row["prompt_ids"] for row in wanted]
        given = [[c.tolist() for c in g.completions] for g in groups]
        assert given == [row["completion_ids"] for row in wanted]
        assert [list(g.verdict.ranks) for g in groups] == [r["verdict"]["ranks"] for r in wanted]
        assert [dict(g.meta) for g in groups] == [row["meta"] for row in wanted]
    changed = copy_of(chain, "0c0d0e", rows[:-1])  # another content is another entry
    assert len(read(changed, "train")) + len(read(changed, "validation")) == len(rows) - 1
    assert len(parsed) == 2


def test_rows_from_before_there_were_masks_are_read(chain: Chain) -> None:
    rows = [{k: v for k, v in row.items() if k != "masks"} for row in rows_of(chain.annotations)]
    old = copy_of(chain, "0c0c0c", rows)
    for before, now in zip(read(chain.annotations, "train"), read(old, "train"), strict=True):
        assert now.targets() == before.targets()
        assert now.masks == ()


def test_chunks_change_no_annotation(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts have streams of their own, so what is sampled does not depend on the chunk."""
    files = {}
    for name, count in (("path", 9), ("validation_path", 2), ("test_path", 2)):
        rows = [{"prompt": f"{name[0]}{i} bcd "} for i in range(count)]
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        files[f"data__{name}"] = str(file)
    stage = chain.lab.stage("annotate", validation_share=0.2, **files)
    whole = chain.lab.run(stage, {"policy": chain.sft})
    monkeypatch.setattr(annotate, "SAMPLED", 4)
    parts = chain.lab.run(stage, {"policy": chain.sft})
    assert whole.path != parts.path
    assert len(rows_of(parts)) == 9
    assert rows_of(parts) == rows_of(whole)
    for name in ("summary", "tokens_sampled", "flops", "agreement", "warnings"):
        assert parts.record.get(name) == whole.record.get(name)
    assert parts.record["tokens_sampled"] > 0


def test_judged_groups_are_annotated_chunk_by_chunk(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(annotate, "CHUNK", 7)
    stage = chain.lab.stage("annotate", validation_share=0.2)
    parts = chain.lab.run(stage, {"policy": chain.sft})
    assert len(rows_of(parts)) > 7
    assert rows_of(parts) == rows_of(chain.annotations)
    for name in ("summary", "completions", "prompts", "warnings"):
        assert parts.record.get(name) == chain.annotations.record.get(name)
