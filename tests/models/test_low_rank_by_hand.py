"""LoRA's variants against their papers' equations, on one base with several views."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from model_cases import backbone_config, perturb
from torch import Tensor

from alignlab import typed
from alignlab.compose import conf_dir
from alignlab.data.group import PromptGroup
from alignlab.data.pack import flatten
from alignlab.data.template import Tokenization
from alignlab.engine.distributed import Engine
from alignlab.engine.optimizer import Optimizer
from alignlab.engine.sharded import require_stage
from alignlab.errors import ConfigError
from alignlab.models.backbone import Backbone
from alignlab.models.load import BackboneConfig
from alignlab.models.served import describe, serve
from alignlab.rollout.rollout import sample_rollout
from alignlab.rollout.sampling import Sampling

NAMES = ("dora", "rslora", "lora_plus", "pissa", "olora", "vera", "qlora", "adalora")
PLACE = "model.layers.1.mlp.up_proj"  # 64 outputs, 32 inputs


def adapter(name: str, **changes: Any) -> Any:
    """A technique as its yaml states it, small."""
    stated = yaml.safe_load((conf_dir() / "adapter" / f"{name}.yaml").read_text(encoding="utf-8"))
    small = {"rank": 4, "alpha": 8.0, "dropout": 0.0, "initial_rank": 6}
    stated |= {key: value for key, value in small.items() if key in stated}
    return typed.build(BackboneConfig, {**as_config(), "adapter": {**stated, **changes}}).adapter


def as_config() -> dict[str, Any]:
    return typed.to_mapping(backbone_config())


def opened(cache: Path, technique: Any, **changes: Any) -> Backbone:
    return Backbone.load(replace(backbone_config(**changes), adapter=technique), cache)


def layer_of(backbone: Backbone, name: str = "policy") -> Any:
    """An adapted layer, with the view's adapter active."""
    with backbone.view(name) as view:
        return view.model.get_submodule(PLACE)


def weights_of(backbone: Backbone, name: str = "policy") -> dict[str, Tensor]:
    """What a view trains in that layer."""
    found = backbone.trainable_parameters(name)
    own = {n.removeprefix(f"{PLACE}."): p for n, p in found.items() if n.startswith(PLACE)}
    return {n.removesuffix(".weight"): p.detach() for n, p in own.items()}


def logps(backbone: Backbone, name: str, batch: Any) -> Tensor:
    with torch.no_grad(), backbone.view(name) as view:
        return view.logps(batch)


X = torch.randn(5, 32, generator=torch.Generator().manual_seed(3))


@pytest.mark.conformance(
    "closed form",
    "DoRA (Liu et al. 2024, eq. 5)",
    "m · (W + s·BA) / ‖W + s·BA‖, row by row, to 1e-5",
)
def test_dora_is_a_magnitude_and_a_direction(cache: Path) -> None:
    backbone = opened(cache, adapter("dora"))
    backbone.add("policy", source=None, trainable=True)
    perturb(backbone, "policy")
    own, layer = weights_of(backbone), layer_of(backbone)
    turned = layer.base_layer.weight + 2.0 * own["lora_B"] @ own["lora_A"]  # α/r = 8/4
    unit = turned / turned.norm(dim=1, keepdim=True)
    expected = X @ (own["lora_magnitude_vector"][:, None] * unit).T
    torch.testing.assert_close(layer(X), expected, rtol=0, atol=1e-5)


@pytest.mark.conformance(
    "closed form", "rsLoRA (Kalajdzievski 2023, theorem 3.2)", "the update is scaled by α/√r"
)
def test_rank_stabilised_lora_is_scaled_by_the_root(cache: Path) -> None:
    backbone = opened(cache, adapter("rslora"))
    backbone.add("policy", source=None, trainable=True)
    perturb(backbone, "policy")
    own, layer = weights_of(backbone), layer_of(backbone)
    expected = X @ (layer.base_layer.weight + 8.0 / 2.0 * own["lora_B"] @ own["lora_A"]).T
    torch.testing.assert_close(layer(X), expected, rtol=0, atol=1e-5)


@pytest.mark.conformance(
    "closed form",
    "LoRA+ (Hayou et al. 2024)",
    "B, and nothing else, learns at λ times the rate of A",
)
def test_lora_plus_sets_the_rate_of_b(cache: Path) -> None:
    backbone = opened(cache, adapter("lora_plus"))
    backbone.add("value", source=None, trainable=True, head=True)
    named = {"value": backbone.trainable_parameters("value")}
    optimizer = Optimizer(
        learning_rate=1e-3, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.0, schedule="constant",
        warmup=0, floor=0, max_grad_norm=None,
    )  # fmt: skip
    groups = optimizer.groups(named, backbone.config.adapter.rates)
    peaks = {id(p): group["peak"] for group in groups for p in group["params"]}
    for name, parameter in named["value"].items():
        expected = 16e-3 if ".lora_B." in name else 1e-3
        assert peaks[id(parameter)] == pytest.approx(expected), name


@pytest.mark.conformance(
    "closed form", "PiSSA (Meng et al. 2024, eq. 2-4)",
    "the adapter begins as the r principal directions of W, and trains as on W without them",
)  # fmt: skip
def test_pissa_begins_as_the_principal_part(cache: Path) -> None:
    backbone = opened(cache, adapter("pissa"))
    backbone.add("policy", source=None, trainable=True)
    own, layer = weights_of(backbone), layer_of(backbone)
    weight = layer.base_layer.weight.detach()
    u, s, vt = np.linalg.svd(weight.double().numpy(), full_matrices=False)
    principal = torch.from_numpy((u[:, :4] * s[:4]) @ vt[:4]).float()
    torch.testing.assert_close(2.0 * own["lora_B"] @ own["lora_A"], principal, rtol=0, atol=1e-5)
    # √S on both sides: what A has of a direction's length, B has too (up to the scale)
    assert torch.allclose(own["lora_A"].norm(dim=1), own["lora_B"].norm(dim=0), atol=1e-5)
    # The gradient of B is that of (W − s·B₀A₀) x + s·B A x.
    residual = (weight - principal).requires_grad_(False)
    a, b = (own[n].clone().requires_grad_() for n in ("lora_A", "lora_B"))
    (X @ (residual + 2.0 * b @ a).T).square().sum().backward()
    layer(X).square().sum().backward()
    trained = backbone.trainable_parameters("policy")
    for name, mine in (("lora_A", a), ("lora_B", b)):
        found = trained[f"{PLACE}.{name}.weight"].grad
        torch.testing.assert_close(found, mine.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.conformance(
    "closed form", "OLoRA (Büyükakyüz 2024, eq. 2)", "B = Q[:, :r], orthonormal, and A = R[:r]"
)
def test_olora_begins_with_orthonormal_columns(cache: Path) -> None:
    backbone = opened(cache, adapter("olora"))
    backbone.add("policy", source=None, trainable=True)
    own, layer = weights_of(backbone), layer_of(backbone)
    torch.testing.assert_close(own["lora_B"].T @ own["lora_B"], torch.eye(4), rtol=0, atol=1e-5)
    # Q[:, :r] Qᵀ[:r] W is what the first r columns of Q hold of W, and that is Q[:, :r] R[:r].
    held = own["lora_B"] @ own["lora_B"].T @ layer.base_layer.weight.detach()
    torch.testing.assert_close(own["lora_B"] @ own["lora_A"], held, rtol=0, atol=1e-5)


@pytest.mark.conformance(
    "closed form", "VeRA (Kopiczko et al. 2023, eq. 2)", "h = W x + Λ_b B Λ_d A x, A and B shared"
)
def test_vera_scales_shared_random_matrices(cache: Path) -> None:
    backbone = opened(cache, adapter("vera"))
    for name in ("policy", "value", "reference"):
        backbone.add(name, source=None, trainable=name != "reference")
        layer_of(backbone, name)(X)  # all that were added before still compute
        layer_of(backbone, "policy")(X)
    perturb(backbone, "policy")
    own, layer = weights_of(backbone), layer_of(backbone)
    a, b = layer.vera_A["policy_view"][:, :32], layer.vera_B["policy_view"][:64]
    d, scale = own["vera_lambda_d"], own["vera_lambda_b"]
    expected = X @ layer.base_layer.weight.T + scale * (((X @ a.T) * d) @ b.T)
    torch.testing.assert_close(layer(X), expected, rtol=0, atol=1e-5)
    values = layer.vera_A["value_view"]
    assert values.data_ptr() == layer.vera_A["policy_view"].data_ptr()  # one in memory
    assert torch.equal(layer_of(backbone, "value").vera_A["value_view"], values)


@pytest.mark.conformance(
    "closed form", "QLoRA (Dettmers et al. 2023, eq. 5-6)",
    "each block of 64 weights has at most 16 levels; no pass changes a bit of the base",
)  # fmt: skip
def test_the_base_of_qlora_has_four_bits(cache: Path, batch: Any) -> None:
    from bitsandbytes.functional import dequantize_4bit

    backbone = opened(cache, adapter("qlora"))
    backbone.add("policy", source=None, trainable=True)
    weight = layer_of(backbone).base_layer.weight
    assert weight.dtype == torch.uint8
    assert weight.numel() == 64 * 32 // 2
    levels = dequantize_4bit(weight.data, weight.quant_state).reshape(-1, 64)
    assert max(len(block.unique()) for block in levels) <= 16
    before = weight.data.clone()
    scored = logps(backbone, "policy", batch)
    backbone.train_mode(True)
    with backbone.view("policy") as view:
        trained = view.logps(batch)
        trained.sum().backward()
    assert torch.equal(trained.detach(), scored)  # dropout is 0
    assert torch.equal(layer_of(backbone).base_layer.weight.data, before)
    # the same model in full: its parameters are counted, not its bytes
    whole = opened(cache, adapter("lora"))
    whole.add("policy", source=None, trainable=True)
    assert backbone.parameter_counts("policy") == whole.parameter_counts("policy")


def test_the_plan_knows_the_bytes_of_four_bits(cache: Path) -> None:
    from alignlab.capacity.memory import stored
    from alignlab.stages.estimate import model_of

    config = replace(backbone_config(), adapter=adapter("qlora"))
    model = model_of(config, cache)
    d = model.dimensions
    # Two layers: 32·32·2 + 32·16·2 of attention, 3·32·64 of the feed-forward part: 9,216 each.
    assert d.matrices == 18432
    # 0.5 bytes, one byte for 64 values, and a float32 for 256 of those bytes: 0.127 bits
    assert stored(model, half=True) == round(18432 * (0.5 + 1 / 64 + 4 / 64 / 256)) + 4 * (
        d.total - 18432
    )
    single = replace(config, adapter=adapter("qlora", double_quantization=False))
    each = (stored(model_of(single, cache), half=True) - stored(model, half=True)) / d.matrices
    assert 8 * each == pytest.approx(0.5 - 0.127, abs=1e-3)  # bits, as the paper has it


def steps(backbone: Backbone, batch: Any, count: int) -> list[int]:
    """Train ``policy`` with what AdaLoRA does beside updates; ranks that are left, step by step."""
    change = backbone.changing(["policy"])
    assert change is not None
    change.begin(count)
    named = backbone.trainable_parameters("policy")
    left = []
    for _ in range(count):
        with backbone.view("policy") as view:
            view.logps(batch).mean().backward()
        change.before(counts=True)
        with torch.no_grad():
            for parameter in named.values():
                parameter -= 0.1 * parameter.grad
        change.after()
        for parameter in named.values():
            parameter.grad = None
        left.append(sum(int((p != 0).sum()) for n, p in named.items() if n.endswith("lora_E")))
    return left


@pytest.mark.conformance(
    "closed form", "AdaLoRA (Zhang et al. 2023, eq. 12)",
    "the budget falls with the third power of the time left, to the stated mean rank, and stays",
)  # fmt: skip
def test_adalora_deals_out_its_budget(cache: Path, batch: Any) -> None:
    technique = adapter("adalora", rank=2, warmup=0.2, final=0.3, every=1)
    backbone = opened(cache, technique)
    backbone.add("policy", source=None, trainable=True)
    left = steps(backbone, batch, 10)
    # 14 matrices, from 6·14 = 84 ranks to 2·14 = 28. Two steps of warm-up, three at the end, so
    # after step t of 3 … 7 there are ⌊28 + 56·(1 − (t − 2)/5)³⌋: 56·0.512 = 28.67, 56·0.216 = 12.1,
    # 56·0.064 = 3.58, 56·0.008 = 0.45, and 0.
    assert left == [84, 84, 56, 40, 31, 28, 28, 28, 28, 28]


def test_the_penalty_of_adalora_is_that_of_its_factors(cache: Path) -> None:
    backbone = opened(cache, adapter("adalora", orthogonality=0.5))
    backbone.add("policy", source=None, trainable=True)
    named = backbone.trainable_parameters("policy")
    factors = {n: p for n, p in named.items() if not n.endswith("lora_E")}
    for parameter in named.values():
        parameter.grad = torch.zeros_like(parameter)
    change = backbone.changing(["policy"])
    assert change is not None
    change.before(counts=False)
    assert all(not p.grad.any() for p in named.values())
    change.before(counts=True)
    a = next(p for n, p in factors.items() if n.endswith("lora_A"))
    far = a.detach() @ a.detach().T - torch.eye(6)
    # d‖AAᵀ − I‖/dA = 2 (AAᵀ − I) A / ‖AAᵀ − I‖; there are 28 factors, and the weight is 0.5.
    expected = 0.5 / 28 * 2 * far @ a.detach() / far.norm()
    torch.testing.assert_close(a.grad, expected, rtol=1e-4, atol=1e-7)


@pytest.mark.slow
@pytest.mark.conformance(
    "equivalence", "DoRA, rsLoRA, LoRA+, PiSSA, OLoRA, VeRA, QLoRA, AdaLoRA",
    "flat and padded layout give the same log-probs, and the sampler keeps the trainer's, to 1e-5",
)  # fmt: skip
@pytest.mark.parametrize("name", NAMES)
def test_layouts_and_sampler_agree(cache: Path, batch: Any, name: str) -> None:
    found = []
    for layout in ("grouped", "padded"):
        backbone = opened(cache, adapter(name), layout=layout)
        backbone.add("policy", source=None, trainable=True)
        if name in ("pissa", "olora"):  # a fresh one is the base, however large its parts
            plain = opened(cache, adapter("lora"), layout=layout)
            plain.add("policy", source=None, trainable=True)
            first = logps(backbone, "policy", batch)
            torch.testing.assert_close(first, logps(plain, "policy", batch), rtol=0, atol=1e-5)
        perturb(backbone, "policy")
        found.append(logps(backbone, "policy", batch))
    torch.testing.assert_close(*found, rtol=0, atol=1e-5)
    tokenization = Tokenization(backbone.tokenizer, max_prompt=40, max_completion=8)
    prompts = [tokenization.prompt(PromptGroup(t, id=t), i) for i, t in enumerate(("A", "So it"))]
    sampling = Sampling(max_new_tokens=8, temperature=1.0, top_p=1.0, top_k=0, batch=8)
    backbone = opened(cache, adapter(name))
    backbone.add("policy", source=None, trainable=True)
    perturb(backbone, "policy")
    with backbone.view("policy") as view:
        rollout = sample_rollout(view, prompts, tokenization, sampling, 3, seed=0, step=0)
    kept = torch.from_numpy(np.concatenate(rollout.logps))
    want = logps(backbone, "policy", flatten(rollout.groups))
    torch.testing.assert_close(kept, want, rtol=0, atol=1e-5)


def test_views_of_one_family_meet_and_are_not_mistaken(cache: Path, tmp_path: Path) -> None:
    lora = opened(cache, adapter("lora"))
    lora.add("reward", source=None, trainable=True, head=True)
    lora.save("reward", tmp_path / "reward")
    dora = opened(cache, adapter("dora"))
    dora.add("policy", source=None, trainable=True)
    dora.add("reward", source=tmp_path / "reward", trainable=False, head=True)  # a plain LoRA
    with pytest.raises(ConfigError, match="cannot be trained further with adapter=dora"):
        dora.add("value", source=tmp_path / "reward", trainable=True, head=True)
    for other in ("qlora", "vera", "pissa"):
        with pytest.raises(ConfigError, match=f"adapter=lora, and this stage has adapter={other}"):
            opened(cache, adapter(other)).add("reward", source=tmp_path / "reward", trainable=False)


def test_what_cannot_be_is_refused_with_a_way_out(cache: Path) -> None:
    with pytest.raises(ConfigError, match="initial_rank=4 must be above rank=4"):
        adapter("adalora", initial_rank=4)
    with pytest.raises(ConfigError, match="leave no steps"):
        adapter("adalora", warmup=0.5, final=0.5)
    wide = opened(cache, adapter("pissa", rank=20))
    with pytest.raises(ConfigError, match=r"16 by 32, which has 16"):  # the keys' matrix
        wide.add("policy", source=None, trainable=True)
    nowhere = adapter("dora", target_modules=["nowhere"])
    with pytest.raises(ConfigError, match="no such linear layer"):
        nowhere.sizes({"a.weight": (2, 2)}, None)


@pytest.mark.parametrize(
    ("name", "stage", "instead"),
    [("qlora", 1, "engine=auto"), ("adalora", 1, "engine=auto"), ("dora", 3, "engine=zero2"),
     ("pissa", 3, "engine=zero2"), ("vera", 3, "engine=zero2")],
)  # fmt: skip
def test_zero_is_refused_where_it_does_not_work(
    name: str, stage: int, instead: str, engine: Engine
) -> None:
    with pytest.raises(ConfigError, match=f"zero={stage} with adapter={name}.*{instead}"):
        require_stage(adapter(name), replace(engine, zero=stage, offload="optimizer"))
    require_stage(adapter(name), replace(engine, zero=stage))  # alone there is nothing to share


@pytest.fixture(scope="module")
def engine() -> Engine:
    from alignlab.compose import compose

    return typed.build(Engine, {**compose(["experiment=smoke"])["engine"], "device": "cpu"})


@pytest.mark.slow
def test_adapters_on_one_base_are_served_by_name(cache: Path, tmp_path: Path, batch: Any) -> None:
    ids = torch.tensor([[5, 17, 42, 7]])
    expected, folders = {}, {}
    for seed, (name, technique) in enumerate((("a", "lora"), ("b", "pissa"), ("c", "vera"))):
        backbone = opened(cache, adapter(technique))
        backbone.add("policy", source=None, trainable=True)
        perturb(backbone, "policy", seed=seed)
        with torch.no_grad(), backbone.view("policy") as view:
            expected[name] = view.model(input_ids=ids).logits
        folders[name] = tmp_path / name
        backbone.save("policy", folders[name])
    served = serve(folders, cache)
    assert describe(served) == "a, b on one base; c by itself"
    assert served["a"].model is served["b"].model
    for name in ("b", "a", "c", "b"):
        model, _ = served[name].use(name)
        with torch.no_grad():
            found = model(input_ids=ids).logits
        torch.testing.assert_close(found, expected[name], rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_recomputed_activations_and_bfloat16_change_no_more_than_rounding(
    cache: Path, tmp_path: Path, batch: Any, name: str
) -> None:
    first = opened(cache, adapter(name))
    first.add("policy", source=None, trainable=True)
    perturb(first, "policy", scale=0.02)
    first.save("policy", tmp_path)  # a decomposition of rounded weights may have other signs
    found = []
    for changes in ({}, {"gradient_checkpointing": True}, {"dtype": "bfloat16"}):
        backbone = opened(cache, adapter(name), **changes)
        backbone.add("policy", source=tmp_path, trainable=True)
        backbone.train_mode(True)
        with backbone.view("policy") as view:
            out = view.logps(batch)
            out.sum().backward()
        grads = {n: p.grad for n, p in backbone.trainable_parameters("policy").items()}
        assert all(p.dtype == torch.float32 for p in grads.values())
        found.append((out.detach(), grads))
    (plain, grads), (again, recomputed), (short, _) = found
    assert torch.equal(plain, again)
    for key, gradient in grads.items():
        torch.testing.assert_close(recomputed[key], gradient, rtol=1e-5, atol=1e-6)
    assert float((short - plain).abs().max()) < 0.05
