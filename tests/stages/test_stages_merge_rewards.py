"""Reward models merged by their weights, heads included, and what later stages make of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from stage_lab import Chain, PlainHead, largest_difference, plain_model, weights

from alignlab.compose import conf_dir
from alignlab.errors import ConfigError
from alignlab.models.heads import ScalarHead
from alignlab.models.merge_sources import HeadVector, Updates
from alignlab.plan import build_stage
from alignlab.run import Run
from alignlab.stages.annotate import read

RULES = conf_dir() / "merging"


def merge(names: list[str], rule: str = "linear", **fields: Any) -> Any:
    node = yaml.safe_load((RULES / f"{rule}.yaml").read_text(encoding="utf-8"))
    stated = {
        "_target_": "alignlab.stages.merge_rewards.MergeRewards",
        "seed": 0,
        "inputs": {name: name for name in names},
        "rule": node,
        "weights": None,
        "rank": None,
        **fields,
    }
    return build_stage(stated, "stages.merge")


def member(chain: Chain, seed: int) -> Run:
    """A reward model that goes on from the chain's, as WARM's members begin from one head."""
    stage = chain.lab.stage("reward", seed=seed, steps=3)
    return chain.lab.run(stage, {"init": chain.reward, **chain.inputs("annotations")})


@pytest.fixture(scope="module")
def two(chain: Chain) -> dict[str, Run]:
    return {"model": member(chain, 3), "model/1": member(chain, 4)}


@pytest.mark.conformance("law", "WARM", "the head as one vector [gain w, gain b + offset], by hand")
def test_the_head_is_one_vector_in_the_unit_of_its_scores(tmp_path: Any) -> None:
    # r = 2 (0.5·3 − 1·1 + 0.25) − 3 = −1.5 = [1, −2, −2.5] · [3, 1, 1]
    head = ScalarHead(2)
    head.linear.weight.data = torch.tensor([[0.5, -1.0]])
    head.linear.bias.data = torch.tensor([0.25])
    head.gain, head.offset = torch.tensor(2.0), torch.tensor(-3.0)
    head.save(tmp_path)
    assert HeadVector(tmp_path).vector.tolist() == [1.0, -2.0, -2.5]
    assert float(head(torch.tensor([3.0, 1.0]))) == -1.5


@pytest.mark.conformance("law", "WARM", "weights and heads are the weighted means of the members'")
def test_weights_and_head_are_the_weighted_means(chain: Chain, two: dict[str, Run]) -> None:
    made = chain.lab.run(merge([*two], weights=[3.0, 1.0]), two)
    assert made.kind == "reward"
    one, other, found = weights(two["model"]), weights(two["model/1"]), weights(made)
    body = [name for name in one if not name.startswith("head")]
    wanted = {name: 0.75 * one[name] + 0.25 * other[name] for name in body}
    assert largest_difference({n: found[n] for n in body}, wanted) < 1e-6
    assert largest_difference({n: one[n] for n in body}, {n: other[n] for n in body}) > 1e-3
    vectors = [HeadVector(run.model_dir).vector for run in (*two.values(), made)]
    assert torch.allclose(vectors[2], 0.75 * vectors[0] + 0.25 * vectors[1], atol=1e-6)
    head = load_file(made.model_dir / "head.safetensors")
    assert (float(head["gain"]), float(head["offset"])) == (1.0, 0.0)


def test_a_model_merged_with_itself_scores_as_it_does(chain: Chain) -> None:
    same = {"model": chain.reward, "model/1": chain.reward}
    made = chain.lab.run(merge([*same]), same)
    groups = read(chain.annotations, "validation")[:2]
    rows = [(group.prompt, c) for group in groups for c in group.completions]
    scores = []
    for folder in (chain.reward.model_dir, made.model_dir):
        model, head = plain_model(folder, chain.lab.store.cache), PlainHead.load(folder)
        with torch.no_grad():
            scores.append([float(head.along(model, *row)[-1]) for row in rows])
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)
    assert max(map(abs, scores[0])) > 0.1


@pytest.mark.slow
def test_policies_train_on_what_was_merged_of_adapters(lora_chain: Chain) -> None:
    lab = lora_chain.lab
    members = {"model": member(lora_chain, 3), "model/1": member(lora_chain, 4)}
    made = lab.run(merge([*members]), members)
    assert made.record["summary"]["residual"] < 1e-5  # at the sum of their ranks
    stage, inputs = lora_chain.online("grpo", iterations=1)
    run = lab.run(stage, {**inputs, "reward": made})
    assert run.record["rewards"] == [made.path.name]
    more = lab.run(
        lab.stage("reward", steps=1, optimizer__learning_rate=1e-9, normalize=False),
        {"init": made, **lora_chain.inputs("annotations")},
    )
    vectors = [HeadVector(r.model_dir).vector for r in (made, more)]
    assert torch.allclose(*vectors, atol=1e-6)  # it goes on from the merged head


def test_changes_of_heads_count_from_the_head_that_all_began_with(
    chain: Chain, two: dict[str, Run]
) -> None:
    inputs = {**two, "base": chain.reward}
    made = chain.lab.run(merge([*inputs], "task_arithmetic"), inputs)  # λ = ½
    one, other, start, found = (
        HeadVector(run.model_dir).vector for run in (*inputs.values(), made)
    )
    assert torch.allclose(found, start + 0.5 * ((one - start) + (other - start)), atol=1e-6)
    reward, sft = chain.lab.stage("reward"), chain.lab.stage("sft")
    stage = merge([*inputs], "task_arithmetic")
    with pytest.raises(ConfigError, match=r"inputs\.base: .* began with"):
        stage.accept({"model": reward, "model/1": reward, "base": sft})
    stage.accept({"model": reward, "model/1": reward, "base": reward})
    merge([*two]).accept({"model": reward, "model/1": reward})


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "lora"])
def test_a_merge_by_fisher_information(kind: str, chain: Chain, lora_chain: Chain) -> None:
    """What matters to one model alone comes from it; each model's information is its own."""
    here = {"full": chain, "lora": lora_chain}[kind]
    lab = here.lab
    other = lab.run(lab.stage("sft", steps=3, seed=5), {})
    node = yaml.safe_load((conf_dir() / "stage" / "merge_fisher.yaml").read_text(encoding="utf-8"))
    sft = lab.configs["sft"]
    node |= {"seed": 0, "rows": 4, "max_prompt": 16, "max_completion": 12}
    node |= {"inputs": {"model": "a", "model/1": "b"}, "backbone": sft["backbone"]}
    node |= {"data": sft["data"], "rank": 32 if kind == "lora" else None}
    stage: Any = build_stage(node, "stages.merge")
    inputs = {"model": here.sft, "model/1": other}
    made = lab.run(stage, inputs)
    known = stage.weighed(inputs, lab.new_run("merge"), lab.engine)
    name = "model.layers.1.mlp.down_proj" + ("" if kind == "lora" else ".weight")

    def read(run: Run) -> torch.Tensor:
        if kind == "lora":
            return Updates(run.model_dir).get(name)
        return weights(run)[f"model.safetensors/{name}"]

    one, two = (information[name].clamp_min(1e-10) for information in known)
    wanted = (one * read(here.sft) + two * read(other)) / (one + two)
    assert torch.allclose(read(made), wanted, atol=1e-5)
    plain = 0.5 * (read(here.sft) + read(other))
    assert float((wanted - plain).abs().max()) > 1e-3
    plain = {key: node[key] for key in ("seed", "inputs", "rule", "weights", "rank")}
    with pytest.raises(ConfigError, match="stage merge_fisher"):
        build_stage({**plain, "_target_": "alignlab.stages.merge.Merge"}, "stages.merge")
    with pytest.raises(ConfigError, match=r"own\.model/2: no such model"):
        build_stage({**node, "own": {"model/2": sft["data"]}}, "stages.merge")
