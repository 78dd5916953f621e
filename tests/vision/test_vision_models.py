"""Flat ≡ padded ≡ transformers' own forward pass with the processor's tensors, in float32."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from vision_lab import picture, save_pictures

from alignlab.data.formats.media import with_marks
from alignlab.data.group import CHOSEN_REJECTED, PromptGroup, TokenGroup
from alignlab.data.pack import flatten
from alignlab.data.template import Tokenization
from alignlab.errors import ConfigError, TrainingError
from alignlab.images import KEY
from alignlab.models.backbone import Backbone
from alignlab.models.load import Adapter, BackboneConfig
from alignlab.models.sighted import REFUSED, family_of
from alignlab.objectives.pairwise import dpo
from alignlab.objectives.stable import segment_sum
from alignlab.tensors import PairLogps

KINDS = ("llava", "llava_siglip", "llava_next", "idefics3", "smolvlm")
# Rows: two pictures of unlike sizes (with Idefics3: tiles and none), text alone, one picture.
ANSWERS = (("Two of them.", "No."), ("Yes", "I do not know that."), ("A dog", "A cat, I think"))


def open_model(path: Path, cache: Path, rank: int | None = None, **changes: Any) -> Backbone:
    adapter = Adapter(rank=rank, alpha=8.0, dropout=0.0, target_modules="all-linear")
    values: dict[str, Any] = {"revision": None, "dtype": "float32", "layout": "auto"}
    values |= {"gradient_checkpointing": False} | changes
    config = BackboneConfig(path=str(path), adapter=adapter, **values)
    return Backbone.load(config, cache)


def groups_of(folder: Path) -> list[PromptGroup]:
    names = save_pictures(folder, [(60, 40), (20, 28), (33, 50)])
    asked = ("Before <image> and <image>: what are these?", "Hello?", "<image>What is it?")
    shown: tuple[list[str], ...] = (names[:2], [], names[2:])
    made = []
    for number, (text, images, answers) in enumerate(zip(asked, shown, ANSWERS, strict=True)):
        row, refs = with_marks({"prompt": text, "images": images}, ["prompt"], folder)
        said = tuple(({"role": "assistant", "content": answer},) for answer in answers)
        prompt = ({"role": "user", "content": row["prompt"]},)
        made.append(
            PromptGroup(prompt, said, CHOSEN_REJECTED, str(number), {KEY: refs} if refs else {})
        )
    return made


def tokens_of(backbone: Backbone, groups: list[PromptGroup]) -> list[TokenGroup]:
    made = Tokenization(backbone.tokenizer, 200, 60, processor=backbone.processor)
    return made.groups(groups)


def theirs(folder: Path, group: TokenGroup, pictures: list[Any], text: str) -> list[torch.Tensor]:
    """Log-probabilities of each completion's tokens, by transformers alone, one row at a time."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(folder)
    shown = {"images": [pictures]} if "idefics" in type(processor).__name__.lower() else {}
    shown = (shown or {"images": pictures}) if pictures else {}
    # The template writes BOS and all that follows it.
    inputs = processor(text=[text], add_special_tokens=False, return_tensors="pt", **shown)
    assert inputs["input_ids"][0].tolist() == group.prompt.tolist()
    found = []
    for completion in group.completions:
        own = torch.from_numpy(completion.astype(np.int64))
        ids = torch.cat([inputs["input_ids"], own[None]], 1)
        more = {k: v for k, v in inputs.items() if k.startswith(("pixel", "image"))}
        with torch.no_grad():
            out = model(input_ids=ids, attention_mask=torch.ones_like(ids), **more).logits[0]
        logps = out.log_softmax(-1)[-len(own) - 1 : -1].gather(1, own[:, None])[:, 0]
        found.append(logps)
    return found


def rendered(group: PromptGroup) -> str:
    import re

    said = re.sub(r"<image:[^>]*>", "<image>", group.prompt[0]["content"])
    return f"<|bos|>user: {said}<|eos|>assistant: "


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_flat_padded_and_transformers_agree(
    kind: str, models: dict[str, Path], tmp_path: Path
) -> None:
    groups = groups_of(tmp_path)
    logps = {}
    for layout in ("grouped", "padded"):
        backbone = open_model(models[kind], tmp_path, layout=layout)
        assert backbone.layout[0] == layout
        tokens = tokens_of(backbone, groups)
        batch = flatten(tokens)
        assert len(batch.images) == 3
        backbone.add("policy", source=None, trainable=False)
        with torch.no_grad(), backbone.view("policy") as view:
            logps[layout] = view.logps(batch)
            blind = view.logps(replace(batch, images=())) if kind == "llava" else None
    pictures = [picture(0, 60, 40), picture(1, 20, 28)], [], [picture(2, 33, 50)]
    expected = [
        part
        for group, token, shown in zip(groups, tokens, pictures, strict=True)
        for part in theirs(models[kind], token, shown, rendered(group))
    ]
    whole = torch.cat(expected)
    assert whole.std() > 0.1  # predictions differ, so agreement says something
    assert (logps["grouped"] - logps["padded"]).abs().max() < 1e-5
    assert (logps["grouped"] - whole).abs().max() < 1e-5
    if blind is not None:  # and the pictures matter
        assert (blind - whole).abs().max() > 1e-2
    chosen, rejected = (
        torch.stack([part.sum() for part in expected[first::2]]) for first in (0, 1)
    )
    sums = segment_sum(logps["grouped"], batch.target_completion, batch.completions)
    lengths = batch.lengths
    zero = PairLogps(torch.zeros(3), torch.zeros(3), lengths[0::2], lengths[1::2])
    mine = PairLogps(sums[0::2], sums[1::2], lengths[0::2], lengths[1::2])
    by_hand = -torch.nn.functional.logsigmoid(0.1 * (chosen - rejected))
    assert (dpo(mine, zero, beta=0.1, label_smoothing=0.0) - by_hand).abs().max() < 1e-5


def trained(backbone: Backbone, batch: Any) -> dict[str, bool]:
    """Whether a backward pass reaches each trained parameter."""
    backbone.train_mode(True)
    with backbone.view("policy") as view:
        (-view.logps(batch)).sum().backward()
    backbone.train_mode(False)
    named = backbone.trainable_parameters("policy")
    return {name: bool(p.grad is not None and p.grad.any()) for name, p in named.items()}


@pytest.mark.slow
@pytest.mark.parametrize("rank", [None, 2], ids=["full", "lora"])
@pytest.mark.parametrize("vision", [None, "connector", "all"])
def test_gradients_reach_only_what_is_trained(
    rank: int | None, vision: Any, llava: Path, tmp_path: Path
) -> None:
    backbone = open_model(llava, tmp_path, rank, vision=vision)
    batch = flatten(tokens_of(backbone, groups_of(tmp_path)))
    backbone.add("policy", source=None, trainable=True)
    if rank:  # B of a fresh adapter is zero, and so would the gradient of A be
        for name, parameter in backbone.trainable_parameters("policy").items():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter)
    found = trained(backbone, batch)
    parts = {
        "tower": any("vision_tower" in name for name in found),
        "connector": any("multi_modal_projector" in name for name in found),
        "language": any("language_model" in name for name in found),
    }
    assert parts == {
        "tower": vision == "all", "connector": vision is not None, "language": True
    }  # fmt: skip
    # What the last layer of the tower and its pooling make is not read by a Llava.
    unread = ("layers.1.", "post_layernorm", "k_proj.bias")
    assert [
        n for n, reached in found.items() if not reached and not any(u in n for u in unread)
    ] == []
    model = backbone._bodies.activate("policy")
    names = {id(p) for p in backbone.trainable_parameters("policy").values()}
    assert all(p.grad is None for p in model.parameters() if id(p) not in names)
    total, count = backbone.parameter_counts("policy")
    from alignlab.models.memory import parameter_counts

    assert (total, count) == parameter_counts(backbone.config, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [None, 2], ids=["full", "lora"])
@pytest.mark.parametrize("kind", KINDS)
def test_images_and_texts_give_gradients_of_the_same_weights(
    kind: str, rank: int | None, models: dict[str, Path], tmp_path: Path
) -> None:
    """Else processes with pictures and without would wait for each other's; two layers of Llava's
    tower end above the states that are read."""
    backbone = open_model(models[kind], tmp_path, rank, vision="all")
    backbone.add("policy", source=None, trainable=True)
    groups = tokens_of(backbone, groups_of(tmp_path / "rows"))
    found = []
    with backbone.view("policy") as view:
        unused = {id(p) for p in view.unused}
        for part in (groups[:1], groups[1:2]):  # pictures, text alone
            view.model.zero_grad(set_to_none=True)
            view.logps(flatten(part)).sum().backward()
            trained = [(n, p) for n, p in view.model.named_parameters() if p.requires_grad]
            found.append({n for n, p in trained if p.grad is not None})
            assert {n for n, p in trained if id(p) in unused} == {n for n, _ in trained} - found[-1]
    assert found[0] == found[1]
    assert bool(unused) == kind.startswith("llava")


@pytest.mark.slow
@pytest.mark.parametrize("rank", [None, 2], ids=["full", "lora"])
def test_a_saved_view_comes_back(rank: int | None, llava: Path, tmp_path: Path) -> None:
    backbone = open_model(llava, tmp_path, rank)
    batch = flatten(tokens_of(backbone, groups_of(tmp_path)))
    backbone.add("policy", source=None, trainable=True)
    with torch.no_grad():
        for parameter in backbone.trainable_parameters("policy").values():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)))
    with torch.no_grad(), backbone.view("policy") as view:
        before = view.logps(batch)
    backbone.save("policy", tmp_path / "model")
    assert (tmp_path / "model" / "processor_config.json").is_file()
    again = open_model(llava, tmp_path, rank)
    again.add("reference", source=tmp_path / "model", trainable=False)
    with torch.no_grad(), again.view("reference") as view:
        assert torch.equal(view.logps(batch), before)


def test_sampling_sees_the_pictures(llava: Path, tmp_path: Path) -> None:
    from alignlab.rollout.sampler import Sampling, sample

    backbone = open_model(llava, tmp_path)
    tokens = tokens_of(backbone, groups_of(tmp_path))
    backbone.add("policy", source=None, trainable=False)
    sampling = Sampling(max_new_tokens=6, temperature=1.0, top_p=1.0, top_k=0, batch=4)
    with backbone.view("policy") as view:
        drawn = sample(
            view.model, [g.prompt for g in tokens], n=2, sampling=sampling, eos_id=2,
            seeds=[1, 2, 3], device="cpu", images=[g.meta.get(KEY, ()) for g in tokens],
        )  # fmt: skip
        said = [
            replace(g, completions=tuple(drawn.ids[2 * i : 2 * i + 2]), truncated=(False, False))
            for i, g in enumerate(tokens)
        ]
        with torch.no_grad():
            logps = view.logps(flatten(said))
    assert (logps - torch.from_numpy(np.concatenate(drawn.logps))).abs().max() < 1e-5


def test_images_and_tokens_must_fit(llava: Path, tmp_path: Path) -> None:
    backbone = open_model(llava, tmp_path)
    batch = flatten(tokens_of(backbone, groups_of(tmp_path)))
    backbone.add("policy", source=None, trainable=False)
    with (
        torch.no_grad(),
        backbone.view("policy") as view,
        pytest.raises(TrainingError, match="8 features and 12 image tokens"),
    ):
        view.logps(replace(batch, images=batch.images[:2]))


@pytest.mark.parametrize("kind", ["qwen2_vl", "gemma3", "mllama", "someone_elses"])
def test_other_architectures_are_refused_by_name(kind: str) -> None:
    with pytest.raises(ConfigError, match=kind) as caught:
        family_of(kind)
    assert REFUSED.get(kind, "nobody has compared it") in str(caught.value)


def test_a_picture_changes_what_the_reference_is_asked(llava: Path, tmp_path: Path) -> None:
    from alignlab.stages.reference import content

    backbone = open_model(llava, tmp_path)
    one = tokens_of(backbone, groups_of(tmp_path))[2]
    other = replace(one, meta={KEY: ({**one.meta[KEY][0], "stamp": [1, 2]},)})
    assert content(one) != content(other)  # the tokens are the same


def test_merged_and_exported_it_is_a_model_with_its_processor(llava: Path, tmp_path: Path) -> None:
    from transformers import AutoProcessor

    from alignlab.models.export import export_model

    backbone = open_model(llava, tmp_path, 2)
    groups = groups_of(tmp_path)
    tokens = tokens_of(backbone, groups)
    backbone.add("policy", source=None, trainable=True)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in backbone.trainable_parameters("policy").values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
        with backbone.view("policy") as view:
            trained_logps = view.logps(flatten(tokens[2:]))
    backbone.save("policy", tmp_path / "model")
    export_model(tmp_path / "model", tmp_path / "out", tmp_path, merge=True)
    found = theirs(tmp_path / "out", tokens[2], [picture(2, 33, 50)], rendered(groups[2]))
    assert (torch.cat(found) - trained_logps).abs().max() < 1e-5
    assert AutoProcessor.from_pretrained(tmp_path / "out").image_token == "<image>"


def test_recomputed_activations_change_nothing(models: dict[str, Path], tmp_path: Path) -> None:
    gradients = []
    for checkpointing in (False, True):
        backbone = open_model(
            models["idefics3"], tmp_path, vision="all", gradient_checkpointing=checkpointing
        )
        batch = flatten(tokens_of(backbone, groups_of(tmp_path)))
        backbone.add("policy", source=None, trainable=True)
        trained(backbone, batch)
        named = backbone.trainable_parameters("policy")
        gradients.append({n: p.grad for n, p in named.items() if p.grad is not None})
    before, after = gradients
    assert before.keys() == after.keys()
    assert any("vision_model" in name for name in before)
    assert max(float((before[n] - after[n]).abs().max()) for n in before) < 1e-5


def test_adapters_leave_what_sees_alone(models: dict[str, Path], tmp_path: Path) -> None:
    backbone = open_model(models["idefics3"], tmp_path, 2)
    backbone.add("policy", source=None, trainable=True)
    names = set(backbone.trainable_parameters("policy"))
    # Two layers of seven matrices, two factors each; none on the tower, the connector, the head.
    assert len(names) == 2 * 7 * 2
    assert all(".text_model." in name for name in names)
