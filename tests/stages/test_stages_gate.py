"""The data gate stands before every stage that reads data, with the configured limits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from mutation import catches
from stage_lab import Chain

from alignlab.compose import compose
from alignlab.errors import DataError
from alignlab.plan import Plan, build_stage
from alignlab.run import Store
from alignlab.stages import pretrain

ROWS = [{"prompt": f"{i} bcd", "completions": ["k", "ka"], "scores": [0, 1]} for i in range(20)]
APART = [{"prompt": f"{i} fgh", "completions": ["l", "la"], "scores": [0, 1]} for i in range(4)]


def write(folder: Path, name: str, rows: list[dict[str, Any]]) -> str:
    file = folder / name
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def data(folder: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Changes of a stage that read ``rows``, with held-out prompts of their own."""
    held_out = write(folder, "held_out.jsonl", APART)
    train = write(folder, f"rows-{len(rows)}.jsonl", rows)
    return {
        "data__path": train,
        "data__validation_path": held_out,
        "data__test_path": held_out,
    }


def test_warnings_are_in_the_record_with_their_place(chain: Chain, tmp_path: Path) -> None:
    stage = chain.lab.stage("sft", steps=1, **data(tmp_path, [*ROWS, ROWS[3]]))
    record = chain.lab.run(stage, {}).record
    [warning] = [text for text in record["warnings"] if "more than once" in text]
    assert "(1 row: rows-21.jsonl, line " in warning


def test_limits_stop_a_stage(chain: Chain, tmp_path: Path) -> None:
    changes = data(tmp_path, [*ROWS, *ROWS])  # half of them are copies
    for limit, refused in ((0.6, False), (0.5, True)):
        for name, inputs in (("sft", {}), ("annotate", chain.inputs("policy"))):
            more = {"steps": 1} if name == "sft" else {}
            stage = chain.lab.stage(name, **changes, **more, gate__repeated_row__error=limit)
            if not refused:
                chain.lab.run(stage, inputs)
                continue
            with pytest.raises(DataError, match=r"A row occurs more than once \(\d+ rows: "):
                chain.lab.run(stage, inputs)


@pytest.mark.slow
@catches(
    "alignlab.stages.online",
    'held_out = {name: data.load(name) for name in ("validation", "test")}',
    "held_out: dict = {}",
    raises=pytest.fail.Exception,
)
@pytest.mark.parametrize("name", ["ppo", "grpo"])
def test_online_methods_do_not_sample_from_held_out_prompts(
    chain: Chain, tmp_path: Path, name: str
) -> None:
    inputs = chain.inputs("init", "reference", "reward")
    leaking = chain.lab.stage(name, **data(tmp_path, [*ROWS, {**APART[1], "prompt": "1 FGH "}]))
    with pytest.raises(DataError, match="Prompts occur in the split 'validation' too"):
        chain.lab.run(leaking, inputs)
    chain.lab.run(chain.lab.stage(name, iterations=1, **data(tmp_path, ROWS)), inputs)


@pytest.mark.slow
def test_what_the_gate_lets_pass_is_no_part_of_a_result(tmp_path: Path) -> None:
    keys = []
    for more in ([], ["gate.repeated_row.error=0.1", "gate.length_outlier=null"]):
        config = compose(["experiment=smoke", "pipeline=instructgpt", *more])
        keys.append(set(Plan.from_configs([config], Store(tmp_path)).nodes))
    assert keys[0] == keys[1]


@pytest.mark.slow
def test_what_was_done_to_the_rows_is_in_the_record(chain: Chain, tmp_path: Path) -> None:
    files = data(tmp_path, [*ROWS, *ROWS])  # every row twice
    stated = [f"data.source.{name.removeprefix('data__')}={path}" for name, path in files.items()]
    node = compose(["data=refined", "data.order=[exact]", *stated])["data"]
    for name, inputs in (("sft", {}), ("annotate", chain.inputs("policy"))):
        more = {"steps": 1} if name == "sft" else {}
        split = "sft" if name == "sft" else "preference"
        for seed in (0, 1):  # the second finds the tokens of the first
            stage = chain.lab.stage(name, data=node, seed=seed, **more)
            card = chain.lab.run(stage, inputs).record["data_card"]
            [effect] = card["splits"][split]
            assert effect["step"] == "exact"
            assert effect["rows_in"] == 2 * effect["rows_out"] > 0


@pytest.mark.slow
@catches("alignlab.stages.pretrain", "heed(check_texts(documents, others, self.gate), run)", "pass")
def test_pretraining_is_gated_before_it_makes_a_vocabulary(
    chain: Chain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Texts of the held-out split are not trained on."""
    held_out = write(tmp_path, "held_out.jsonl", [{"text": f"held out {i}"} for i in range(4)])
    rows = [*({"text": f"text {i}"} for i in range(6)), {"text": "HELD out  2"}]
    paths = [write(tmp_path, "train.jsonl", rows), held_out, held_out]
    fields = zip(("path", "validation_path", "test_path"), paths, strict=True)
    config = compose(["pipeline=pretrain", *(f"data.{name}={path}" for name, path in fields)])
    [node] = config["stages"].values()
    monkeypatch.setattr(pretrain, "initialise", forbidden)
    stage = build_stage(node, "stages.pretrain")
    with pytest.raises(DataError, match="occur in the split 'pretrain_validation'"):
        stage.run({}, chain.lab.new_run("pretrain"), chain.lab.engine)


def forbidden(*_: Any) -> None:
    raise AssertionError("nothing is made of refused texts")
