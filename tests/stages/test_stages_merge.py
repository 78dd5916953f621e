"""The merge stage: whole models and adapters, what is refused, and what its result is good for."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from stage_lab import Chain, Lab, largest_difference, plain_model, weights
from torch import Tensor

from alignlab.compose import compose, conf_dir
from alignlab.errors import ConfigError
from alignlab.models.load import resolve
from alignlab.models.merge_sources import Updates
from alignlab.plan import Plan, build_stage
from alignlab.run import Run

RULES = sorted(path.stem for path in (conf_dir() / "merging").glob("*.yaml"))


def merge(rule: str, names: list[str], **fields: Any) -> Any:
    node = yaml.safe_load((conf_dir() / "merging" / f"{rule}.yaml").read_text(encoding="utf-8"))
    settings = fields.pop("settings", {})
    stated = {
        "_target_": "alignlab.stages.merge.Merge",
        "seed": 0,
        "inputs": {name: name for name in names},
        "rule": {**node, **settings},
        "weights": None,
        "rank": None,
        **fields,
    }
    return build_stage(stated, "stages.merge")


@pytest.fixture(scope="module")
def two(chain: Chain) -> dict[str, Run]:
    """SFT and what another training made of it, both whole models."""
    other = chain.lab.run(chain.lab.stage("sft", steps=6, seed=5), {})
    return {"model": chain.sft, "model/1": other}


@pytest.fixture(scope="module")
def two_adapters(lora_chain: Chain) -> dict[str, Run]:
    other = lora_chain.lab.run(lora_chain.lab.stage("sft", steps=6, seed=5), {})
    return {"model": lora_chain.sft, "model/1": other}


def base_of(lab: Lab) -> dict[str, Tensor]:
    return load_file(resolve("random:tiny", lab.store.cache) / "model.safetensors")


def test_a_soup_is_the_weighted_mean_of_the_weights(chain: Chain, two: dict[str, Run]) -> None:
    made = chain.lab.run(merge("linear", [*two], weights=[3.0, 1.0]), two)
    one, other = weights(two["model"]), weights(two["model/1"])
    wanted = {name: 0.75 * one[name] + 0.25 * other[name] for name in one}
    assert largest_difference(weights(made), wanted) < 1e-6
    assert largest_difference(one, other) > 1e-2
    assert made.record["label"] == "linear merge (weights 3 : 1)"
    assert made.record["template"] == chain.sft.record["template"]
    assert made.record["merged"] == {name: run.name for name, run in two.items()}


def test_changes_count_from_the_base_model_or_from_the_run_behind_base(
    chain: Chain, two: dict[str, Run], earlier: Run
) -> None:
    half = {"scale": 0.5}
    made = chain.lab.run(merge("task_arithmetic", ["model"], settings=half), {"model": chain.sft})
    start, end = base_of(chain.lab), weights(chain.sft)
    key = "model.safetensors/"
    wanted = {key + n: start[n] + 0.5 * (end[key + n] - start[n]) for n in start}
    assert largest_difference(weights(made), wanted) < 1e-6
    inputs = {"model": chain.sft, "base": earlier}
    made = chain.lab.run(merge("task_arithmetic", [*inputs], settings=half), inputs)
    middle = {n: 0.5 * w + 0.5 * weights(earlier)[n] for n, w in end.items()}
    assert largest_difference(weights(made), middle) < 1e-6


def test_ties_cuts_by_the_whole_model(chain: Chain) -> None:
    settings = {"density": 0.1}
    made = chain.lab.run(merge("ties", ["model"], settings=settings), {"model": chain.sft})
    start, end = base_of(chain.lab), weights(chain.sft)
    out, key = weights(made), "model.safetensors/"
    change = torch.cat([(end[key + n] - start[n]).flatten() for n in start])
    got = torch.cat([(out[key + n] - start[n]).flatten() for n in start])
    count = int(0.1 * len(change))
    largest = change.abs().topk(count).indices
    kept = torch.zeros_like(change).index_copy(0, largest, change[largest])
    assert float((got - kept).abs().max()) < 1e-6
    shares = {n: float((out[key + n] != start[n]).float().mean()) for n in start}
    assert max(shares.values()) > 0.2  # more of some tensors than of others
    assert min(shares.values()) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_makes_a_model_that_is_evaluated(
    rule: str, chain: Chain, two: dict[str, Run]
) -> None:
    made = chain.lab.run(merge(rule, [*two]), two)
    evaluation = chain.lab.run(
        chain.lab.stage("evaluate_sft"),
        {"policy": made, "reference": chain.sft, "reward": chain.reward},
    )
    summary = evaluation.summary()
    assert summary["reference_nll"] is not None
    assert abs(summary["kl"]) > 1e-3  # it is another model than SFT
    assert evaluation.record["label"] == made.record["label"]
    again = chain.lab.run(merge(rule, [*two]), two)
    assert largest_difference(weights(made), weights(again)) == 0


@pytest.mark.parametrize("rule", ["dare", "dare_ties"])
def test_the_seed_draws_what_dare_drops(rule: str, chain: Chain, two: dict[str, Run]) -> None:
    made = [chain.lab.run(merge(rule, [*two], seed=seed), two) for seed in (0, 1)]
    assert largest_difference(*map(weights, made)) > 1e-3


def test_a_merged_model_goes_on_being_trained(chain: Chain, two: dict[str, Run]) -> None:
    made = chain.lab.run(merge("linear", [*two]), two)
    more = chain.lab.run(chain.lab.stage("sft", steps=1, optimizer__learning_rate=1e-9),
                         {"init": made})  # fmt: skip
    assert largest_difference(weights(more), weights(made)) < 1e-7
    stage, inputs = chain.prefer()
    chain.lab.run(stage, {**inputs, "init": made, "reference": made})


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_adapters_are_merged_as_the_models_they_stand_for(
    rule: str, lora_chain: Chain, two_adapters: dict[str, Run]
) -> None:
    """Merged adapters compute what the rule makes of the updates s·B·A, where the rank suffices."""
    lab = lora_chain.lab
    made = lab.run(merge(rule, [*two_adapters], rank=32), two_adapters)  # all that the sizes allow
    updates = [Updates(run.model_dir) for run in two_adapters.values()]
    merged = Updates(made.model_dir)
    summary = made.record["summary"]
    assert summary["residual"] < 1e-5
    if rule == "linear":
        for name in merged.shapes():
            wanted = 0.5 * (updates[0].get(name) + updates[1].get(name))
            assert torch.allclose(merged.get(name), wanted, atol=1e-6)
    name = "model.layers.0.mlp.up_proj"
    model = plain_model(made.model_dir, lab.store.cache).merge_and_unload()  # peft's own reading
    found = model.get_submodule(name).weight - base_of(lab)[f"{name}.weight"].double()
    assert float((found - merged.get(name).double()).abs().max()) < 1e-5
    assert float(merged.get(name).abs().max()) > 1e-4


def test_averages_of_adapters_are_exact_at_the_sum_of_their_ranks(
    lora_chain: Chain, two_adapters: dict[str, Run]
) -> None:
    lab = lora_chain.lab
    made = lab.run(merge("task_arithmetic", [*two_adapters]), two_adapters)
    assert made.record["summary"]["rank"] == 8
    assert made.record["summary"]["residual"] < 1e-5
    low = lab.run(merge("task_arithmetic", [*two_adapters], rank=2), two_adapters)
    assert low.record["summary"]["residual"] > 1e-2
    config = json.loads((made.model_dir / "adapter_config.json").read_text(encoding="utf-8"))
    assert (config["r"], config["lora_alpha"]) == (8, 8)


def test_an_adapter_merged_with_itself_is_itself_and_is_trained_on(
    lora_chain: Chain, two_adapters: dict[str, Run]
) -> None:
    lab, same = lora_chain.lab, {"model": lora_chain.sft, "model/1": lora_chain.sft}
    made = lab.run(merge("linear", [*same], rank=4), same)
    one, merged = Updates(lora_chain.sft.model_dir), Updates(made.model_dir)
    for name in one.shapes():
        assert torch.allclose(one.get(name), merged.get(name), atol=1e-6)
    stage, inputs = lora_chain.prefer()
    trained = lab.run(stage, {**inputs, "init": made, "reference": made})
    assert trained.record["params_trained"] == made.record["summary"]["parameters"]


def test_changes_of_adapters_count_from_the_adapter_behind_base(
    lora_chain: Chain, two_adapters: dict[str, Run]
) -> None:
    lab = lora_chain.lab
    inputs = {"model": two_adapters["model"], "base": two_adapters["model/1"]}
    made = lab.run(merge("task_arithmetic", [*inputs], settings={"scale": 0.25}), inputs)
    one, base = (Updates(run.model_dir) for run in inputs.values())
    merged = Updates(made.model_dir)
    for name in one.shapes():
        wanted = base.get(name) + 0.25 * (one.get(name) - base.get(name))
        assert torch.allclose(merged.get(name), wanted, atol=1e-6)


@pytest.fixture(scope="module")
def composed() -> dict[str, Any]:
    return dict(compose(["experiment=smoke", "pipeline=sft"]))


@pytest.mark.slow
def test_a_merge_is_planned_with_its_cost_and_key(chain: Chain, composed: dict[str, Any]) -> None:
    def stated(**fields: Any) -> dict[str, Any]:
        node = {
            "_target_": "alignlab.stages.merge.Merge", "seed": 0, "inputs": {"model": "sft"},
            "rule": {"_target_": "alignlab.models.merging.task_arithmetic", "scale": 0.5},
            "weights": None, "rank": None,
        }  # fmt: skip
        return {**node, **fields}

    def node(**fields: Any) -> Any:
        stages = {**composed["stages"], "merge": stated(**fields)}
        made = Plan.from_configs([{**composed, "stages": stages}], chain.lab.store)
        return next(n for n in made.nodes.values() if n.kind == "merge")

    one = node()
    assert one.estimate.params_total > 0
    assert one.estimate.memory_bytes > 4 * one.estimate.params_total
    assert one.key == node().key == node(label="other").key
    other_rule = {"_target_": "alignlab.models.merging.task_arithmetic", "scale": 0.4}
    assert len({one.key, node(weights=[2.0]).key, node(rule=other_rule).key, node(seed=1).key}) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": {}}, "inputs.model is missing"),
        ({"weights": [1.0]}, "weights: 1 for 2 models"),
        ({"weights": [0.0, 0.0]}, "not all of them 0"),
        ({"weights": [1.0, -1.0]}, "above 0"),
        ({"inputs": {"model": "a", "model/1": "b", "base": "c"}}, "looks at the models alone"),
    ],
)
def test_what_makes_no_sense_is_refused_when_planned(change: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        merge("linear", ["model", "model/1"], **change)


def test_slerp_takes_two_models() -> None:
    with pytest.raises(ConfigError, match="merges two models, and 3 are given"):
        merge("slerp", ["model", "model/1", "model/2"])


def test_models_of_other_bases_and_adapters_are_refused_when_planned(
    chain: Chain, lora_chain: Chain
) -> None:
    stage = merge("linear", ["model", "model/1"])
    full, lora = chain.lab.stage("sft"), lora_chain.lab.stage("sft")
    with pytest.raises(ConfigError, match="trains lora"):
        stage.accept({"model": full, "model/1": lora})
    other = replace(full, backbone=replace(full.backbone, path="package:reviews_lm"))
    with pytest.raises(ConfigError, match="different base models"):
        stage.accept({"model": full, "model/1": other})
    with pytest.raises(ConfigError, match="rank=null"):
        merge("linear", ["model"], rank=4).accept({"model": full})
    stage.accept({"model": full, "model/1": full})


def test_models_of_other_bases_are_refused_when_run(
    chain: Chain, two: dict[str, Run], lora_chain: Chain
) -> None:
    mixed = {"model": chain.sft, "model/1": lora_chain.sft}
    with pytest.raises(ConfigError, match="an adapter cannot be merged with a whole model"):
        chain.lab.run(merge("linear", [*mixed]), mixed)
    view = chain.lab.new_run("sft")
    shutil.copytree(two["model"].model_dir, view.model_dir)
    view.update_record(template=two["model"].record["template"])
    file = view.model_dir / "view.json"
    stated = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**stated, "base_sha256": "0" * 64}), encoding="utf-8")
    # The weights differ from the other's too, so that it cannot be the other's base.
    other = {"model": two["model/1"], "model/1": view}
    with pytest.raises(ConfigError, match="different base models"):
        chain.lab.run(merge("linear", [*other]), other)


def test_a_reward_model_is_refused(chain: Chain) -> None:
    inputs = {"model": chain.sft, "model/1": chain.reward}
    with pytest.raises(ConfigError, match="scalar head"):
        chain.lab.run(merge("linear", [*inputs]), inputs)


@pytest.mark.slow
@pytest.mark.parametrize("rule", ["linear", "ties"])
def test_what_a_selective_training_changed_is_merged(
    rule: str, tmp_path: Path, chain: Chain
) -> None:
    """Only some of the model's tensors are in such a folder, and so in the merged one."""
    data = Path(chain.lab.configs["sft"]["data"]["path"])
    settings = ["adapter=last_layers", "reward@gold=matches", "gold.pattern=a"]
    lab = Lab.make(tmp_path, *settings, data=data)
    one, two = (lab.run(lab.stage("sft", steps=3, seed=seed), {}) for seed in (0, 1))
    inputs = {"model": one, "model/1": two}
    made = lab.run(merge(rule, [*inputs]), inputs)
    assert weights(made).keys() == weights(one).keys()
    if rule == "linear":
        mean = {n: (w + weights(two)[n]) / 2 for n, w in weights(one).items()}
        assert largest_difference(weights(made), mean) < 1e-6
    roles = {"policy": made, "reference": one}
    assert lab.run(lab.stage("evaluate_sft"), roles).summary()["kl"] is not None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("adapter", "message"), [("dora", "DoRA"), ("ia3", "IA3"), ("prompt", "virtual tokens")]
)
def test_what_is_no_update_of_matrices_is_refused_with_the_reason(
    adapter: str, message: str, tmp_path: Path, chain: Chain
) -> None:
    data = Path(chain.lab.configs["sft"]["data"]["path"])
    lab = Lab.make(tmp_path, f"adapter={adapter}", "reward@gold=length", data=data)
    stage = merge("linear", ["model"])

    def refused() -> None:
        stage.accept({"model": lab.stage("sft")})
        lab.run(stage, {"model": lab.run(lab.stage("sft", steps=1), {})})

    with pytest.raises(ConfigError, match=message):
        refused()
