from __future__ import annotations

from typing import Any

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


@pytest.mark.slow
@pytest.mark.conformance(
    "architecture", "every type in the tables", "measuring gives the layout that the table names"
)
@pytest.mark.parametrize("model_type", sorted({*GROUPED, *PADDED}))
def test_the_table_says_what_is_measured(model_type) -> None:
    expected = "grouped" if model_type in GROUPED else "padded"
    layout, reason = measure(architecture(model_type))
    assert layout == expected, reason


@pytest.mark.conformance(
    "architecture",
    "any other type",
    "is measured on a small random model when it is first met (arcee: flat, gpt_oss: padded)",
)
def test_an_unknown_architecture_is_measured() -> None:
    layout, reason = layout_for(architecture("arcee"))
    assert layout == "grouped"
    assert "measured" in reason
    layout, reason = layout_for(architecture("gpt_oss", num_local_experts=4, head_dim=8))
    assert layout == "padded"
    assert "s_aux" in reason


def plain_model(model_type: str, **changes: Any) -> Any:
    """A random model with the attention that its class chooses, float32, in evaluation mode."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(architecture(model_type, **changes)).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    return model


def needs_padding(model_type: str, *, name: str = "", **changes: Any) -> Any:
    claim = f"needs the padded layout: {PADDED.get(model_type, 'none, but may use it')}"
    mark = pytest.mark.conformance("architecture", name or model_type, claim)
    return pytest.param(model_type, changes, id=name or model_type, marks=mark)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model_type", "changes"),
    [
        *(needs_padding(model_type) for model_type in sorted(PADDED)),
        needs_padding("falcon", name="falcon (new decoder)", new_decoder_architecture=True),
        needs_padding("falcon", name="falcon (ALiBi)", alibi=True),
        pytest.param("llama", {}, id="llama"),
    ],
)
def test_padded_rows_equal_one_row_at_a_time(model_type: str, changes: dict[str, Any]) -> None:
    """In value and gradient, whatever is in the padding."""
    batch = make_batch()
    model = plain_model(model_type, **changes)
    parameters = dict(model.base_model.named_parameters())
    hidden = hidden_states(model, batch, "padded")
    found, expected = [], []
    for span in batch.spans:
        for own in span.completions:
            row = torch.cat([batch.input_ids[slice(*place)] for place in (span.prompt, own)])
            alone = model.base_model(row[None])[0][0]
            expected.append(alone[span.prompt[1] - span.prompt[0] :])
            found.append(hidden[slice(*own)])
            assert expected[-1].abs().max() > 0.5
    torch.testing.assert_close(torch.cat(found), torch.cat(expected), rtol=0, atol=1e-5)
    seed = torch.randn(torch.cat(found).shape)
    gradients = [
        torch.autograd.grad((torch.cat(parts) * seed).sum(), parameters.values(), allow_unused=True)
        for parts in (found, expected)
    ]
    for name, mine, other in zip(parameters, *gradients, strict=True):
        assert (mine is None) == (other is None), name
        if mine is not None:
            assert (mine - other).abs().max() <= 1e-5 * max(1.0, float(other.abs().max())), name


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


WINDOWS = {
    "mistral": {"sliding_window": 16},
    "mixtral": {"sliding_window": 16},
    "qwen2": {"sliding_window": 16, "use_sliding_window": True, "max_window_layers": 1},
    "qwen3": {"sliding_window": 16, "use_sliding_window": True, "max_window_layers": 1},
    "gemma2": {"sliding_window": 16},
    "gemma3_text": {"sliding_window": 16, "sliding_window_pattern": 2},
    "phi3": {"sliding_window": 16},
    "olmo3": {"sliding_window": 16},
    "cohere2": {"sliding_window": 16},
}


def windowed(model_type: str) -> Any:
    claim = "rows over the window are padded, others flat: value and gradient of one row at a time"
    name = f"{model_type} (sliding window)"
    mark = pytest.mark.conformance("architecture", name, claim)
    return pytest.param(model_type, id=model_type, marks=mark)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", [windowed(model_type) for model_type in WINDOWS])
def test_rows_over_the_window_take_the_padded_layout(
    model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from alignlab.models import view as views
    from alignlab.models.view import View

    taken = []
    passed = views.hidden_states
    monkeypatch.setattr(
        views, "hidden_states", lambda *given: (taken.append(given[2]), passed(*given))[1]
    )
    model = random_model(architecture(model_type, **WINDOWS[model_type]))
    plain = as_transformers_has_it(architecture(model_type, **WINDOWS[model_type]))
    plain.load_state_dict(model.state_dict())
    view = View("policy", model, None, layout="grouped", dtype=torch.float32)
    for sizes in ((12, (9, 3)), (11, (5, 3))):  # rows of 21 and 15 tokens, of 16 and 14
        batch = make_batch([sizes])
        ours = view.logps(batch)
        prompt, *own = batch.input_ids.split([sizes[0], *sizes[1]])
        theirs = torch.cat([alone(plain, torch.cat([prompt, part]), sizes[0]) for part in own])
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
        seed = torch.randn(len(ours))
        names = [name for name, _ in model.named_parameters()]
        gradients = [
            torch.autograd.grad((x * seed).sum(), of.parameters(), allow_unused=True)
            for x, of in ((ours, model), (theirs, plain))
        ]
        for name, mine, other in zip(names, *gradients, strict=True):
            if other is not None and other.any():
                assert (mine - other).abs().max() <= 1e-5 * max(1.0, float(other.abs().max())), name
    assert taken == ["padded", "grouped"]
    # the window matters: with a wider one the long row's numbers are others
    wide = as_transformers_has_it(
        architecture(model_type, **{**WINDOWS[model_type], "sliding_window": 64})
    )
    wide.load_state_dict(model.state_dict())
    long = make_batch([(12, (9,))]).input_ids
    assert (alone(wide, long, 12) - alone(plain, long, 12)).abs().max() > 1e-3


def as_transformers_has_it(config: Any) -> Any:
    """A model whose attention is written out in transformers ("eager")."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


def alone(model: Any, row: torch.Tensor, prompt: int) -> torch.Tensor:
    """Log-probabilities of a row's tokens after its prompt, by the plain model."""
    logits = model(row[None]).logits[0, prompt - 1 : -1].float()
    return logits.log_softmax(-1).gather(1, row[prompt:, None])[:, 0]


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
