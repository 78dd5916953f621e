"""KTO on what it was made for: single completions with a thumb each, and no pair anywhere."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from stage_lab import objective

from alignlab.data.group import Verdict
from alignlab.errors import DataError
from alignlab.stages.annotate import judged

if TYPE_CHECKING:
    from stage_lab import Chain

    from alignlab.run import Run


@pytest.fixture
def thumbs(chain: Chain) -> Run:
    """Annotations of the chain, one completion per prompt, every other one desirable."""
    run = chain.lab.store.run("annotate", "0b0b0b")
    lines = (chain.annotations.path / "annotations.jsonl").read_text().splitlines()
    run.path.mkdir(parents=True, exist_ok=True)
    with (run.path / "annotations.jsonl").open("w") as file:
        for index, line in enumerate(lines):
            row = json.loads(line)
            for name in ("completions", "completion_ids", "truncated"):
                row[name] = row[name][:1]
            row["verdict"] = {
                "kind": "thumbs",
                "ranks": [],
                "scores": [],
                "thumbs": [index % 2 == 0],
            }
            file.write(json.dumps(row) + "\n")
    return run


def test_kto_trains_on_single_completions(chain: Chain, thumbs: Run) -> None:
    stage, inputs = chain.prefer(objective=objective("kto"))
    run = chain.lab.run(stage, {**inputs, "annotations": thumbs})
    last = run.metrics("train")[-1]
    assert last["grad_norm"] > 0
    assert {"log_ratio", "kl_point"} <= set(last)


def test_a_pairwise_method_refuses_them(chain: Chain, thumbs: Run) -> None:
    stage, inputs = chain.prefer(objective=objective("dpo"))
    with pytest.raises(DataError, match="objective=kto"):
        chain.lab.run(stage, {**inputs, "annotations": thumbs})


def test_a_thumb_is_a_verdict_that_annotate_keeps() -> None:
    assert judged(Verdict("thumbs", thumbs=(False,)))
    assert judged(Verdict("ranking", ranks=(1, 0)))
    assert not judged(Verdict("ranking", ranks=(0, 0)))  # all tied: nothing to learn from
    assert not judged(Verdict("demonstration"))
