"""Against overfitting, in whole stages: smoothed labels, noisy embeddings, gaps, early stopping."""

from __future__ import annotations

import math

import pytest
import torch
from stage_lab import Chain, Lab, largest_difference, plain_model, weights
from test_stages_resume import Stopped, stopping_after

from alignlab.data.template import Tokenization
from alignlab.errors import ConfigError
from alignlab.models.templates import use_template
from alignlab.spec import build
from alignlab.stages.generalization import both_sides, drawn, require_stopping, summary_of

STILL = {"steps": 1, "optimizer__learning_rate": 1e-12}
NOISY = {"neftune_alpha": 20.0}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """A store without a run: supervised fine-tuning needs no other stage."""
    return Lab.make(tmp_path_factory.mktemp("sft"))


def sft(lab: Lab, **changes):
    return lab.run(lab.stage("sft", **changes), {})


@pytest.mark.slow
def test_noise_is_in_training_alone_and_the_same_however_rows_are_packed(lab: Lab) -> None:
    plain, noisy = sft(lab, **STILL), sft(lab, **STILL, **NOISY)
    assert noisy.summary() == plain.summary()  # evaluation: no noise
    [first], [second] = (run.metrics("train") for run in (plain, noisy))
    assert abs(first["loss"] - second["loss"]) > 1e-3
    stage = lab.stage("sft", **STILL, **NOISY)
    packed = lab.run(stage, {}, token_budget=64)
    assert packed.metrics("train")[0]["loss"] == pytest.approx(second["loss"], rel=1e-5)
    assert packed.record["packing"]["micro_batches"] > noisy.record["packing"]["micro_batches"]


def test_a_noisy_training_goes_on_where_it_was_stopped(lab: Lab) -> None:
    stage = lab.stage("sft", steps=3, **NOISY)
    straight = lab.run(stage, {})
    run = lab.new_run("sft")
    with stopping_after(2), pytest.raises(Stopped):
        lab.run(stage, {}, run, checkpoint_every_seconds=0)
    again = lab.run(stage, {}, run)
    assert largest_difference(weights(straight), weights(again)) == 0


def test_the_reference_of_a_preference_stage_is_not_disturbed(chain: Chain) -> None:
    """DPO's loss at policy = reference is log 2: in an evaluation, and not under noise."""
    stage, inputs = chain.prefer(**STILL, **NOISY, evaluate_every=1, gap_rows=5)
    run = chain.lab.run(stage, inputs)
    [measured] = run.metrics("eval")
    assert measured["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert measured["train_loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert measured["margin_gap"] == pytest.approx(0, abs=1e-4)
    assert abs(run.metrics("train")[0]["loss"] - math.log(2)) > 1e-4


def test_smoothed_labels_by_hand(lab: Lab) -> None:
    """Mean over all targets of the whole step, of 0.8·NLL + 0.2·(mean of −log p)."""
    stage = lab.stage("sft", **STILL, label_smoothing=0.2, rows=8, batch=8)
    run = lab.run(stage, {})
    model = plain_model(run.model_dir, lab.store.cache)
    from transformers import AutoTokenizer

    tokenizer = use_template(AutoTokenizer.from_pretrained(run.model_dir), None)
    shown = [g.demonstration() for g in build(stage.data).load("sft")][:8]
    nll = smooth = count = 0.0
    for group in Tokenization(tokenizer, stage.max_prompt, stage.max_completion).groups(shown):
        ids = torch.tensor([[*group.prompt.tolist(), *group.completions[0].tolist()]])
        with torch.no_grad():
            logp = model(input_ids=ids).logits[0].log_softmax(-1)[len(group.prompt) - 1 : -1]
        own = logp.gather(1, ids[0, len(group.prompt) :, None])
        nll, smooth = nll - float(own.sum()), smooth - float(logp.mean(-1).sum())
        count += len(own)
    [row] = run.metrics("train")
    assert row["nll"] == pytest.approx(nll / count, rel=1e-5)
    assert row["loss"] == pytest.approx((0.8 * nll + 0.2 * smooth) / count, rel=1e-5)


def test_what_is_measured_of_training_rows_changes_no_weight(lab: Lab) -> None:
    changes = {"steps": 2, "evaluate_every": 1}
    plain, both = sft(lab, **changes), sft(lab, **changes, gap_rows=6)
    assert largest_difference(weights(plain), weights(both)) == 0
    rows = both.metrics("eval")
    assert [row["nll"] for row in rows] == [row["nll"] for row in plain.metrics("eval")]
    for row in rows:
        assert row["nll_gap"] == pytest.approx(row["nll"] - row["train_nll"])
    assert set(both.summary()) == {"validation_nll", "train_nll", "nll_gap"}
    assert set(plain.summary()) == {"validation_nll"}


def test_a_reward_model_has_both_sides(chain: Chain) -> None:
    stage = chain.lab.stage("reward", steps=1, evaluate_every=1, gap_rows=4)
    run = chain.lab.run(stage, chain.inputs("init", "annotations"))
    [row] = run.metrics("eval")
    assert {"accuracy", "train_accuracy", "accuracy_gap", "margin", "train_margin"} <= set(row)
    assert "validation_accuracy" in run.summary()
    assert run.summary()["accuracy_gap"] == pytest.approx(row["accuracy_gap"])


@pytest.mark.parametrize(
    ("rule", "changes", "said"),
    [
        ({"metric": "nil"}, {"evaluate_every": 1}, "Did you mean 'nll'"),
        ({"metric": "train_nll"}, {"evaluate_every": 1}, "gap_rows"),
        ({"metric": "nll"}, {"evaluate_every": 0}, "evaluate_every"),
        ({"metric": "nll_gaps"}, {"evaluate_every": 1, "gap_rows": 4}, "Did you mean 'nll_gap'"),
    ],
)
def test_early_stopping_that_cannot_work_is_refused_when_planned(lab, rule, changes, said):
    whole = {"mode": "min", "patience": 1, "min_delta": 0.0, **rule}
    with pytest.raises(ConfigError, match=said):
        lab.stage("sft", early_stopping=whole, **changes)


def test_stopping_on_the_gap_brings_the_best_weights_back(lab: Lab) -> None:
    rule = {"metric": "nll_gap", "mode": "min", "patience": 1, "min_delta": 100.0}
    run = sft(lab, steps=5, evaluate_every=1, gap_rows=4, early_stopping=rule)
    assert [row["step"] for row in run.metrics("eval")] == [1, 2]  # no gain of 100 nats
    assert (run.record["updates"], run.record["best_step"]) == (2, 1)
    one = sft(lab, steps=1, evaluate_every=1)
    assert largest_difference(weights(run), weights(one)) == 0


def test_both_sides_by_hand():
    def measure(rows):
        return {"loss": float(sum(rows)), "accuracy": 1.0, "length": 3.0}

    assert both_sides(measure, [1, 2], [5, 6], None, 0)() == measure([1, 2])
    found = both_sides(measure, [1, 2], [5, 6], 9, 0)()
    # more rows than there are: all of them; a gap is held-out minus trained on
    assert found["train_loss"] == 11
    assert found["loss_gap"] == -8
    assert found["accuracy_gap"] == 0
    assert "train_length" not in found
    assert summary_of({"nll": 1.0, "train_nll": 2.0, "nll_gap": -1.0}) == {
        "validation_nll": 1.0, "train_nll": 2.0, "nll_gap": -1.0,
    }  # fmt: skip
    rows = list(range(100))
    sample = drawn(rows, 10, 1)
    assert sample == sorted(set(sample)) == drawn(rows, 10, 1) != drawn(rows, 10, 2)
    assert len(sample) == 10
    require_stopping(None, 0, ("nll",), None)  # nothing to refuse


def test_attention_drops_weights_in_training_alone(lab: Lab) -> None:
    plain, dropped = sft(lab, **STILL), sft(lab, **STILL, attention_dropout=0.5)
    assert dropped.summary() == plain.summary()  # evaluation: no dropout
    [first], [second] = (run.metrics("train") for run in (plain, dropped))
    assert abs(first["loss"] - second["loss"]) > 1e-5
