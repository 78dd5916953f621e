"""lm-eval through its public API, and our own multiple choice against it."""

from __future__ import annotations

import json
import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from stage_lab import Chain

from alignlab.compose import compose
from alignlab.errors import ConfigError, DataError
from alignlab.evaluation import lm_harness
from alignlab.evaluation.lm_harness import LmHarness, directions, rows_of
from alignlab.plan import build_stage
from alignlab.run import Run

ROWS = [
    {"ctx": "The sky is", "endings": ["blue.", "a kind of fish."], "label": 0},
    {"ctx": "Two plus two is ", "endings": ["five.", "four.", "three and a half."], "label": 1},
    {"ctx": "Fish live in", "endings": ["water.", "trees and bushes."], "label": 0},
    {"ctx": "At night we see", "endings": ["the sun.", "the moon."], "label": 1},
    {"ctx": "Cats say", "endings": ["moo.", "meow.", "quack quack."], "label": 1},
]
YAML = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
{rest}
metadata: {{version: 1.0}}
"""
CHOICE = """
output_type: multiple_choice
doc_to_text: "{{ctx}}"
doc_to_choice: "{{endings}}"
doc_to_target: "{{label}}"
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
"""
GENERATE = """
output_type: generate_until
doc_to_text: "{{ctx}}"
doc_to_target: "{{endings[label]}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 4, do_sample: false}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
"""
ROLLING = """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{ctx}}"
metric_list:
  - {metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}
"""
installed = pytest.mark.skipif(
    find_spec("lm_eval") is None,
    reason="lm-eval is not installed (pip install 'alignlab[harness]')",
)


def harness(**changes: Any) -> LmHarness:
    fields: dict[str, Any] = {
        "tasks": ("mine",), "include_path": None, "limit": None, "num_fewshot": None,
        "chat_template": False, "max_new_tokens": 8, "batch": 8,
    }  # fmt: skip
    return LmHarness(**{**fields, **changes})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    for name, rest in (("choice", CHOICE), ("generate", GENERATE), ("rolling", ROLLING)):
        text = YAML.format(name=f"local_{name}", data=data, rest=rest)
        (folder / f"{name}.yaml").write_text(text)
    return folder


@pytest.fixture(scope="module")
def done(chain: Chain, folder: Path) -> Run:
    tasks = "stages.benchmark.tasks"
    names = "[local_choice,local_generate,local_rolling]"
    node = compose(
        [
            "experiment=smoke", "pipeline=sft", "+stage@stages.benchmark=benchmark",
            "+stages.benchmark.inputs.policy=sft", f"~{tasks}.perplexity", f"~{tasks}.generation",
            f"+task@{tasks}.own=multiple_choice", f"{tasks}.own.path={folder}/rows.jsonl",
            f"+task@{tasks}.lm=lm_harness", f"{tasks}.lm.tasks={names}",
            f"{tasks}.lm.include_path={folder}",
        ]
    )["stages"]["benchmark"]  # fmt: skip
    return chain.lab.run(build_stage(node, "stages.benchmark"), {"policy": chain.sft})


def values(run: Run, key: str) -> list[float]:
    task, metric = key.split("/")
    return [r["value"] for r in run.samples() if (r["task"], r["metric"]) == (task, metric)]


@pytest.mark.slow
@installed
def test_our_multiple_choice_is_lm_evals(done: Run) -> None:
    for metric in ("acc", "acc_norm"):
        assert values(done, f"own/{metric}") == values(done, f"lm:local_choice/{metric}")
        assert len(values(done, f"own/{metric}")) == len(ROWS)


@pytest.mark.slow
@installed
def test_likelihoods_are_those_of_lm_evals_own_model(chain: Chain, done: Run, folder: Path) -> None:
    import lm_eval
    import torch
    from lm_eval.tasks import TaskManager
    from transformers import AutoTokenizer

    manager = TaskManager(include_path=str(folder))

    def theirs(task: str, *, bos: bool) -> dict[str, Any]:
        path = str(chain.sft.model_dir)
        options = {"pretrained": path, "add_bos_token": bos, "dtype": torch.float32}
        named = {"device": "cpu", "batch_size": 1, "bootstrap_iters": 0, "task_manager": manager}
        found = lm_eval.simple_evaluate(model="hf", model_args=options, tasks=[task], **named)
        return found["results"][task]

    tokenizer = AutoTokenizer.from_pretrained(chain.sft.model_dir)
    bos = tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id
    choice = theirs("local_choice", bos=bos)
    assert done.summary()["own/acc"] == choice["acc,none"]
    assert done.summary()["own/acc_norm"] == choice["acc_norm,none"]
    # A text of a rolling request has BOS before it in any case; with add_bos_token lm-eval would
    # put a second one there and count how well the first predicts it.
    rolling = theirs("local_rolling", bos=False)
    nats = done.summary()["lm:local_rolling/bits_per_byte_nll"]
    assert nats / math.log(2) == pytest.approx(rolling["bits_per_byte,none"], abs=1e-4)


@pytest.mark.slow
@installed
def test_every_sample_of_every_request_is_a_row(done: Run) -> None:
    assert len(values(done, "lm:local_generate/exact_match")) == len(ROWS)
    assert len(values(done, "lm:local_rolling/bits_per_byte_nll")) == len(ROWS)
    better = done.record["better"]
    assert better["lm:local_choice/acc"] == "higher"
    assert better["lm:local_rolling/bits_per_byte_nll"] == "lower"
    results = done.record["tasks"]["lm"]["results"]["local_choice"]
    assert results["acc,none"] == done.summary()["lm:local_choice/acc"]


@pytest.mark.slow
@installed
def test_an_unknown_task_gets_a_suggestion(chain: Chain, folder: Path) -> None:
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(folder))
    with pytest.raises(DataError, match="local_choice"):
        harness(tasks=("local_choise",))._known(manager)


def test_without_lm_eval_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lm_harness, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"alignlab\[harness\]"):
        harness().fingerprint()


def test_wrong_fields_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least one"):
        harness(tasks=())
    with pytest.raises(ConfigError, match="no such folder"):
        harness(include_path=str(tmp_path / "nowhere"))


SAMPLE = {"doc_id": 3, "doc_hash": "0123456789ab", "filter": "none"}


def test_logged_samples_become_rows() -> None:
    logged = [
        {**SAMPLE, "metrics": ["acc", "word_perplexity", "f1"], "acc": 1.0,
         "word_perplexity": (-12.0, 4), "f1": ("yes", "no")},
    ]  # fmt: skip
    rows, skipped = rows_of({"t": logged})
    assert [(r.part, r.metric, r.item, r.value, r.weight) for r in rows] == [
        ("t", "acc", "3-01234567", 1.0, 1.0),
        ("t", "word_perplexity_nll", "3-01234567", 3.0, 4.0),  # 12 nats over 4 words
    ]
    assert skipped == {"t/f1"}


def test_two_filters_are_two_metrics() -> None:
    logged = [
        {**SAMPLE, "filter": way, "metrics": ["exact_match"], "exact_match": float(way == "loose")}
        for way in ("strict", "loose")
    ]
    rows, _ = rows_of({"t": logged})
    assert [(r.metric, r.value) for r in rows] == [
        ("exact_match,strict", 0.0),
        ("exact_match,loose", 1.0),
    ]
    found = directions(rows, {"t": {"exact_match": True}})
    assert found == {"t/exact_match,strict": "higher", "t/exact_match,loose": "higher"}
    assert directions(rows, {}) == {"t/exact_match,strict": None, "t/exact_match,loose": None}
