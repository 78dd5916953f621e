"""Soft prompts: each trains what it says, in every stage, and stands before every prompt alike."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from model_cases import architecture, backbone_config, make_batch, random_model
from technique_lab import METHODS, Tried, plain_logps
from transformers import AutoModelForCausalLM

from alignlab.engine.groups import factors_of
from alignlab.errors import ConfigError
from alignlab.models.backbone import Backbone
from alignlab.models.export import load_applied
from alignlab.models.layout import GROUPED, PADDED, hidden_states
from alignlab.models.prompt_bodies import PREFIX_PADDED
from alignlab.models.soft_prompts import PrefixTuning, PromptTuning, PTuning, SoftPromptTechnique
from alignlab.models.virtual_tokens import (
    Prefix,
    VirtualTokens,
    set_soft_prompt,
    soft_prompt_of,
)

TECHNIQUES: dict[str, SoftPromptTechnique] = {
    "prompt": PromptTuning(tokens=5, start="vocabulary"),
    "prompt_text": PromptTuning(tokens=5, start="text", text="A film"),
    "ptuning": PTuning(tokens=5, encoder="mlp", hidden=8, layers=2, dropout=0.0),
    "ptuning_lstm": PTuning(tokens=5, encoder="lstm", hidden=8, layers=1, dropout=0.0),
    "prefix": PrefixTuning(tokens=5, hidden=None),
    "prefix_network": PrefixTuning(tokens=5, hidden=7),
}
# Names of what each yaml trains.
TRAINS = {
    "prompt": r"prompt\.embedding\.weight",
    "prompt_text": r"prompt\.embedding\.weight",
    "ptuning": r"prompt\.(embedding\.weight|mlp_head\.\d\.(weight|bias))",
    "prefix": r"prompt\.embedding\.weight",
}


@pytest.fixture(scope="module", params=sorted(TRAINS))
def tried(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tried:
    return Tried.make(tmp_path_factory.mktemp(request.param), request.param, "adapter.tokens=6")


@pytest.fixture(params=sorted(TECHNIQUES))
def technique(request: pytest.FixtureRequest) -> SoftPromptTechnique:
    return TECHNIQUES[request.param]


@pytest.fixture
def opened(cache):
    def make(technique: SoftPromptTechnique, seed: int = 0, **changes) -> Backbone:
        config = replace(backbone_config(), adapter=technique, **changes)
        backbone = Backbone.load(config, cache, seed=seed)
        backbone.add("policy", source=None, trainable=True)
        return backbone

    return make


@pytest.mark.slow
def test_exactly_what_it_says_changes(tried: Tried) -> None:
    adapter = tried.chain.lab.stage("sft").backbone.adapter
    tried.check_changes(TRAINS[adapter.mode], *METHODS)


@pytest.mark.slow
def test_peft_computes_the_same_from_the_folder(tried: Tried) -> None:
    run = tried.chain.sft
    batch = make_batch()
    with torch.no_grad(), tried.open(run).view("policy") as view:
        ours = view.logps(batch)
    plain, _ = load_applied(run.model_dir, tried.chain.lab.store.cache)
    torch.testing.assert_close(by_peft(plain, batch), ours, rtol=0, atol=1e-5)


def by_peft(model, batch):
    """Log-probs of the completions by peft's own forward pass, one row at a time."""
    found = []
    with torch.no_grad():
        for span in batch.spans:
            prompt = batch.input_ids[slice(*span.prompt)]
            for own in span.completions:
                row = torch.cat([prompt, batch.input_ids[slice(*own)]])[None]
                # peft returns states of virtual tokens too, where they are tokens
                logits = model(input_ids=row, attention_mask=torch.ones_like(row)).logits[0]
                predicted = logits[-row.shape[1] :].log_softmax(-1)[len(prompt) - 1 : -1]
                found.append(predicted.gather(1, row[0, len(prompt) :, None])[:, 0])
    return torch.cat(found)


@pytest.mark.slow
def test_a_cut_off_training_ends_in_the_same_bytes(tried: Tried) -> None:
    tried.check_resumes()


@pytest.mark.slow
@pytest.mark.conformance(
    "equivalence",
    "soft prompts",
    "flat and padded layout: log-probs and gradients to 1e-5",
)
def test_layouts_agree(technique, opened, batch) -> None:
    results = []
    for layout in ("grouped", "padded"):
        backbone = opened(technique, layout=layout)
        with backbone.view("policy") as view:
            out = view.logps(batch)
            out.square().sum().backward()
        named = backbone.trainable_parameters("policy")
        results.append((out.detach(), {name: p.grad for name, p in named.items()}))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=0, atol=1e-5)
    for name, gradient in results[0][1].items():
        other = results[1][1][name]
        assert gradient.abs().max() > 0, name
        assert (gradient - other).abs().max() <= 1e-5 * max(1.0, float(other.abs().max())), name


@pytest.mark.slow
def test_a_fresh_frozen_view_is_the_base(technique, opened, batch) -> None:
    backbone = opened(technique)
    backbone.add("reference", source=None, trainable=False)
    plain = Backbone.load(backbone_config(), backbone.cache)
    plain.add("policy", source=None, trainable=False)
    with torch.no_grad():
        with plain.view("policy") as view:
            expected = view.logps(batch)
        with backbone.view("policy") as view:
            assert (view.logps(batch) - expected).abs().max() > 0.01
        with backbone.view("reference") as view:  # the policy's prompt does not stay behind
            assert torch.equal(view.logps(batch), expected)


@pytest.mark.slow
def test_what_is_saved_goes_on_and_stays_the_reference(technique, opened, batch, tmp_path) -> None:
    first = opened(technique)
    first.save("policy", tmp_path)
    again = Backbone.load(first.config, first.cache, seed=9)
    again.add("policy", source=tmp_path, trainable=True)
    again.add("reference", source=tmp_path, trainable=False)
    found = []
    for backbone, name in ((first, "policy"), (again, "policy"), (again, "reference")):
        with torch.no_grad(), backbone.view(name) as view:
            found.append(view.logps(batch))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    mine, theirs = (b.trainable_parameters("policy") for b in (first, again))
    assert mine.keys() == theirs.keys()  # with the network, where there is one
    again.drop("policy")
    with torch.no_grad(), again.view("reference") as view:
        assert torch.equal(view.logps(batch), found[0])


@pytest.mark.slow
@pytest.mark.parametrize("model_type", sorted(GROUPED))
@pytest.mark.parametrize("kind", [VirtualTokens, Prefix])
def test_every_flat_architecture_takes_them(model_type, kind, batch) -> None:
    agree(model_type, kind, batch)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model_type", "kind"),
    [(name, VirtualTokens) for name in sorted(PADDED)]
    + [(name, Prefix) for name in sorted(PREFIX_PADDED)],
)
def test_padded_architectures_take_them(model_type, kind) -> None:
    # A row beside longer ones computes what it does alone: nothing of the padding reaches it.
    batch = make_batch(((5, (4, 2)), (9, (3,))))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(architecture(model_type)).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    with torch.no_grad():
        bare = completions_of(batch, hidden_states(model, batch, "padded"))
        put_before(model, kind)
        together = completions_of(batch, hidden_states(model, batch, "padded"))
        alone = [
            hidden_states(model, make_row(batch, span, own), "padded")[-(own[1] - own[0]) :]
            for span in batch.spans
            for own in span.completions
        ]
    assert (together - bare).abs().max() > 0.05
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-4)


def completions_of(batch, hidden):
    """The states of all completions, in their order."""
    return torch.cat([hidden[slice(*own)] for span in batch.spans for own in span.completions])


def make_row(batch, span, own):
    """The batch with one completion of one prompt alone."""
    alone = make_batch([(span.prompt[1] - span.prompt[0], (own[1] - own[0],))])
    ids = torch.cat([batch.input_ids[slice(*place)] for place in (span.prompt, own)])
    return replace(alone, input_ids=ids)


def put_before(model, kind) -> None:
    """Put three virtual tokens, or three keys and values, before every prompt of a model."""
    config = model.config.get_text_config(decoder=True)
    if kind is VirtualTokens:
        set_soft_prompt(model, VirtualTokens(torch.nn.Embedding(3, config.hidden_size), 3))
        return
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    if config.model_type in ("opt", "gpt_neox"):  # `architecture` gives them a field they lack
        heads = config.num_attention_heads
    layers = config.num_hidden_layers
    states = torch.nn.Embedding(3, 2 * layers * heads * size)
    set_soft_prompt(model, Prefix(states, 3, layers, heads))


def agree(model_type, kind, batch) -> None:
    """Both layouts, in value and gradient."""
    model = random_model(architecture(model_type))
    put_before(model, kind)
    states = soft_prompt_of(model).encoder.weight
    seed = torch.randn(batch.tokens, model.config.hidden_size)
    found = []
    for layout in ("grouped", "padded"):
        hidden = hidden_states(model, batch, layout)
        (gradient,) = torch.autograd.grad((hidden * seed).sum(), states)
        found.append((hidden.detach(), gradient))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=0, atol=1e-5)
    scale = max(1.0, float(found[0][1].abs().max()))
    assert (found[0][1] - found[1][1]).abs().max() <= 1e-5 * scale
    assert found[0][1].abs().max() > 0


@pytest.mark.slow
def test_gradient_checkpointing_keeps_them(technique, opened, batch) -> None:
    gradients = []
    for checkpointing in (False, True):
        backbone = opened(technique, gradient_checkpointing=checkpointing)
        backbone.train_mode(True)
        with backbone.view("policy") as view:
            view.logps(batch).sum().backward()
        gradients.append([p.grad for p in backbone.trainable_parameters("policy").values()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


def test_a_prefix_is_not_lost_under_checkpointed_padded_rows(opened, batch) -> None:
    backbone = opened(TECHNIQUES["prefix"], layout="padded", gradient_checkpointing=True)
    backbone.train_mode(True)
    with backbone.view("policy") as view, pytest.raises(ConfigError, match="gradient_checkpoint"):
        view.logps(batch)


def test_the_start_by_hand(opened) -> None:
    # "A film" is 6 byte tokens; 5 virtual tokens take the first five.
    backbone = opened(TECHNIQUES["prompt_text"])
    [start] = backbone.trainable_parameters("policy").values()
    ids = backbone.tokenizer("A film")["input_ids"][:5]
    with backbone.view("policy") as view:
        words = view.model.get_input_embeddings().weight
    assert torch.equal(start.detach(), words[ids])
    [start] = opened(TECHNIQUES["prompt"]).trainable_parameters("policy").values()
    assert all(any(torch.equal(row, word) for word in words) for row in start)


def test_unusable_settings_are_refused(cache, tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"needs adapter\.text"):
        PromptTuning(tokens=5, start="text")
    with pytest.raises(ConfigError, match="not used with"):
        PromptTuning(tokens=5, start="random", text="A film")
    with pytest.raises(ConfigError, match="no dropout"):
        PTuning(tokens=5, encoder="mlp", hidden=8, layers=1, dropout=0.0)
    from alignlab.models.tiny import byte_tokenizer

    random_model(architecture("mpt", vocab_size=259)).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    config = replace(backbone_config(path=str(tmp_path)), adapter=TECHNIQUES["prefix"])
    with pytest.raises(ConfigError, match="adapter=prefix is not known to work with mpt"):
        Backbone.load(config, cache)


def test_another_technique_s_run_is_refused(opened, tmp_path) -> None:
    opened(TECHNIQUES["prompt"]).save("policy", tmp_path)
    with pytest.raises(ConfigError, match="trained with adapter=prompt"):
        opened(TECHNIQUES["prefix"]).add("reference", source=tmp_path, trainable=False)


def test_lengths_by_hand(batch) -> None:
    # Virtual tokens are once in a flat pass and once per row in a padded one; both cost a prompt
    # v positions. A prefix costs positions and no tokens.
    model = random_model(architecture("llama"))
    soft = VirtualTokens(torch.nn.Embedding(3, 32), 3)
    flat = soft.flat(model, batch.input_ids, batch.position_ids)
    assert flat["inputs_embeds"].shape == (1, 3 + batch.tokens, 32)
    assert flat["position_ids"][0, :6].tolist() == [0, 1, 2, 3, 4, 5]
    assert np.array_equal(flat["position_ids"][0, 3:] - 3, batch.position_ids)
    prefix = Prefix(torch.nn.Embedding(3, 2 * 2 * 2 * 8), 3, layers=2, heads=2)
    (keys, values), _ = prefix.keys_values(training=False)
    assert keys.shape == values.shape == (1, 2, 3, 8)
    # peft's order: the first of a token's numbers are the first layer's key of the first head.
    weight = prefix.encoder.weight.detach()
    assert torch.equal(keys[0, 1, 2].detach(), weight[2, 8:16])
    assert torch.equal(values[0, 0, 2].detach(), weight[2, 16:24])


def test_plain_logps_is_not_by_peft(tried: Tried) -> None:
    """Without the offset of virtual tokens the comparison above would have to fail."""
    run = tried.chain.sft
    batch = make_batch()
    plain, _ = load_applied(run.model_dir, tried.chain.lab.store.cache)
    with plain.disable_adapter():
        bare = plain_logps(plain, batch)
    assert (by_peft(plain, batch) - bare).abs().max() > 0.01


def test_the_rate_is_that_of_all_but_a_scalar_head(opened) -> None:
    technique = replace(TECHNIQUES["ptuning"], rate=5.0)
    backbone = opened(technique)
    backbone.add("value", source=None, trainable=True, head=True)
    named = {view: backbone.trainable_parameters(view) for view in ("policy", "value")}
    for view, factors in factors_of(named, technique.rates).items():
        heads = {name for name, factor in factors.items() if factor == 1.0}
        assert heads == {name for name in named[view] if name.startswith("head.")}, view
        assert set(factors.values()) <= {1.0, 5.0}
