"""Residual dropout in supervised fine-tuning: it trains otherwise, evaluates alike, and resumes."""

from __future__ import annotations

import pytest
from stage_lab import Chain, largest_difference, weights

from alignlab.errors import ConfigError

LIMA = {"bottom": 0.0, "top": 0.3}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["chain", "lora_chain"])
def test_a_schedule_changes_the_training_and_a_rate_of_zero_does_not(
    name: str, request: pytest.FixtureRequest
) -> None:
    chain: Chain = request.getfixturevalue(name)

    def trained(schedule):
        return chain.lab.run(chain.lab.stage("sft", steps=3, residual_dropout=schedule), {})

    plain, none, lima = trained(None), trained({"bottom": 0.0, "top": 0.0}), trained(LIMA)
    assert largest_difference(weights(plain), weights(none)) == 0
    assert largest_difference(weights(plain), weights(lima)) > 1e-4
    assert largest_difference(weights(trained(LIMA)), weights(lima)) == 0  # and it is repeatable


def test_what_is_measured_has_no_dropout(chain: Chain) -> None:
    still = {"steps": 1, "optimizer__learning_rate": 1e-12}
    plain = chain.lab.run(chain.lab.stage("sft", **still), {})
    dropped = chain.lab.run(chain.lab.stage("sft", **still, residual_dropout=LIMA), {})
    assert dropped.summary() == plain.summary()  # evaluation: no dropout
    first, second = (run.metrics("train")[0]["loss"] for run in (plain, dropped))
    assert first != second  # training: dropout


def test_dropped_attention_weights_and_flexattention_are_refused_when_planned(
    chain: Chain,
) -> None:
    with pytest.raises(ConfigError, match=r"attention_dropout: backbone\.layout=flex"):
        chain.lab.stage("sft", attention_dropout=0.1, backbone__layout="flex")
    assert chain.lab.stage("sft", attention_dropout=0.0, backbone__layout="flex").kind == "sft"
