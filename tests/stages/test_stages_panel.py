"""An annotate stage with a panel: every member's votes and their agreement are kept."""

from __future__ import annotations

import json

import pytest
from stage_lab import Lab

from alignlab.rewards.agreement import agreement_of, pair_votes, pairwise_agreement
from alignlab.stages.annotate import FILE


@pytest.fixture(scope="module")
def annotated(chain, tmp_path_factory):
    folder = tmp_path_factory.mktemp("panel")
    data = folder / "prompts.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"{i} bcd"}) + "\n" for i in range(30)))
    lab = Lab.make(folder, "reward@gold=length", "annotator=panel", data=data)
    return lab.run(lab.stage("annotate"), {"policy": chain.sft})


@pytest.mark.slow
def test_votes_and_agreement_are_in_the_annotations(annotated):
    lines = (annotated.path / FILE).read_text(encoding="utf-8").splitlines()
    metas = [json.loads(line)["meta"] for line in lines]
    assert {len(meta["votes"]) for meta in metas} == {3}
    for meta in metas:
        votes = [pair_votes(ranks) for ranks in meta["votes"]]
        assert meta["agreement"] == pytest.approx(pairwise_agreement(votes))
    assert len({meta["agreement"] for meta in metas}) > 1
    assert annotated.record["agreement"] == agreement_of([meta["votes"] for meta in metas])


def test_without_a_panel_nothing_is_said(chain):
    lines = (chain.annotations.path / FILE).read_text(encoding="utf-8").splitlines()
    assert "votes" not in json.loads(lines[0])["meta"]
