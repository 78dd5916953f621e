"""Selective training: what is chosen, what is shared, and every yaml of it on a small model."""

from __future__ import annotations

import json

import pytest
import torch
from model_cases import architecture, backbone_config, make_batch, perturb, random_model
from technique_lab import Tried, plain_logps, watched

from alignlab.compose import compose
from alignlab.errors import ConfigError
from alignlab.models.backbone import Backbone
from alignlab.models.dimensions import Dimensions
from alignlab.models.export import export_model, load_merged
from alignlab.models.memory import parameter_counts, tensor_shapes
from alignlab.models.selective import Selective
from alignlab.plan import Plan
from alignlab.run import Store

NORMS = Selective(parameters=("*norm*|*.ln_*",))
LAST = Selective(last_layers=1)
HEAD = Selective(head=True)


def logps(backbone, name, batch):
    with torch.no_grad(), backbone.view(name) as view:
        return view.logps(batch)


@pytest.mark.parametrize(
    ("chosen", "expected"),
    [
        (LAST, {f"model.layers.1.{part}.weight" for part in (
            "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
            "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "input_layernorm",
            "post_attention_layernorm")}),
        (NORMS, {"model.norm.weight", *(
            f"model.layers.{i}.{name}.weight" for i in (0, 1)
            for name in ("input_layernorm", "post_attention_layernorm"))}),
        (HEAD, {"lm_head.weight"}),
        (Selective(parameters=("*.0.mlp.up_proj.*", "*.k_proj.weight")), {
            "model.layers.0.mlp.up_proj.weight", "model.layers.0.self_attn.k_proj.weight",
            "model.layers.1.self_attn.k_proj.weight"}),
    ],
    ids=["last", "norms", "head", "named"],
)  # fmt: skip
def test_exactly_what_is_chosen_gets_gradients_and_moves(
    cache, batch, chosen: Selective, expected: set[str]
) -> None:
    config = backbone_config(adapter=chosen)
    backbone = Backbone.load(config, cache)
    backbone.add("policy", source=None, trainable=True)
    backbone.add("reference", source=None, trainable=False)
    own = backbone.trainable_parameters("policy")
    assert set(own) == expected
    assert backbone.trainable_parameters("reference") == {}
    start = logps(backbone, "reference", batch)
    assert torch.equal(logps(backbone, "policy", batch), start)
    with backbone.view("policy") as view:
        view.logps(batch).sum().backward()
        named = dict(view.model.named_parameters())
    assert {name for name, p in named.items() if p.grad is not None} == expected
    assert all(p.dtype == torch.float32 and p.grad.abs().sum() > 0 for p in own.values())
    perturb(backbone, "policy")
    assert not torch.equal(logps(backbone, "policy", batch), start)
    assert torch.equal(logps(backbone, "reference", batch), start)
    # what the plan says without loading is what is there
    assert parameter_counts(config, cache) == backbone.parameter_counts("policy")


def test_views_share_all_that_they_do_not_train(cache) -> None:
    backbone = Backbone.load(backbone_config(adapter=LAST), cache)
    for name in ("policy", "reference", "reward", "value"):
        trainable = name not in ("reference", "reward")
        backbone.add(name, source=None, trainable=trainable, head=name in ("reward", "value"))
    held = {}
    for name in backbone.views:
        with backbone.view(name) as view:
            held |= {p.data_ptr(): p.numel() for p in view.model.parameters()}
    total, own = parameter_counts(backbone.config, cache)
    assert sum(held.values()) == total + 2 * own  # one base, and what two views train
    assert 2 * own < total


def test_no_language_model_head_beside_a_scalar_one(cache) -> None:
    backbone = Backbone.load(backbone_config(adapter=HEAD), cache)
    backbone.add("reward", source=None, trainable=True, head=True)
    assert set(backbone.trainable_parameters("reward")) == {
        "head.linear.weight",
        "head.linear.bias",
    }
    backbone.drop("reward")
    backbone.add("reward", source=None, trainable=True)
    assert set(backbone.trainable_parameters("reward")) == {"lm_head.weight"}


@pytest.mark.slow
@pytest.mark.parametrize("chosen", [LAST, HEAD, NORMS], ids=["last", "head", "norms"])
def test_save_load_merge_and_go_on_with_another_choice(cache, batch, tmp_path, chosen) -> None:
    backbone = Backbone.load(backbone_config(adapter=chosen), cache)
    backbone.add("policy", source=None, trainable=True)
    perturb(backbone, "policy")
    moved = logps(backbone, "policy", batch)
    backbone.save("policy", tmp_path / "one")
    assert json.loads((tmp_path / "one" / "view.json").read_text())["mode"] == "selective"
    other = Backbone.load(backbone_config(adapter=Selective(parameters=("*.up_proj.*",))), cache)
    other.add("reference", source=tmp_path / "one", trainable=False)
    other.add("policy", source=tmp_path / "one", trainable=True)
    assert torch.equal(logps(other, "reference", batch), moved)
    assert torch.equal(logps(other, "policy", batch), moved)
    assert all("up_proj" in name for name in other.trainable_parameters("policy"))
    perturb(other, "policy", seed=2)
    moved = logps(other, "policy", batch)
    other.save("policy", tmp_path / "two")  # both choices are in it
    merged, _ = load_merged(tmp_path / "two", cache)
    torch.testing.assert_close(plain_logps(merged, batch), moved, rtol=0, atol=1e-5)
    said = export_model(tmp_path / "two", tmp_path / "plain", cache, merge=True)
    assert "a Hugging Face model" in said
    full = Backbone.load(backbone_config(None, path=str(tmp_path / "plain")), cache)
    full.add("policy", source=None, trainable=True)
    torch.testing.assert_close(logps(full, "policy", batch), moved, rtol=0, atol=1e-5)
    whole = Backbone.load(backbone_config(None), cache)  # adapter=full goes on from it
    whole.add("policy", source=tmp_path / "two", trainable=True)
    torch.testing.assert_close(logps(whole, "policy", batch), moved, rtol=0, atol=1e-5)


def test_flat_and_padded_layouts_agree(cache, batch) -> None:
    found = []
    for layout in ("grouped", "padded"):
        backbone = Backbone.load(backbone_config(adapter=LAST, layout=layout), cache)
        backbone.add("policy", source=None, trainable=True)
        perturb(backbone, "policy")
        found.append(logps(backbone, "policy", batch))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-5)


def test_what_is_trained_is_not_rounded(cache, batch) -> None:
    backbone = Backbone.load(backbone_config(adapter=LAST, dtype="bfloat16"), cache)
    backbone.add("policy", source=None, trainable=True)
    backbone.add("reference", source=None, trainable=False)
    exact = Backbone.load(backbone_config(adapter=LAST), cache)
    exact.add("policy", source=None, trainable=True)
    pairs = zip(
        *(b.trainable_parameters("policy").values() for b in (backbone, exact)), strict=True
    )
    assert all(torch.equal(a, b) and a.dtype == torch.float32 for a, b in pairs)
    with backbone.view("reference") as view:
        assert view.model.get_parameter("model.layers.1.mlp.up_proj.weight").dtype == torch.bfloat16
    assert torch.equal(logps(backbone, "policy", batch), logps(backbone, "reference", batch))


def test_biases_of_a_model_that_has_some(cache, tmp_path) -> None:
    biases = Selective(parameters=("*.bias",))
    with pytest.raises(ConfigError, match=r"'\*\.bias', which matches no.*adapter=layernorm"):
        parameter_counts(backbone_config(adapter=biases), cache)
    model = random_model(architecture("gpt2", vocab_size=259))
    model.save_pretrained(tmp_path)
    shapes = tensor_shapes(tmp_path)
    sizes = biases.sizes(shapes, Dimensions.of(shapes))
    # H = 32: of each of 2 layers 3H + H + 4H + H of the products and 2H of the norms; H at the end
    assert sizes.trained == 2 * (96 + 32 + 128 + 32 + 64) + 32
    assert set(biases.chosen(n for n, _ in model.named_parameters())) == {
        name for name, _ in model.named_parameters() if name.endswith("bias")
    }
    head = HEAD.sizes(shapes, Dimensions.of(shapes))
    assert (head.trained, head.added) == (259 * 32, 259 * 32)  # untied from the embedding


def test_what_cannot_be_chosen_is_refused(cache, tmp_path) -> None:
    with pytest.raises(ConfigError, match="nothing is selected"):
        Selective()
    with pytest.raises(ConfigError, match=r"'\*\.mpl\.\*', which matches no parameter.*model\."):
        parameter_counts(backbone_config(adapter=Selective(parameters=("*.mpl.*",))), cache)
    with pytest.raises(ConfigError, match="last_layers is 3, and the model has 2 layers"):
        parameter_counts(backbone_config(adapter=Selective(last_layers=3)), cache)
    backbone = Backbone.load(backbone_config(4), cache)
    backbone.add("policy", source=None, trainable=True)
    backbone.save("policy", tmp_path / "lora")
    chosen = Backbone.load(backbone_config(adapter=LAST), cache)
    with pytest.raises(ConfigError, match=r"lora.*selective"):
        chosen.add("policy", source=tmp_path / "lora", trainable=True)


def test_a_bitwise_choice_of_layers_stops_the_backward_pass(cache) -> None:
    """Below the lowest layer that is trained there is nothing to compute backwards."""
    backbone = Backbone.load(backbone_config(adapter=LAST), cache)
    backbone.add("policy", source=None, trainable=True)
    seen = []
    with backbone.view("policy") as view:
        for layer in view.model.model.layers:
            layer.register_forward_hook(lambda _m, _i, out: seen.append(out.requires_grad))
        view.logps(make_batch()).sum().backward()
    assert seen == [False, True]


@pytest.mark.slow
def test_every_stage_trains_the_last_layers(tmp_path) -> None:
    tried = Tried.make(tmp_path, "last_layers", "adapter.last_layers=1")
    tried.check_changes(r"model\.layers\.1\..*", "dpo", "ppo")
    # Its two steps of SFT leave it far from writing an end, and without one all are worth the same.
    stage, inputs = tried.stage("grpo", missing_eos_score=None)
    trained = watched(tried.chain.lab, stage, inputs)
    assert trained.moved == trained.trained
    tried.check_loads()
    tried.check_merges()
    tried.check_resumes()


@pytest.mark.slow
def test_every_stage_trains_the_head_alone(tmp_path) -> None:
    tried = Tried.make(tmp_path, "head_only")
    tried.check_changes(r"lm_head\.weight", "ppo")
    tried.check_merges()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("adapter", "trained"),
    [
        # GPT-2 large: 36 layers, H = 1280, 50,257 tokens. Biases of a layer: 3H + H + 4H + H and
        # 2H of its norms; one more norm at the end. Norms: gains and biases of 2 · 36 + 1.
        ("bitfit", 36 * 11 * 1280 + 1280),
        ("layernorm", 73 * 2 * 1280),
        ("head_only", 50257 * 1280),
        # 12 H² of matrices, 9 H of their biases, 4 H of the norms
        ("last_layers", 2 * (12 * 1280**2 + 13 * 1280)),
        ("named_layers", 36 * (8 * 1280**2 + 5 * 1280)),
    ],
)
def test_the_plan_counts_every_yaml(adapter: str, trained: int, tmp_path) -> None:
    composed = compose(["pipeline=sft", "backbone=gpt2_large", f"adapter={adapter}"])
    [stage] = [n for n in Plan.from_configs([composed], Store(tmp_path)).nodes.values()
               if n.kind == "sft"]  # fmt: skip
    assert stage.estimate.params_trained == trained
    tied = trained if adapter == "head_only" else 0  # a copy of its own beside the embedding
    assert stage.estimate.params_total == 774_030_080 + tied
