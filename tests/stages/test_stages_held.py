"""Anchors where no given rows are imitated: reward models, PPO, GRPO, online preferences."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from equivalence_cases import train
from stage_lab import Caught, Chain, weights
from test_stages_anchor import anchor

from alignlab import typed
from alignlab.compose import conf_dir
from alignlab.errors import ConfigError
from alignlab.keys import stage_key
from alignlab.models.backbone import Backbone
from alignlab.models.changes import changes_of
from alignlab.models.load import BackboneConfig


def stage_of(chain: Chain, kind: str, **changes: Any) -> tuple[Any, dict[str, Any]]:
    if kind == "reward":
        stage = chain.lab.stage("reward", steps=3, **changes)
        return stage, chain.inputs("init", "annotations")
    return chain.online(kind, iterations=2, **changes)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["reward", "ppo", "grpo", "online_dpo"])
def test_a_start_holds_what_is_trained_from_it(kind: str, chain: Chain) -> None:
    """α so large that nothing moves: the change of the weights is that of one first step."""

    def change(given: Any) -> tuple[float, Any]:
        stage, inputs = stage_of(chain, kind, anchor=given)
        run = chain.lab.run(stage, inputs)
        start, end = weights(chain.sft), weights(run)
        names = [name for name in end if not name.startswith("head")]
        total = sum(float((end[n] - start[n]).double().square().sum()) for n in names)
        return total, run.metrics("train")

    (free, plain), (held, rows) = change(None), change(anchor(chain.lab, "l2sp", weight=100.0))
    assert rows[0]["anchor"] == pytest.approx(0.0, abs=1e-6)  # nothing has changed yet
    assert rows[0]["loss"] == pytest.approx(plain[0]["loss"], rel=1e-4)
    assert rows[-1]["anchor"] > 0
    assert held < 0.7 * free


@pytest.mark.slow
@pytest.mark.conformance("law", "L2-SP", "of PPO the policy is held, and the value model is not")
def test_the_penalty_is_half_the_squared_change_of_the_policy(chain: Chain) -> None:
    given = anchor(chain.lab, "l2sp", weight=0.3)
    changes = {"ppo_epochs": 1, "minibatches": 1, "anchor": given}
    stage, inputs = chain.online("ppo", iterations=2, **changes)
    row = chain.lab.run(stage, inputs).metrics("train")[1]
    one, _ = chain.online("ppo", iterations=1, **changes)
    after = weights(chain.lab.run(one, inputs))  # the weights that the second step begins with
    start = weights(chain.sft)
    wanted = 0.15 * sum(float((after[n] - start[n]).double().square().sum()) for n in start)
    assert wanted > 1e-6
    assert row["anchor"] == pytest.approx(wanted, rel=1e-4)


def test_a_fresh_scalar_head_weighs_nothing_for_old_data(chain: Chain, caught: Caught) -> None:
    given = anchor(chain.lab, "ewc", rows=4)
    stage, inputs = stage_of(chain, "reward", anchor=given)
    chain.lab.run(stage, inputs)
    penalty = caught.work.terms
    weighed = dict(zip([c.name for c in penalty.changes], penalty.importance, strict=True))
    assert float(weighed["head.linear.weight"].abs().max()) == 0
    assert max(float(f.max()) for f in weighed.values()) > 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ppo", "grpo"])
def test_with_adapters_and_small_micro_batches(kind: str, lora_chain: Chain) -> None:
    given = anchor(lora_chain.lab, "ewc", rows=4, weight=100.0)
    stage, inputs = stage_of(lora_chain, kind, anchor=given)
    small = train(lora_chain.lab, stage, inputs, token_budget=60)
    large = train(lora_chain.lab, stage, inputs, token_budget=4000)
    assert small.run.metrics("train")[-1]["anchor"] > 0
    assert small.differs(large) < 2e-6


def test_an_online_policy_is_distilled_on_data_of_its_own(chain: Chain) -> None:
    given = anchor(chain.lab, "distill_on_policy", weight=10.0)
    stage, inputs = stage_of(chain, "grpo", anchor=given)
    rows = chain.lab.run(stage, inputs).metrics("train")
    assert rows[0]["anchor"] == pytest.approx(0.0, abs=1e-6)
    assert rows[-1]["anchor"] > 0


def test_anchors_that_would_hold_nothing_are_refused_when_planned(chain: Chain) -> None:
    text = anchor(chain.lab, "distill")
    with pytest.raises(ConfigError, match="scores text and writes none"):
        stage_of(chain, "reward", anchor=text)
    for kind in ("ppo", "grpo", "online_dpo"):
        with pytest.raises(ConfigError, match=r"anchor\.data"):
            stage_of(chain, kind, anchor=text)


def test_without_an_anchor_keys_and_estimates_are_as_before(
    chain: Chain, monkeypatch: pytest.MonkeyPatch
) -> None:
    from alignlab import keys

    seen: list[Any] = []
    monkeypatch.setattr(keys, "content_key", lambda content: seen.append(content) or "x")
    lab = chain.lab
    held = anchor(lab, "ewc")
    for kind in ("reward", "ppo", "grpo", "online_dpo"):
        stage, _ = stage_of(chain, kind)
        with_anchor, _ = stage_of(chain, kind, anchor=held)
        stage_key(stage, "", {})
        stage_key(with_anchor, "", {})
        assert "anchor" not in seen[-2]["fields"]
        assert seen[-1]["fields"]["anchor"]["weight"] == 10.0
        if kind != "reward":
            loads = [s.estimate(lab.store.cache, {}).workload for s in (stage, with_anchor)]
            extra = [w.averages * w.trained + w.starts for w in loads]
            assert extra[1] - extra[0] == 2  # the start and F, of the policy alone


@pytest.mark.parametrize("name", ["dora", "adalora", "pissa"])
def test_a_penalty_takes_products_of_two_factors_and_refuses_what_is_more(
    name: str, chain: Chain
) -> None:
    file = conf_dir() / "adapter" / f"{name}.yaml"
    node = {**yaml.safe_load(file.read_text(encoding="utf-8")), "rank": 2}
    stated = {**typed.to_mapping(chain.lab.stage("sft").backbone), "adapter": node}  # type: ignore[attr-defined]
    config = typed.build(BackboneConfig, stated, "backbone")
    backbone = Backbone.load(config, chain.lab.store.cache, "cpu")
    backbone.add("policy", source=None, trainable=True)
    if name == "pissa":  # beside what it trains lies what it began as, which does not change
        assert len(changes_of(backbone, "policy")) == 14
    else:
        with pytest.raises(ConfigError, match="more than a product"):
            changes_of(backbone, "policy")
