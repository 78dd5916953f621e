from __future__ import annotations

import pytest
import torch
from model_cases import architecture, make_batch, random_model

from alignlab.errors import ConfigError
from alignlab.models.layout import (
    GROUPED,
    PADDED,
    hidden_states,
    layout_for,
    measure,
    padded_plan,
    window_of,
)


@pytest.mark.parametrize("model_type", sorted({*GROUPED, *PADDED}))
def test_the_table_says_what_is_measured(model_type) -> None:
    expected = "grouped" if model_type in GROUPED else "padded"
    layout, reason = measure(architecture(model_type))
    assert layout == expected, reason


def test_an_unknown_architecture_is_measured() -> None:
    layout, reason = layout_for(architecture("arcee"))
    assert layout == "grouped"
    assert "measured" in reason
    layout, reason = layout_for(architecture("gpt_oss", num_local_experts=4, head_dim=8))
    assert layout == "padded"
    assert "s_aux" in reason


@pytest.mark.parametrize("model_type", ["bloom", "mamba", "llama"])
def test_padded_rows_equal_one_row_at_a_time(model_type) -> None:
    batch = make_batch()
    model = random_model(architecture(model_type)) if model_type != "bloom" else None
    if model is None:
        from transformers import AutoModelForCausalLM

        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(architecture("bloom")).eval()
    with torch.no_grad():
        hidden = hidden_states(model, batch, "padded")
        for span in batch.spans:
            for own in span.completions:
                row = torch.cat([batch.input_ids[slice(*place)] for place in (span.prompt, own)])
                alone = model.base_model(row[None])[0][0]
                expected = alone[span.prompt[1] - span.prompt[0] :]
                torch.testing.assert_close(hidden[slice(*own)], expected, rtol=0, atol=1e-5)


def test_padded_plan_by_hand() -> None:
    # p p | a a a | b, then q | c c: three rows of at most five tokens.
    plan = padded_plan(make_batch([(2, (3, 1)), (1, (2,))]).spans, "cpu")
    assert plan.row_index.tolist() == [[0, 1, 2, 3, 4], [0, 1, 5, 5, 5], [6, 7, 8, 8, 8]]
    assert plan.mask.tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 1, 0, 0]]
    assert plan.flat_index.tolist() == [0, 1, 2, 3, 4, 7, 10, 11, 12]


def test_window_of() -> None:
    assert window_of(architecture("mistral", sliding_window=16)) == 16
    assert window_of(architecture("mistral", sliding_window=None)) is None
    assert window_of(architecture("qwen2", sliding_window=16, use_sliding_window=False)) is None
    assert "over 16 tokens" in layout_for(architecture("mistral", sliding_window=16))[1]


def test_rows_over_the_window_take_the_padded_layout(tmp_path) -> None:
    from alignlab.models.view import View

    model = random_model(architecture("mistral", sliding_window=16))
    view = View("policy", model, None, layout="grouped", dtype=torch.float32)
    batch = make_batch([(12, (9, 3))])
    with torch.no_grad():
        ours = view.logps(batch)
        prompt, first, second = batch.input_ids.split([12, 9, 3])
        rows = [torch.cat([prompt, own]) for own in (first, second)]
        theirs = torch.cat(
            [
                model(r[None]).logits[0, 11:-1].log_softmax(-1).gather(1, r[12:, None])[:, 0]
                for r in rows
            ]
        )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_a_forced_layout_that_does_not_fit_is_refused(cache, tmp_path) -> None:
    from model_cases import backbone_config

    from alignlab.models.backbone import Backbone
    from alignlab.models.tiny import byte_tokenizer

    config = architecture("bloom", vocab_size=259)
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="ALiBi"):
        Backbone.load(backbone_config(path=str(tmp_path), layout="grouped"), cache)
    backbone = Backbone.load(backbone_config(path=str(tmp_path)), cache)
    assert backbone.layout[0] == "padded"
    backbone.add("policy", source=None, trainable=False)
    with torch.no_grad(), backbone.view("policy") as view:
        assert torch.isfinite(view.logps(make_batch())).all()
