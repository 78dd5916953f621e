"""(IA)³ and bottleneck adapters: each trains what it says in every stage, is saved and read."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from model_cases import architecture, backbone_config, make_batch, perturb, random_model
from technique_lab import METHODS, Tried

from alignlab.errors import ConfigError
from alignlab.models.backbone import Backbone
from alignlab.models.bottleneck import Bottleneck
from alignlab.models.bottleneck_bodies import Network
from alignlab.models.export import export_model, load_merged
from alignlab.models.memory import parameter_counts
from alignlab.models.rescaling import IA3
from alignlab.models.tiny import byte_tokenizer

# Names of what each trains.
TRAINS = {
    "ia3": r".*\.(k_proj|v_proj|down_proj)\.ia3_l",
    "houlsby": r".*(\.(o_proj|down_proj)\.(down|up)\.(weight|bias)|norm\.weight)",
    "pfeiffer": r".*\.down_proj\.(down|up)\.(weight|bias)",
}
IA3_LIKE = IA3(
    outputs=("k_proj", "v_proj", "c_attn", "query_key_value"),
    inputs=("down_proj", "mlp.c_proj", "dense_4h_to_h", "fc2"),
)
HOULSBY = Bottleneck(
    after=("attention", "feed_forward"), reduction=4, activation="gelu", dropout=0.0, norms=True
)


@pytest.fixture(scope="module", params=sorted(TRAINS))
def tried(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tried:
    named = [] if request.param == "ia3" else ["adapter.dropout=0.1"]
    return Tried.make(tmp_path_factory.mktemp(request.param), request.param, *named)


def name_of(tried: Tried) -> str:
    adapter = tried.chain.lab.stage("sft").backbone.adapter
    if adapter.mode == "ia3":
        return "ia3"
    return "houlsby" if adapter.norms else "pfeiffer"


@pytest.mark.slow
def test_exactly_what_it_says_changes(tried: Tried) -> None:
    tried.check_changes(TRAINS[name_of(tried)], *METHODS)


@pytest.mark.slow
def test_what_is_saved_is_what_was_trained(tried: Tried) -> None:
    tried.check_loads()
    if name_of(tried) == "ia3":
        tried.check_merges()


@pytest.mark.slow
def test_a_cut_off_training_ends_in_the_same_bytes(tried: Tried) -> None:
    tried.check_resumes()


def test_bottlenecks_are_not_merged_but_exported(tried: Tried, tmp_path) -> None:
    if name_of(tried) == "ia3":
        return
    source, cache = tried.chain.sft.model_dir, tried.chain.lab.store.cache
    with pytest.raises(ConfigError, match=r"cannot be merged.*not linear"):
        load_merged(source, cache)
    said = export_model(source, tmp_path / "out", cache, merge=False)
    assert "what adapter=bottleneck trained" in said
    assert (tmp_path / "out" / "bottleneck.safetensors").is_file()


@pytest.fixture(params=["llama", "gpt2", "gpt_neox", "opt", "phi", "gemma2"])
def folder(request: pytest.FixtureRequest, tmp_path) -> str:
    random_model(architecture(request.param, vocab_size=259)).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    return str(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("technique", [IA3_LIKE, HOULSBY], ids=["ia3", "houlsby"])
def test_architectures(technique, folder, cache) -> None:
    """A fresh view is the base, the plan knows its size, and both layouts agree."""
    batch = make_batch()
    config = replace(backbone_config(path=folder), adapter=technique)
    plain = Backbone.load(backbone_config(path=folder), cache)
    plain.add("policy", source=None, trainable=False)
    with torch.no_grad(), plain.view("policy") as view:
        expected = view.logps(batch)
    found = []
    for layout in ("grouped", "padded"):
        backbone = Backbone.load(replace(config, layout=layout), cache)
        backbone.add("policy", source=None, trainable=True)
        if layout == "grouped":
            with torch.no_grad(), backbone.view("policy") as view:
                assert torch.equal(view.logps(batch), expected)
            assert backbone.parameter_counts("policy") == parameter_counts(config, cache)
        perturb(backbone, "policy")
        with torch.no_grad(), backbone.view("policy") as view:
            found.append(view.logps(batch))
    assert (found[0] - expected).abs().max() > 0.01
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-5)


def test_two_views_with_other_places_share_one_base(cache, batch, tmp_path) -> None:
    # A frozen view has its networks where its run had them, not where the stage has its own.
    first = Backbone.load(replace(backbone_config(), adapter=HOULSBY), cache)
    first.add("policy", source=None, trainable=True)
    perturb(first, "policy")
    first.save("policy", tmp_path)
    alone = replace(HOULSBY, after=("feed_forward",), norms=False)
    second = Backbone.load(replace(backbone_config(), adapter=alone), cache)
    second.add("policy", source=None, trainable=True)
    second.add("reference", source=tmp_path, trainable=False)
    perturb(second, "policy")
    with torch.no_grad():
        with first.view("policy") as view:
            expected = view.logps(batch)
        with second.view("policy") as view:
            assert not torch.equal(view.logps(batch), expected)
        with second.view("reference") as view:
            assert torch.equal(view.logps(batch), expected)
    second.drop("policy")
    with torch.no_grad(), second.view("reference") as view:
        assert torch.equal(view.logps(batch), expected)
    assert second.parameter_counts("reference") == (first.parameter_counts("policy")[0], 0)


def test_a_network_by_hand() -> None:
    # Two features, one between: down (1, -1) and 0.5, relu, up (2, 3) and (0, 1).
    # y = (3, 1): 3 - 1 + 0.5 = 2.5; (3, 1) + 2.5 (2, 3) + (0, 1) = (8, 9.5).
    # y = (1, 3): 1 - 3 + 0.5 < 0, so (1, 3) + (0, 1) = (1, 4).
    network = Network(2, replace(HOULSBY, reduction=2, activation="relu"))
    y = torch.tensor([[3.0, 1.0], [1.0, 3.0]])
    assert torch.equal(network(y), y)
    with torch.no_grad():
        network.down.weight.copy_(torch.tensor([[1.0, -1.0]]))
        network.down.bias.fill_(0.5)
        network.up.weight.copy_(torch.tensor([[2.0], [3.0]]))
        network.up.bias.copy_(torch.tensor([0.0, 1.0]))
    assert torch.equal(network(y), torch.tensor([[8.0, 9.5], [1.0, 4.0]]))


def test_ia3_by_hand(cache, batch) -> None:
    # Values twice as large double what attention gives: the same as W_v twice as large.
    backbone = Backbone.load(replace(backbone_config(), adapter=IA3_LIKE), cache)
    backbone.add("policy", source=None, trainable=True)
    plain = Backbone.load(backbone_config(), cache)
    plain.add("policy", source=None, trainable=True)
    factors = backbone.trainable_parameters("policy")
    matrices = plain.trainable_parameters("policy")
    with torch.no_grad():
        factors["model.layers.0.self_attn.v_proj.ia3_l"].mul_(2)
        factors["model.layers.1.mlp.down_proj.ia3_l"][0, 3] = 0.0
        matrices["model.layers.0.self_attn.v_proj.weight"].mul_(2)
        matrices["model.layers.1.mlp.down_proj.weight"][:, 3] = 0.0
        found = []
        for one in (backbone, plain):
            with one.view("policy") as view:
                found.append(view.logps(batch))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=1e-6)


def test_unusable_settings_are_refused(cache, tmp_path) -> None:
    with pytest.raises(ConfigError, match="once each"):
        replace(HOULSBY, after=())
    with pytest.raises(ConfigError, match="keep one"):
        IA3(outputs=("down_proj",), inputs=("down_proj",))
    nowhere = replace(backbone_config(), adapter=IA3(outputs=("nowhere",), inputs=()))
    with pytest.raises(ConfigError, match="no linear layer"):
        parameter_counts(nowhere, cache)
    random_model(architecture("mixtral", vocab_size=259)).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    config = replace(backbone_config(path=str(tmp_path)), adapter=HOULSBY)
    backbone = Backbone.load(config, cache)
    with pytest.raises(ConfigError, match="do not know the layers of Mixtral"):
        backbone.add("policy", source=None, trainable=True)
