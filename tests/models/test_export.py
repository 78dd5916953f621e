"""Exported folders load with plain transformers and peft, and compute what the run computed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignlab.errors import ConfigError
from alignlab.models.backbone import Backbone
from alignlab.models.export import export_model, load_merged
from alignlab.models.load import Adapter, BackboneConfig

IDS = torch.tensor([[5, 17, 42, 7]])


def saved(folder: Path, cache: Path, rank: int | None, *, head: bool = False) -> torch.Tensor:
    """Save a view that differs from its base; return its logits for IDS."""
    config = BackboneConfig(
        path="random:tiny",
        revision=None,
        adapter=Adapter(rank=rank, alpha=8.0, dropout=0.0, target_modules="all-linear"),
        dtype="float32",
        layout="auto",
        gradient_checkpointing=False,
    )
    backbone = Backbone.load(config, cache)
    backbone.add("policy", source=None, trainable=True, head=head)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in backbone.trainable_parameters("policy").values():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
        with backbone.view("policy") as view:
            logits = view.model(input_ids=IDS).logits
    backbone.save("policy", folder)
    return logits


@pytest.mark.slow
@pytest.mark.conformance(
    "equivalence",
    "export",
    "a merged or whole model in plain transformers gives the run's logits, to 1e-5",
)
@pytest.mark.parametrize(("rank", "merge"), [(None, False), (None, True), (4, True)])
def test_a_whole_model_loads_with_transformers_alone(
    tmp_path: Path, cache: Path, rank: int | None, merge: bool
) -> None:
    expected = saved(tmp_path / "run", cache, rank)
    said = export_model(tmp_path / "run", tmp_path / "out", cache, merge=merge)
    assert "a Hugging Face model" in said
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    torch.testing.assert_close(model(IDS).logits, expected, rtol=1e-4, atol=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    prompt = tokenizer("a film", return_tensors="pt")
    assert model.generate(**prompt, max_new_tokens=3, do_sample=False).shape[1] > len("a film")
    assert not (tmp_path / "out/view.json").exists()


@pytest.mark.conformance(
    "equivalence",
    "export",
    "an adapter folder in plain peft gives the run's logits, to 1e-5",
)
def test_an_adapter_folder_names_its_base(tmp_path: Path, cache: Path) -> None:
    expected = saved(tmp_path / "run", cache, 4)
    said = export_model(tmp_path / "run", tmp_path / "out", cache, merge=False)
    assert "adapter for the base model" in said
    base = json.loads((tmp_path / "out/adapter_config.json").read_text())["base_model_name_or_path"]
    assert base in said
    plain = AutoModelForCausalLM.from_pretrained(base)
    assert not torch.allclose(plain(IDS).logits, expected, atol=1e-3)
    model = PeftModel.from_pretrained(plain, str(tmp_path / "out")).eval()
    torch.testing.assert_close(model(IDS).logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.conformance(
    "equivalence",
    "LoRA",
    "merged in memory: logits to 1e-5",
)
@pytest.mark.parametrize("rank", [None, 4])
def test_merged_in_memory_is_the_same_model(tmp_path: Path, cache: Path, rank: int | None) -> None:
    expected = saved(tmp_path / "run", cache, rank)
    model, tokenizer = load_merged(tmp_path / "run", cache)
    assert not model.training
    torch.testing.assert_close(model(IDS).logits, expected, rtol=1e-4, atol=1e-5)
    assert tokenizer.eos_token_id is not None


@pytest.mark.slow
@pytest.mark.parametrize("merge", [False, True])
def test_a_reward_model_keeps_its_head(tmp_path: Path, cache: Path, merge: bool) -> None:
    saved(tmp_path / "run", cache, 4, head=True)
    said = export_model(tmp_path / "run", tmp_path / "out", cache, merge=merge)
    assert "head.safetensors" in said
    assert (tmp_path / "out/head.safetensors").is_file()


def test_refusals(tmp_path: Path, cache: Path) -> None:
    saved(tmp_path / "run", cache, 4)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    with pytest.raises(ConfigError, match="not an empty folder"):
        export_model(tmp_path / "run", tmp_path / "full", cache, merge=False)
    with pytest.raises(ConfigError, match=r"no view\.json"):
        export_model(tmp_path / "full", tmp_path / "out", cache, merge=False)
    view = json.loads((tmp_path / "run/view.json").read_text())
    (tmp_path / "run/view.json").write_text(json.dumps({**view, "base_sha256": "0"}))
    with pytest.raises(ConfigError, match="not the one that this adapter was trained on"):
        export_model(tmp_path / "run", tmp_path / "out", cache, merge=True)
