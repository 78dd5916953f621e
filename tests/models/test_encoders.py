"""Encoders: rows, pooling, what is counted before loading, and what is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encoder_cases import encoder_config, make_encoder, wordpiece
from model_cases import backbone_config, make_batch, perturb

from alignlab.compose import compose
from alignlab.data.group import PromptGroup
from alignlab.data.pack import flatten
from alignlab.data.text_pairs import TextPairs
from alignlab.errors import ConfigError
from alignlab.models.attention_plan import own_rows
from alignlab.models.backbone import Backbone
from alignlab.models.dimensions import Dimensions
from alignlab.models.encoder_rows import row_plan
from alignlab.models.encoders import ENCODERS, PACKED, positions_of, require_scorer
from alignlab.models.export import load_merged
from alignlab.models.memory import base_shapes, dimensions_of, parameter_counts
from alignlab.models.selective import Selective
from alignlab.models.soft_prompts import PromptTuning
from alignlab.plan import Plan
from alignlab.run import Store

# Rows of unlike lengths, a prompt of its own kinds: with one text, without, and with a long one.
GROUPS = [
    PromptGroup("the quick fox", ("jumps over a lazy dog", "abc", "klm 12 the fox jumps over")),
    PromptGroup("", ("a dog", "fox jumps over the lazy dog 0123")),
    PromptGroup("the lazy dog jumps over the fox 0123 89", ("no no dog jumps over the fox",)),
]


def one_at_a_time(plain: Any, groups: list[Any], pooling: str) -> torch.Tensor:
    """Pooled states (C, H) by transformers alone: no padding, no packing."""
    found = []
    for group in groups:
        for completion, mask in zip(group.completions, group.masks, strict=True):
            ids = torch.tensor([[*group.prompt, *completion]])
            more = {}
            if getattr(plain.config, "type_vocab_size", 0) == 2:
                second = [0] * len(mask) if mask.all() else mask.astype(int).tolist()
                more["token_type_ids"] = torch.tensor([[0, *second]])
            with torch.no_grad():
                states = plain(ids, **more)[0][0]
            found.append(states[0] if pooling == "first" else states.mean(0))
    return torch.stack(found)


@pytest.mark.slow
@pytest.mark.conformance(
    "architecture",
    "encoders",
    "packed and padded rows give the states of one row at a time, at [CLS] and on average",
)
@pytest.mark.parametrize("kind", sorted(ENCODERS))
def test_rows_equal_one_row_at_a_time(kind: str, tmp_path: Path) -> None:
    plain = make_encoder(kind, tmp_path)
    found = {}
    for layout in ("auto", "padded"):
        backbone = Backbone.load(backbone_config(path=str(tmp_path), layout=layout), tmp_path)
        packed = layout == "auto" and kind in PACKED
        assert backbone.layout[0] == ("packed" if packed else "padded")
        backbone.add("reward", source=None, trainable=True, head=True)
        limit = positions_of(backbone.model_config.to_dict())
        groups = TextPairs(backbone.tokenizer, limit).groups(GROUPS)
        batch = flatten(groups)
        for pooling in ("first", "mean"):
            with backbone.view("reward") as view:
                view.scalar_head.pooling = pooling
                scores = view.scores(batch)
                wanted = view.scalar_head(one_at_a_time(plain, groups, pooling))
                torch.testing.assert_close(scores, wanted, rtol=0, atol=2e-6)
                assert float(scores.detach().std()) > 0.05
        scores.sum().backward()
        found[layout] = {n: p.grad for n, p in backbone.trainable_parameters("reward").items()}
    for name, mine in found["auto"].items():
        other = found["padded"][name]
        assert mine is not None, name
        torch.testing.assert_close(
            mine, other, rtol=0, atol=1e-4 * max(1, float(other.abs().max()))
        )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bert", "modernbert", "deberta-v2"])
@pytest.mark.parametrize(
    "adapter",
    [4, Selective(last_layers=1), Selective(head=True), Selective(parameters=("*.bias",)), None],
    ids=["lora", "last", "head", "bias", "full"],
)
def test_techniques_train_save_and_are_counted(kind: str, adapter: Any, tmp_path: Path) -> None:
    make_encoder(kind, tmp_path)
    rank = adapter if isinstance(adapter, int) else None
    changes = {"adapter": adapter} if isinstance(adapter, Selective) else {}
    config = backbone_config(rank, path=str(tmp_path), **changes)
    if kind == "modernbert" and isinstance(adapter, Selective) and adapter.parameters:
        with pytest.raises(ConfigError, match="This architecture has no biases"):
            parameter_counts(config, tmp_path)
        return
    backbone = Backbone.load(config, tmp_path)
    backbone.add("reward", source=None, trainable=True, head=True)
    groups = TextPairs(backbone.tokenizer, 96).groups(GROUPS)
    batch = flatten(groups)
    with backbone.view("reward") as view:
        view.scalar_head.pooling = "mean"
        view.scores(batch).square().sum().backward()
    own = backbone.trainable_parameters("reward")
    assert all(p.grad is not None for p in own.values())
    planned = parameter_counts(config, tmp_path)
    assert backbone.parameter_counts("reward") == (planned[0] + 33, planned[1] + 33)  # the head
    perturb(backbone, "reward")
    with torch.no_grad(), backbone.view("reward") as view:
        scores = view.scores(batch)
    backbone.save("reward", tmp_path / "saved")
    again = Backbone.load(config, tmp_path, seed=7)
    again.add("reward", source=tmp_path / "saved", trainable=False, head=True)
    with torch.no_grad(), again.view("reward") as view:
        assert view.scalar_head.pooling == "mean"
        torch.testing.assert_close(view.scores(batch), scores, rtol=0, atol=1e-6)
    plain, _ = load_merged(tmp_path / "saved", tmp_path)  # what `alignlab export --merge` writes
    with torch.no_grad(), again.view("reward") as view:
        found = view.scalar_head(one_at_a_time(plain, groups, "mean"))
    torch.testing.assert_close(found, scores, rtol=0, atol=1e-5)


def test_an_encoder_predicts_no_tokens(tmp_path: Path) -> None:
    make_encoder("bert", tmp_path)
    backbone = Backbone.load(backbone_config(path=str(tmp_path)), tmp_path)
    backbone.add("reward", source=None, trainable=False, head=True)
    with backbone.view("reward") as view, pytest.raises(ValueError, match="scores whole rows"):
        view.values(make_batch())


def test_packed_rows_by_hand() -> None:
    # [CLS] shared: 1 | 3 | 2 tokens, then 1 | 2: rows of 4, 3 and 3 tokens, one after another
    plan = row_plan(make_batch([(1, (3, 2)), (1, (2,))]).spans, "cpu")
    assert plan.index.tolist() == [0, 1, 2, 3, 0, 4, 5, 6, 7, 8]
    assert plan.position.tolist() == [0, 1, 2, 3, 0, 1, 2, 0, 1, 2]
    assert plan.row.tolist() == [0, 0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert plan.starts.tolist() == [0, 4, 7]
    [block] = own_rows((3, 1), "cpu").blocks  # every token of a row sees all of it, nothing else
    assert block.mask is not None
    assert block.mask[:, 0, 0].tolist() == [[True, True, True], [True, False, False]]


def test_rows_are_those_of_the_tokenizer() -> None:
    tokenizer = wordpiece()
    pairs = TextPairs(tokenizer, 64)
    for prompt, completion in (("the lazy dog", "quick fox"), ("", "quick fox")):
        [group] = pairs.groups([PromptGroup(prompt, (completion,))])
        texts = (prompt, completion) if prompt else (completion,)
        assert [*group.prompt, *group.completions[0]] == tokenizer(*texts)["input_ids"]
    [group] = pairs.groups([PromptGroup("say [SEP] now", ("fox",))])
    assert list(group.completions[0]).count(tokenizer.sep_token_id) == 2  # the user wrote text
    marked = group.completions[0][group.masks[0]]
    assert marked.tolist() == tokenizer("fox")["input_ids"][1:]
    messages = ({"role": "user", "content": "the dog"},)
    [chat] = pairs.groups([PromptGroup(messages, (({"role": "assistant", "content": "fox"},),))])
    [plain] = pairs.groups([PromptGroup("the dog", ("fox",))])
    assert np.array_equal(chat.completions[0], plain.completions[0])


def test_cuts_do_not_depend_on_siblings() -> None:
    # 13 tokens: 3 special ones leave 10; the prompt keeps its last 5, a completion its first 5
    tokenizer = wordpiece()
    pairs = TextPairs(tokenizer, 13)
    words, short = "the quick brown fox jumps over a lazy", "the quick"
    [group] = pairs.groups([PromptGroup(words, (words, short))])
    ids = tokenizer(words)["input_ids"][1:-1]
    sep = tokenizer.sep_token_id
    assert group.completions[0].tolist() == [*ids[-5:], sep, *ids[:5], sep]
    [alone] = pairs.groups([PromptGroup(words, (short,))])
    assert np.array_equal(alone.completions[0], group.completions[1])
    assert group.truncated == (True, False)
    assert group.meta["prompt_cut"] == len(ids) - 5
    assert group.meta["completion_cut"] == (len(ids) - 5, 0)
    [room] = pairs.groups([PromptGroup("the", (words,))])  # a short prompt leaves more
    assert room.completions[0].tolist() == [ids[0], sep, *ids[:9], sep][:12]


def test_what_a_checkpoint_has_beside_the_encoder_is_not_counted(tmp_path: Path) -> None:
    """A masked-language model's head and a pooler are in many files, and not in the model."""
    from transformers import BertForPreTraining

    tokenizer = wordpiece()
    BertForPreTraining(encoder_config("bert", tokenizer)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    config = backbone_config(path=str(tmp_path))
    backbone = Backbone.load(config, tmp_path)
    backbone.add("reward", source=None, trainable=True, head=True)
    total, _ = parameter_counts(config, tmp_path)
    assert backbone.parameter_counts("reward")[0] == total + 33
    assert not any("cls" in n or "pooler" in n for n in base_shapes(config, tmp_path))


def test_dimensions_of_encoders(tmp_path: Path) -> None:
    make_encoder("bert", tmp_path / "bert")
    make_encoder("modernbert", tmp_path / "modern")
    found: list[Dimensions] = [
        dimensions_of(backbone_config(path=str(tmp_path / name)), tmp_path)
        for name in ("bert", "modern")
    ]
    assert [(d.layers, d.hidden, d.inner, d.gated) for d in found] == [
        (2, 32, 48, False),
        (3, 32, 48, True),
    ]
    assert all(d.headless and d.heads == 4 and d.vocabulary == len(wordpiece()) for d in found)
    assert found[0].matrices == 2 * (4 * 32 * 32 + 2 * 32 * 48)


def test_what_does_not_go_together_is_refused(tmp_path: Path) -> None:
    make_encoder("bert", tmp_path)

    def refused(message: str, pooling: Any = None, **changes: Any) -> None:
        with pytest.raises(ConfigError, match=message):
            require_scorer(backbone_config(**{"path": str(tmp_path), **changes}), tmp_path, pooling)

    refused("layout=grouped shares a prompt among its completions", layout="grouped")
    refused(
        "adapter=prompt is made for decoders",
        adapter=PromptTuning(tokens=4, text=None, start="random"),
    )
    refused("pooling=mean: a decoder's score is read at its last token", "mean", path="random:tiny")
    make_encoder("deberta", tmp_path / "old")
    refused("backbone.dtype=auto: a deberta", path=str(tmp_path / "old"), dtype="auto")
    with pytest.raises(ConfigError, match="the prompt would see all of them"):
        Backbone.load(backbone_config(path=str(tmp_path), layout="grouped"), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    from safetensors.torch import save_file

    save_file({"encoder.layer.0.attention.self.query.bias": torch.zeros(32)},
              tmp_path / "model.safetensors")  # fmt: skip
    broken = Backbone.load(backbone_config(path=str(tmp_path)), tmp_path)
    with pytest.raises(ConfigError, match="its weights are not all there"):
        broken.add("reward", source=None, trainable=True, head=True)


@pytest.mark.slow
@pytest.mark.parametrize("pipeline", ["sft", "preference", "instructgpt"])
def test_a_policy_cannot_be_an_encoder(pipeline: str, tmp_path: Path) -> None:
    make_encoder("bert", tmp_path / "model")
    words = [f"pipeline={pipeline}", "experiment=smoke", "backbone=hub",
             f"backbone.path={tmp_path / 'model'}"]  # fmt: skip
    with pytest.raises(ConfigError, match=r"stages\.sft.*a bert is an encoder.*reward model"):
        Plan.from_configs([compose(words)], Store(tmp_path / "runs"))


@pytest.mark.slow
def test_the_plan_takes_an_encoder_as_reward_model(tmp_path: Path) -> None:
    make_encoder("bert", tmp_path / "model")
    words = ["pipeline=instructgpt", "experiment=smoke", "+backbone@stages.reward.backbone=hub",
             f"stages.reward.backbone.path={tmp_path / 'model'}"]  # fmt: skip
    store = Store(tmp_path / "runs")
    with pytest.raises(ConfigError, match=r"cannot start from a policy.*~stages\.reward"):
        Plan.from_configs([compose(words)], store)
    plan = Plan.from_configs([compose([*words, "~stages.reward.inputs.init"])], store)
    [node] = [node for node in plan.nodes.values() if node.kind == "reward"]
    config = backbone_config(path=str(tmp_path / "model"))
    total, _ = parameter_counts(config, tmp_path)
    assert (node.estimate.params_total, node.estimate.params_trained) == (total, total)
    stage = node.stage
    annotate = next(n.stage for n in plan.nodes.values() if n.kind == "annotate")
    workload = node.estimate.workload
    assert workload is not None
    assert workload.update is not None
    # a row of its own for every completion: K (prompt + completion), not prompt + K completions
    row = annotate.max_prompt + annotate.max_completion
    assert workload.update.group == annotate.completions * row
    assert workload.update.row == row
    assert workload.update.targets == 0  # nothing is predicted
    assert stage.inputs == {"annotations": "annotate"}
    [ppo] = [node for node in plan.nodes.values() if node.kind == "ppo"]
    assert ppo.estimate.workload is not None
    assert ppo.estimate.workload.apart == 4 * total  # beside the policy, in float32
    assert ppo.estimate.workload.frozen == 1  # the reference alone is of the policy's own kind


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bert", "modernbert", "deberta-v2"])
def test_recomputed_activations_give_the_same_gradients(kind: str, tmp_path: Path) -> None:
    make_encoder(kind, tmp_path)
    found = []
    for checkpointing in (False, True):
        config = backbone_config(path=str(tmp_path), gradient_checkpointing=checkpointing)
        backbone = Backbone.load(config, tmp_path)
        backbone.add("reward", source=None, trainable=True, head=True)
        backbone.train_mode(True)  # with the dropout of its configuration
        batch = flatten(TextPairs(backbone.tokenizer, 96).groups(GROUPS))
        torch.manual_seed(3)
        with backbone.view("reward") as view:
            view.scores(batch).sum().backward()
        found.append(backbone.trainable_parameters("reward"))
    for name, parameter in found[0].items():
        assert parameter.grad is not None, name
        torch.testing.assert_close(found[1][name].grad, parameter.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bert", "modernbert", "deberta-v2"])
def test_bfloat16_rounds_scores_a_little(kind: str, tmp_path: Path) -> None:
    make_encoder(kind, tmp_path)
    found = []
    for dtype in ("float32", "bfloat16"):
        backbone = Backbone.load(backbone_config(4, path=str(tmp_path), dtype=dtype), tmp_path)
        backbone.add("reward", source=None, trainable=False, head=True)
        batch = flatten(TextPairs(backbone.tokenizer, 90).groups(GROUPS))
        with torch.no_grad(), backbone.view("reward") as view:
            found.append(view.scores(batch))
    gap = float((found[0] - found[1]).abs().max())
    assert 0 < gap < 0.05
