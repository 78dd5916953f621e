"""Continued pretraining: what is predicted from what, what is counted, and what goes on from it."""

from __future__ import annotations

import json
import math
import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from equivalence_cases import pretraining, reading_on
from stage_lab import Caught, Lab, largest_difference, plain_model, token_logps, weight_hashes
from stage_lab import weights as weights_of
from test_stages_resume import Stopped, stopping_after, timeless

from alignlab.compose import compose
from alignlab.data.prepared import Prepared
from alignlab.errors import ConfigError, DataError
from alignlab.models.load import resolve
from alignlab.plan import build_stage
from alignlab.run import Run
from alignlab.spec import Spec, build
from alignlab.stages.continued_pretrain import parts_in

LOCAL = ("adapter=full", "adapter=lora")
PLAIN = {"optimizer.learning_rate": 1e-2, "optimizer.warmup": 0, "optimizer.eps": 1e-3}


def write_texts(path: Path, letters: str, count: int, seed: int) -> Path:
    source = random.Random(seed)
    texts = ["".join(source.choices(letters, k=source.randint(3, 40))) for _ in range(count)]
    path.write_text("".join(json.dumps({"text": f"{t}{i}"}) + "\n" for i, t in enumerate(texts)))
    return path


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """A lab with raw texts of two kinds, and no run."""
    folder = tmp_path_factory.mktemp("reading")
    made = Lab.make(folder)
    write_texts(folder / "own.jsonl", "abcd ", 40, 1)
    write_texts(folder / "general.jsonl", "wxyz ", 40, 2)
    return made


def stage(lab: Lab, *overrides: str, **changes: Any) -> Any:
    folder = lab.store.root.parent
    config = compose(
        [
            *("experiment=smoke", "pipeline=continued_pretrain", "data@documents=file"),
            f"documents.path={folder / 'own.jsonl'}",
            *("documents.validation=0.2", "documents.test=0.0"),
            *overrides,
        ]
    )
    node = dict(config["stages"]["continued"])
    for key, value in {**PLAIN, **changes}.items():
        head, _, rest = key.partition(".")
        assert head in node, key
        node[head] = {**node[head], rest: value} if rest else value
    return build_stage(node, "stages.continued")


def losses(work: Any, backbone: Any) -> dict[str, torch.Tensor]:
    """Loss of every target of the first step, by window, as the flat batches give them."""
    found = {}
    for micro in work.micros(1):
        with backbone.view("policy") as view, torch.no_grad():
            logps = view.logps(micro.data.batch)
        parts = logps.split(micro.data.batch.lengths.tolist())
        found |= {group.id: -part for group, part in zip(micro.data.groups, parts, strict=True)}
    return found


@pytest.mark.slow
@pytest.mark.conformance(
    "equivalence",
    "continued pretraining",
    "packed documents have the losses that each has alone, whatever stands beside it",
)
@pytest.mark.parametrize("window", [64, 9])
def test_packed_documents_have_the_losses_of_single_ones(
    lab: Lab, caught: Caught, window: int
) -> None:
    lab.run(stage(lab, window=window, batch={"tokens": 600}, tokens=1), {})
    work, backbone = caught.work, caught.backbone
    packed = losses(work, backbone)
    [micro] = work.micros(1)
    assert len(micro.data.groups) > 8  # beside each other in one batch
    with backbone.view("policy") as view:
        model = view.model.double()
    for group in micro.data.groups:
        alone = -token_logps(model, group.prompt, group.completions[0]).detach()
        torch.testing.assert_close(packed[group.id].double(), alone, atol=2e-5, rtol=1e-5)
    if window == 64:  # every window is a document from its BOS to its EOS
        ids = backbone.tokenizer
        assert all(g.prompt.tolist() == [ids.bos_token_id] for g in work.groups)
        assert all(g.completions[0][-1] == ids.eos_token_id for g in work.groups)


def test_concatenated_documents_are_read_from_one_another(lab: Lab, caught: Caught) -> None:
    """The same targets, another loss: a window goes on over the end of a document."""
    lab.run(stage(lab, window=64, packing="concatenated", batch=2, tokens=1), {})
    work, model = caught.work, caught.backbone
    sizes = work.groups.sizes().tolist()
    assert set(sizes[:-1]) == {65}
    packed = losses(work, model)
    bos = model.tokenizer.bos_token_id
    [micro] = work.micros(1)
    group = next(g for g in micro.data.groups if bos in g.completions[0].tolist())
    with model.view("policy") as view:
        plain = view.model.double()
    whole = -token_logps(plain, group.prompt, group.completions[0]).detach()
    torch.testing.assert_close(packed[group.id].double(), whole, atol=2e-5, rtol=1e-5)
    cut = group.completions[0].tolist().index(bos)
    alone = -token_logps(plain, [bos], group.completions[0][cut + 1 :]).detach()
    assert float((alone - whole[cut + 1 :]).abs().max()) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("adapter", LOCAL)
def test_the_record_says_what_was_read_and_what_it_was_worth(lab: Lab, adapter: str) -> None:
    made = stage(lab, adapter, window=16, tokens=None, epochs=2.0, batch=4, gap_rows=10_000)
    run = lab.run(made, {})
    documents = [json.loads(line)["text"] for line in (lab.store.root.parent / "own.jsonl").open()]
    corpus = run.record["corpus"]
    # a byte is a token, and every document ends with one more
    texts = [group.completions[0] for group in build(made.data).load("pretrain")]
    held_out = [group.completions[0] for group in build(made.data).load("pretrain_validation")]
    assert sorted(texts + held_out) == sorted(documents)
    assert corpus["documents"] == len(texts)
    assert corpus["tokens"] == sum(len(text) + 1 for text in texts)
    assert corpus["windows"] == sum(math.ceil((len(text) + 1) / 16) for text in texts)
    assert run.record["updates"] == math.ceil(2 * corpus["windows"] / 4)
    summary = run.summary()
    assert summary["validation_nll"] < summary["start_nll"] - 0.1
    assert summary["validation_perplexity"] == pytest.approx(math.exp(summary["validation_nll"]))
    kept = plain_nll(run, lab, held_out[: made.evaluate_rows])
    assert summary["validation_nll"] == pytest.approx(kept, abs=1e-5)
    # the generalisation gap: all documents that were trained on, measured alike
    assert summary["train_nll"] == pytest.approx(plain_nll(run, lab, texts), abs=1e-5)
    assert summary["nll_gap"] == pytest.approx(kept - summary["train_nll"], abs=1e-5)


def plain_nll(run: Run, lab: Lab, texts: list[str]) -> float:
    """Nats per token of documents, each in windows of 16, by transformers' own pass."""
    model = plain_model(run.model_dir, lab.store.cache)
    total = count = 0.0
    for text in texts:
        ids = [1, *(model_ids(text, lab)), 2]
        for start in range(0, len(ids) - 1, 16):
            found = token_logps(model, ids[start : start + 1], ids[start + 1 : start + 17])
            total, count = total - float(found.sum()), count + len(found)
    return total / count


def model_ids(text: str, lab: Lab) -> list[int]:
    from transformers import AutoTokenizer

    folder = resolve("random:tiny", lab.store.cache)
    return AutoTokenizer.from_pretrained(folder)(text, add_special_tokens=False)["input_ids"]


def mixed(lab: Lab, weight: float) -> list[str]:
    folder = lab.store.root.parent
    parts = []
    for name, file in (("first", "own"), ("second", "general")):
        here = f"documents.parts.{name}.source"
        parts += [f"{here}.path={folder / file}.jsonl", f"{here}.validation=0.2"]
    return [
        *("experiment=smoke", "pipeline=continued_pretrain", "data@documents=mixture", *parts),
        *("documents.mix=weight", "documents.measure=characters"),
        *(f"documents.parts.first.weight={1 - weight}", f"documents.parts.second.weight={weight}"),
    ]


@pytest.mark.slow
def test_rehearsed_text_keeps_its_share_and_its_own_loss(lab: Lab) -> None:
    """A quarter of the characters is general text; without it, its loss rises higher."""
    found = {}
    for weight in (0.25, 0.02):
        node = dict(compose(mixed(lab, weight))["stages"]["continued"])
        node |= {"tokens": 6000, "evaluate_rows": 100}
        node["optimizer"] = {**node["optimizer"], "learning_rate": 2e-2, "warmup": 0}
        found[weight] = lab.run(build_stage(node, "stages.continued"), {}).record
    parts = found[0.25]["corpus"]["parts"]
    assert parts["second"]["share"] == pytest.approx(0.25, abs=0.03)
    assert sum(part["tokens"] for part in parts.values()) == found[0.25]["corpus"]["tokens"]
    for record in found.values():
        told = record["summary"]
        assert (
            min(told["validation_nll_first"], told["validation_nll_second"])
            < (told["validation_nll"])
            < max(told["validation_nll_first"], told["validation_nll_second"])
        )
    summaries = [found[weight]["summary"] for weight in (0.25, 0.02)]
    assert summaries[0]["start_nll_second"] == summaries[1]["start_nll_second"]
    assert summaries[0]["validation_nll_second"] < summaries[1]["validation_nll_second"] - 0.1


@pytest.mark.slow
def test_documents_stay_on_disk_and_are_prepared_once(lab: Lab, caught: Caught) -> None:
    lab.run(stage(lab, window=8, tokens=50), {})
    documents = caught.work.groups.documents
    assert isinstance(documents, Prepared)
    before = {path.name for path in (lab.store.cache / "tokens").iterdir()}
    # another window, packing, seed and learning rate read the same tokens
    other = stage(lab, window=5, packing="concatenated", tokens=50, seed=3)
    lab.run(other, {})
    assert {path.name for path in (lab.store.cache / "tokens").iterdir()} == before


@pytest.mark.slow
@pytest.mark.parametrize("packing", ["documents", "concatenated"])
def test_a_stopped_run_goes_on_bit_for_bit(lab: Lab, packing: str) -> None:
    made = stage(lab, window=12, packing=packing, batch={"tokens": 100}, tokens=500)
    whole = lab.run(made, {})
    run = lab.new_run(made.kind)
    with stopping_after(2), pytest.raises(Stopped):
        lab.run(made, {}, run, checkpoint_every_seconds=0)
    lab.run(made, {}, run, checkpoint_every_seconds=0)
    assert weight_hashes(run) == weight_hashes(whole)
    assert timeless(run) == timeless(whole)
    assert run.record["summary"] == whole.record["summary"]


@pytest.mark.slow
@pytest.mark.parametrize("adapter", LOCAL)
def test_sft_goes_on_from_what_was_read(lab: Lab, adapter: str) -> None:
    read = lab.run(stage(lab, adapter, tokens=300), {})
    folder = lab.store.root.parent
    config = compose(
        [
            *("experiment=smoke", "pipeline=continued_pretrain", "data=file", adapter),
            f"data.path={folder / 'data.jsonl'}",
        ]
    )
    node = dict(config["stages"]["sft"])
    assert node["inputs"] == {"init": "continued"}
    node["optimizer"] = {**node["optimizer"], "learning_rate": 1e-9}
    sft = lab.run(build_stage(node, "stages.sft"), {"init": read})
    assert largest_difference(weights_of(sft), weights_of(read)) < 1e-6
    again = stage(lab, adapter, tokens=100, inputs={"init": "continued"})
    more = lab.run(again, {"init": sft})
    assert more.summary()["start_nll"] == pytest.approx(read.summary()["validation_nll"], abs=1e-4)


@pytest.mark.slow
def test_what_cannot_be_read_is_refused(lab: Lab, tmp_path: Path) -> None:
    empty = stage(lab, "documents.validation=0.0")
    with pytest.raises(DataError, match=r"(?s)'pretrain_validation' .*There are no rows"):
        lab.run(empty, {})
    chat = tmp_path / "chat.jsonl"
    rows = [[{"role": r, "content": f"c{i}"} for r in ("user", "assistant")] for i in range(9)]
    chat.write_text("".join(json.dumps({"messages": turns}) + "\n" for turns in rows))
    with pytest.raises(DataError, match=r"data\.style=text"):
        lab.run(stage(lab, f"documents.path={chat}"), {})


@pytest.mark.slow
def test_a_model_made_by_pretraining_goes_on_too(lab: Lab, pretrained: Run) -> None:
    run = lab.run(stage(lab, tokens=200, inputs={"init": "pretrain"}), {"init": pretrained})
    assert run.record["summary"]["validation_nll"] < run.record["summary"]["start_nll"]


@pytest.fixture
def pretrained(lab: Lab) -> Run:
    return lab.run(pretraining(lab), {})


@pytest.mark.slow
def test_the_case_of_the_equivalences_reads_over_the_end_of_an_epoch(lab: Lab) -> None:
    run = lab.run(reading_on(lab), {})
    assert run.record["updates"] >= 3
    assert run.record["prompts"] > run.record["corpus"]["windows"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("metric", "every", "problem"),
    [
        ("nl", 1, "the evaluations give nll. Did you mean 'nll'?"),
        ("nll_own", 1, "the evaluations give nll."),
        ("nll", 0, "set evaluate_every above 0"),
    ],
)
def test_early_stopping_that_cannot_work_is_refused_by_the_plan(
    lab: Lab, metric: str, every: int, problem: str
) -> None:
    rule = {"metric": metric, "mode": "min", "patience": 1, "min_delta": 0.0}
    with pytest.raises(ConfigError, match=re.escape(problem)):
        stage(lab, early_stopping=rule, evaluate_every=every)


def test_early_stopping_may_read_a_part_of_a_mixture_wherever_it_stands() -> None:
    mixture = {"parts": {"own": {}, "general": {}}}
    for data in (Spec("Mixture", mixture), Spec("Refined", {"source": Spec("Mixture", mixture)})):
        assert list(parts_in(data)) == ["own", "general"]
    assert list(parts_in(Spec("File", {"path": "parts"}))) == []
