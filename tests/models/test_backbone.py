from __future__ import annotations

import json
import stat

import pytest
import torch
from model_cases import architecture, make_batch, perturb

from alignlab.errors import ConfigError
from alignlab.models.backbone import Backbone


def logps(backbone, name, batch, **options):
    with torch.no_grad(), backbone.view(name) as view:
        return view.logps(batch, **options)


def scores(backbone, name, batch):
    with torch.no_grad(), backbone.view(name) as view:
        return view.scores(batch)


def step(backbone, name, batch, rate=0.1) -> None:
    with backbone.view(name) as view:
        view.logps(batch).sum().backward()
    with torch.no_grad():
        for parameter in backbone.trainable_parameters(name).values():
            if parameter.grad is not None:
                parameter.add_(parameter.grad, alpha=rate / (1 + float(parameter.grad.norm())))
                parameter.grad = None


@pytest.mark.slow
@pytest.mark.conformance(
    "equivalence",
    "a view, full and LoRA",
    "log-probs are those of transformers, one row at a time, to 1e-5",
)
def test_log_probabilities_are_those_of_the_plain_model(open_backbone, rank, batch) -> None:
    backbone = open_backbone(rank)
    backbone.add("policy", source=None, trainable=True)
    expected = []
    with torch.no_grad(), backbone.view("policy") as view:
        for span in batch.spans:
            prompt = batch.input_ids[slice(*span.prompt)]
            for own in span.completions:
                row = torch.cat([prompt, batch.input_ids[slice(*own)]])
                logits = view.model(row[None]).logits[0, len(prompt) - 1 : -1]
                targets = row[len(prompt) :, None]
                expected.append(logits.div(0.7).log_softmax(-1).gather(1, targets)[:, 0])
    ours = logps(backbone, "policy", batch, temperature=0.7)
    assert ours.shape == batch.target_ids.shape
    torch.testing.assert_close(ours, torch.cat(expected), rtol=0, atol=1e-5)


def test_shapes_and_entropy(open_backbone, rank, batch) -> None:
    backbone = open_backbone(rank)
    backbone.add("value", source=None, trainable=True, head=True)
    with backbone.view("value") as view:
        features = view.features(batch)
        assert features.at_targets.shape == (len(batch.target_ids), 32)
        assert features.at_ends.shape == (batch.completions, 32)
        torch.testing.assert_close(view.scores(batch), view.scalar_head(features.at_ends))
        torch.testing.assert_close(view.values(batch), view.scalar_head(features.at_targets))
        assert view.scores(batch).dtype == torch.float32
        lp, entropy = view.logps_entropy(batch)
        assert torch.equal(lp, view.logps(batch))
        probabilities = view.lm_head.logits(features.at_targets).softmax(-1)
        expected = torch.distributions.Categorical(probabilities).entropy()
        torch.testing.assert_close(entropy, expected.detach(), rtol=0, atol=1e-5)


@pytest.mark.conformance(
    "equivalence",
    "a view, full and LoRA",
    "flat and padded layout: log-probs and gradients to 1e-5",
)
def test_layouts_agree(open_backbone, rank, batch) -> None:
    results = []
    for layout in ("grouped", "padded"):
        backbone = open_backbone(rank, layout=layout)
        backbone.add("policy", source=None, trainable=True)
        perturb(backbone, "policy")
        with backbone.view("policy") as view:
            out = view.logps(batch)
            out.square().sum().backward()
        parameters = backbone.trainable_parameters("policy")
        results.append((out.detach(), {k: p.grad for k, p in parameters.items()}))
    assert (results[0][0] - results[1][0]).abs().max() < 1e-5
    for name, gradient in results[0][1].items():
        other = results[1][1][name]
        assert (gradient - other).abs().max() <= 1e-5 * max(1.0, float(other.abs().max())), name


@pytest.mark.slow
@pytest.mark.conformance(
    "equivalence",
    "a view, full and LoRA",
    "training one view changes no other: their log-probs keep their bits",
)
def test_views_do_not_touch_each_other(open_backbone, rank, batch) -> None:
    backbone = open_backbone(rank)
    for name, trainable in (("policy", True), ("reference", False), ("value", True)):
        backbone.add(name, source=None, trainable=trainable)
    assert torch.equal(logps(backbone, "policy", batch), logps(backbone, "reference", batch))
    others = {name: logps(backbone, name, batch) for name in ("reference", "value")}
    for _ in range(2):
        step(backbone, "policy", batch)
    assert not torch.equal(logps(backbone, "policy", batch), others["reference"])
    for name, before in others.items():
        assert torch.equal(logps(backbone, name, batch), before)


def test_a_gradient_reaches_only_the_active_view(open_backbone, rank, batch) -> None:
    backbone = open_backbone(rank)
    backbone.add("policy", source=None, trainable=True)
    backbone.add("value", source=None, trainable=True, head=True)
    backbone.add("reference", source=None, trainable=False)
    with backbone.view("policy") as view:
        view.logps(batch).sum().backward()
    assert any(p.grad is not None for p in backbone.trainable_parameters("policy").values())
    assert all(p.grad is None for p in backbone.trainable_parameters("value").values())
    assert backbone.trainable_parameters("reference") == {}
    with backbone.view("reference") as view:
        assert not view.logps(batch).requires_grad


def test_every_trainable_view_keeps_its_gradients_on(open_backbone, batch) -> None:
    # peft's set_adapter turns requires_grad off for all other adapters (trap of peft 0.21).
    backbone = open_backbone(4)
    backbone.add("policy", source=None, trainable=True)
    backbone.add("value", source=None, trainable=True, head=True)
    backbone.add("reference", source=None, trainable=False)
    with torch.no_grad(), backbone.view("reference") as view:
        view.logps(batch)
    for name in ("policy", "value"):
        assert all(p.requires_grad for p in backbone.trainable_parameters(name).values())
    with backbone.view("value") as view:
        frozen = [n for n, p in view.model.named_parameters() if ".lora_" not in n]
        assert not any(dict(view.model.named_parameters())[n].requires_grad for n in frozen)
        reference = [p for n, p in view.model.named_parameters() if "reference" in n]
        assert reference
        assert not any(p.requires_grad for p in reference)


def test_adapters_share_one_base(open_backbone) -> None:
    backbone = open_backbone(4)
    storages = {}
    for name in ("policy", "reference", "reward", "value"):
        backbone.add(name, source=None, trainable=name != "reference", head=name == "reward")
        with backbone.view(name) as view:
            storages[name] = {
                n.replace(".base_layer", ""): p.data_ptr()
                for n, p in view.model.named_parameters()
                if ".lora_" not in n
            }
    assert all(s == storages["policy"] for s in storages.values())
    with backbone.view("policy") as view:
        everything = sum(p.numel() for p in view.model.parameters())
    total, trained = backbone.parameter_counts("policy")
    assert everything == total + 3 * trained  # one base and four adapters
    assert backbone.parameter_counts("reference") == (total, 0)
    assert backbone.parameter_counts("reward") == (total + 33, trained + 33)


def test_full_views_are_copies(open_backbone) -> None:
    backbone = open_backbone()
    pointers = []
    for name in ("policy", "value"):
        backbone.add(name, source=None, trainable=True)
        with backbone.view(name) as view:
            pointers.append({p.data_ptr() for p in view.model.parameters()})
    assert not pointers[0] & pointers[1]
    assert backbone.parameter_counts("policy") == (26880, 26880)
    # Tied embeddings are one parameter.
    assert "lm_head.weight" not in backbone.trainable_parameters("policy")


def test_views_do_not_nest(open_backbone, rank) -> None:
    backbone = open_backbone(rank)
    backbone.add("policy", source=None, trainable=True)
    backbone.add("value", source=None, trainable=True)
    with backbone.view("policy"):
        with pytest.raises(RuntimeError, match="do not nest"), backbone.view("value"):
            pass
        with pytest.raises(RuntimeError, match="do not nest"):
            backbone.add("late", source=None, trainable=False)
    with backbone.view("value"):
        pass


def test_unknown_view_and_headless_view(open_backbone, batch) -> None:
    backbone = open_backbone()
    backbone.add("policy", source=None, trainable=True)
    with pytest.raises(KeyError, match="Did you mean 'policy'"), backbone.view("polcy"):
        pass
    with backbone.view("policy") as view, pytest.raises(ValueError, match="head=True"):
        view.scores(batch)
    with pytest.raises(ValueError, match="new name"):
        backbone.add("policy", source=None, trainable=True)


@pytest.mark.slow
@pytest.mark.conformance(
    "equivalence",
    "a view, full and LoRA",
    "saved and loaded again: the same log-probs, scores and files, bit for bit",
)
@pytest.mark.parametrize("head", [False, True])
def test_save_and_load_are_exact(open_backbone, rank, batch, tmp_path, head) -> None:
    backbone = open_backbone(rank)
    backbone.add("reward", source=None, trainable=True, head=head)
    perturb(backbone, "reward")
    if head:
        backbone.set_normalization("reward", 0.3, 2.5)
    backbone.save("reward", tmp_path / "model")
    again = open_backbone(rank, seed=1)
    again.add("other", source=tmp_path / "model", trainable=False, head=head)
    assert torch.equal(logps(backbone, "reward", batch), logps(again, "other", batch))
    if head:
        assert torch.equal(scores(backbone, "reward", batch), scores(again, "other", batch))
    facts = json.loads((tmp_path / "model/view.json").read_text())
    assert facts == {
        "mode": "full" if rank is None else "lora",
        "base": "random:tiny",
        "base_sha256": backbone.base_sha256,
        "head": head,
    }
    for file in (tmp_path / "model").iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o644, file
    again.save("other", tmp_path / "again")
    for file in (tmp_path / "model").iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes(), file.name


@pytest.mark.parametrize("rank", [None, 4])
def test_a_reward_model_that_lost_its_head_is_refused(open_backbone, rank, tmp_path) -> None:
    backbone = open_backbone(rank)
    backbone.add("reward", source=None, trainable=True, head=True)
    backbone.save("reward", tmp_path / "model")
    (tmp_path / "model/head.safetensors").unlink()
    with pytest.raises(ConfigError, match="at random"):
        open_backbone(rank).add("other", source=tmp_path / "model", trainable=False, head=True)


def test_a_saved_view_is_an_ordinary_folder(open_backbone, rank, batch, cache, tmp_path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from alignlab.models.load import resolve

    backbone = open_backbone(rank)
    backbone.add("policy", source=None, trainable=True)
    perturb(backbone, "policy")
    backbone.save("policy", tmp_path)
    if rank is None:
        model = AutoModelForCausalLM.from_pretrained(tmp_path)
    else:
        from peft import PeftModel

        base = AutoModelForCausalLM.from_pretrained(resolve("random:tiny", cache))
        model = PeftModel.from_pretrained(base, str(tmp_path))
    ids = batch.input_ids[None, :12]
    with torch.no_grad(), backbone.view("policy") as view:
        theirs, ours = model.eval()(ids).logits, view.model(ids).logits
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    assert (
        AutoTokenizer.from_pretrained(tmp_path)("x").input_ids == backbone.tokenizer("x").input_ids
    )


@pytest.mark.slow
def test_a_trained_view_starts_from_its_source(open_backbone, rank, batch, tmp_path) -> None:
    backbone = open_backbone(rank)
    backbone.add("policy", source=None, trainable=True)
    perturb(backbone, "policy")
    backbone.save("policy", tmp_path)
    later = open_backbone(rank)
    later.add("reference", source=tmp_path, trainable=False)
    later.add("policy", source=tmp_path, trainable=True)
    assert torch.equal(logps(later, "policy", batch), logps(later, "reference", batch))
    step(later, "policy", batch)
    assert torch.equal(logps(later, "reference", batch), logps(backbone, "policy", batch))
    assert not torch.equal(logps(later, "policy", batch), logps(later, "reference", batch))


@pytest.mark.conformance(
    "equivalence",
    "LoRA",
    "merged into the base: log-probs to 1e-5",
)
def test_an_adapter_is_merged_into_full_parameters(open_backbone, batch, tmp_path) -> None:
    lora = open_backbone(4)
    lora.add("policy", source=None, trainable=True)
    perturb(lora, "policy")
    lora.save("policy", tmp_path)
    full = open_backbone()
    full.add("policy", source=tmp_path, trainable=True)
    assert full.parameter_counts("policy") == (26880, 26880)
    torch.testing.assert_close(
        logps(full, "policy", batch), logps(lora, "policy", batch), rtol=0, atol=1e-5
    )
    step(full, "policy", batch)


@pytest.mark.slow
@pytest.mark.conformance(
    "equivalence",
    "LoRA on a fully trained model",
    "a fresh adapter changes nothing, and its folder finds its base again",
)
def test_adapters_on_a_fully_trained_source(open_backbone, batch, tmp_path) -> None:
    full = open_backbone()
    full.add("policy", source=None, trainable=True)
    perturb(full, "policy")
    full.save("policy", tmp_path / "sft")
    lora = open_backbone(4)
    lora.add("reference", source=tmp_path / "sft", trainable=False)
    lora.add("policy", source=tmp_path / "sft", trainable=True)
    expected = logps(full, "policy", batch)
    torch.testing.assert_close(logps(lora, "policy", batch), expected, rtol=0, atol=1e-6)
    perturb(lora, "policy", seed=2)
    lora.save("policy", tmp_path / "dpo")
    # The adapter's folder knows which base it belongs to.
    later = open_backbone(4)
    later.add("policy", source=tmp_path / "dpo", trainable=False)
    assert torch.equal(logps(later, "policy", batch), logps(lora, "policy", batch))


def test_views_of_two_bases_are_refused(open_backbone, tmp_path) -> None:
    full = open_backbone()
    full.add("policy", source=None, trainable=True)
    perturb(full, "policy")
    full.save("policy", tmp_path)
    lora = open_backbone(4)
    lora.add("reference", source=None, trainable=False)
    with pytest.raises(ConfigError, match="one backbone cannot serve both"):
        lora.add("policy", source=tmp_path, trainable=True)


def test_a_changed_base_is_refused(open_backbone, tmp_path) -> None:
    lora = open_backbone(4)
    lora.add("policy", source=None, trainable=True)
    lora.save("policy", tmp_path)
    facts = json.loads((tmp_path / "view.json").read_text())
    (tmp_path / "view.json").write_text(json.dumps(facts | {"base_sha256": "0" * 64}))
    with pytest.raises(ConfigError, match="has changed since"):
        open_backbone(4).add("policy", source=tmp_path, trainable=True)


def test_an_adapter_that_does_not_fit_is_refused(open_backbone, cache, tmp_path) -> None:
    lora = open_backbone(4)
    lora.add("policy", source=None, trainable=True)
    lora.save("policy", tmp_path)
    from safetensors.torch import load_file, save_file

    state = load_file(tmp_path / "adapter_model.safetensors")
    state.pop(next(iter(state)))
    save_file(state, tmp_path / "adapter_model.safetensors")
    with pytest.raises(ConfigError, match="does not fit"):
        open_backbone(4).add("policy", source=tmp_path, trainable=True)


def test_base_in_place_of_the_configured_model(open_backbone, cache, batch, tmp_path) -> None:
    from model_cases import backbone_config

    full = open_backbone()
    full.add("policy", source=None, trainable=True)
    perturb(full, "policy")
    full.save("policy", tmp_path)
    other = Backbone.load(backbone_config(4), cache, base=tmp_path)
    other.add("policy", source=None, trainable=True)
    torch.testing.assert_close(
        logps(other, "policy", batch), logps(full, "policy", batch), rtol=0, atol=1e-6
    )


@pytest.mark.slow
def test_drop(open_backbone, rank, batch, tmp_path) -> None:
    backbone = open_backbone(rank)
    backbone.add("policy", source=None, trainable=True)
    perturb(backbone, "policy")
    backbone.save("policy", tmp_path)
    backbone.add("best", source=tmp_path, trainable=False)
    assert torch.equal(logps(backbone, "policy", batch), logps(backbone, "best", batch))
    backbone.drop("policy")
    assert backbone.views == ("best",)
    assert not backbone.has("policy")
    kept = logps(backbone, "best", batch)
    backbone.add("policy", source=None, trainable=True)
    assert torch.equal(logps(backbone, "best", batch), kept)
    for name in backbone.views:
        backbone.drop(name)
    backbone.add("policy", source=None, trainable=True)
    step(backbone, "policy", batch)


@pytest.mark.slow
@pytest.mark.conformance(
    "determinism",
    "fresh adapters and heads",
    "their start is a function of seed and view, whatever was drawn before",
)
def test_starts_are_fixed_by_the_seed_alone(open_backbone, rank, batch) -> None:
    outcomes = []
    for noise, seed in ((1, 0), (2, 0), (1, 5)):
        torch.manual_seed(noise)
        backbone = open_backbone(rank, seed=seed)
        state = torch.get_rng_state()
        backbone.add("reward", source=None, trainable=True, head=True)
        assert torch.equal(torch.get_rng_state(), state)
        step(backbone, "reward", batch)
        outcomes.append(scores(backbone, "reward", batch))
    assert torch.equal(outcomes[0], outcomes[1])
    assert not torch.equal(outcomes[0], outcomes[2])


def test_dropout_only_in_train_mode_and_only_where_trained(open_backbone, batch, tmp_path) -> None:
    backbone = open_backbone(4, dropout=0.5)
    backbone.add("policy", source=None, trainable=True)
    perturb(backbone, "policy")
    backbone.save("policy", tmp_path)
    backbone.add("reference", source=tmp_path, trainable=False)
    steady = logps(backbone, "policy", batch)
    assert torch.equal(steady, logps(backbone, "policy", batch))
    backbone.train_mode(True)
    assert not torch.equal(logps(backbone, "policy", batch), logps(backbone, "policy", batch))
    assert torch.equal(logps(backbone, "reference", batch), steady)
    backbone.train_mode(False)
    assert torch.equal(steady, logps(backbone, "policy", batch))


@pytest.mark.slow
@pytest.mark.conformance(
    "equivalence",
    "gradient checkpointing, full and LoRA",
    "the same gradients bit for bit, with two views in turn",
)
def test_gradient_checkpointing_gives_the_same_gradients(open_backbone, rank, batch) -> None:
    # One view per forward and backward: a switch in between recomputes with the wrong adapter.
    results = []
    for checkpointing in (False, True):
        backbone = open_backbone(rank, gradient_checkpointing=checkpointing)
        for name in ("policy", "value"):
            backbone.add(name, source=None, trainable=True)
            perturb(backbone, name, seed=len(name))
        backbone.train_mode(True)
        for name in ("policy", "value"):
            with backbone.view(name) as view:
                view.logps(batch).sum().backward()
        results.append(
            [p.grad for n in backbone.views for p in backbone.trainable_parameters(n).values()]
        )
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.conformance(
    "equivalence",
    "bfloat16",
    "a frozen copy starts with the policy's very log-probs: the ratio is exactly 1",
)
def test_bfloat16_arithmetic(open_backbone, rank, batch) -> None:
    exact = open_backbone(rank)
    exact.add("policy", source=None, trainable=True)
    reduced = open_backbone(rank, dtype="bfloat16")
    assert reduced.dtype_name == "bfloat16"
    reduced.add("policy", source=None, trainable=True)
    reduced.add("reference", source=None, trainable=False)
    ours = logps(reduced, "policy", batch)
    assert ours.dtype == torch.float32
    difference = (ours - logps(exact, "policy", batch)).abs().max()
    assert 0 < difference < 0.2
    # A frozen copy stores what autocast would compute with: the ratio starts at exactly one.
    assert torch.equal(ours, logps(reduced, "reference", batch))
    with reduced.view("policy") as view:  # and a pass with gradients is the same pass
        assert torch.equal(ours, view.logps(batch).detach())
    for parameter in reduced.trainable_parameters("policy").values():
        assert parameter.dtype == torch.float32
    with reduced.view("reference") as view:
        formats = {p.dtype for n, p in view.model.named_parameters() if "lora" not in n}
    assert formats == {torch.float32, torch.bfloat16}


def test_a_pass_without_gradients_does_not_eat_the_next_one_s(open_backbone, batch) -> None:
    # Autocast's cast cache would hand the second pass a weight copy without a graph.
    backbone = open_backbone(dtype="bfloat16")
    backbone.add("policy", source=None, trainable=True)
    with backbone.view("policy") as view:
        with torch.no_grad():
            view.logps(batch)
        view.logps(batch).sum().backward()
    missing = [n for n, p in backbone.trainable_parameters("policy").items() if p.grad is None]
    assert missing == []


def test_normalisation_by_hand(open_backbone, batch) -> None:
    backbone = open_backbone()
    backbone.add("reward", source=None, trainable=True, head=True)
    raw = scores(backbone, "reward", batch)
    backbone.set_normalization("reward", float(raw.mean()), float(raw.std()))
    first = scores(backbone, "reward", batch)
    torch.testing.assert_close(first, (raw - raw.mean()) / raw.std(), rtol=0, atol=1e-5)
    backbone.set_normalization("reward", float(first.mean()), float(first.std()))
    torch.testing.assert_close(scores(backbone, "reward", batch), first, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="cannot be normalised"):
        backbone.set_normalization("reward", 0.0, 0.0)
    names = backbone.trainable_parameters("reward")
    assert {n for n in names if n.startswith("head.")} == {"head.linear.weight", "head.linear.bias"}


def test_head_start_has_the_stated_deviation() -> None:
    from alignlab.models.heads import ScalarHead

    torch.manual_seed(0)
    head = ScalarHead(9999)
    # 10,000 draws: the sample deviation is within 3 % of 1/√10000 = 0.01 with near certainty.
    assert head.linear.weight.std().item() == pytest.approx(0.01, rel=0.03)
    assert head.linear.bias.item() == 0.0


def test_target_modules_and_conv1d(cache, tmp_path) -> None:
    from model_cases import backbone_config, random_model

    from alignlab.models.tiny import byte_tokenizer

    random_model(architecture("gpt2", vocab_size=259)).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    config = backbone_config(2, path=str(tmp_path), target_modules=("c_attn",))
    backbone = Backbone.load(config, cache)
    backbone.add("policy", source=None, trainable=True)
    assert backbone.layout[0] == "grouped"
    # Two layers of rank 2 on a 32 → 96 matrix: 2 · 2 · (32 + 96) = 512.
    assert backbone.parameter_counts("policy")[1] == 512
    step(backbone, "policy", make_batch())
