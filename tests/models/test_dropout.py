"""Residual dropout: the rates per layer, where it acts and when."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM as Model
from transformers import GPT2Config, GPTNeoXConfig, LlamaConfig, MixtralConfig, OPTConfig

from alignlab.errors import ConfigError
from alignlab.models.dropout import (
    ResidualDropout,
    add_residual_dropout,
    set_attention_dropout,
)

LIMA = ResidualDropout(bottom=0.0, top=0.3)


def test_rates_rise_linearly():
    # 0.0, 0.1, 0.2, 0.3
    assert LIMA.rates(4) == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert LIMA.rates(1) == [0.3]
    assert ResidualDropout(bottom=0.2, top=0.2).rates(3) == pytest.approx([0.2] * 3)


def small(name: str):
    wide = {"vocab_size": 11, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    llama = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
    configs = {
        "llama": lambda: LlamaConfig(**wide, **llama, num_hidden_layers=3),
        "gpt2": lambda: GPT2Config(**wide, n_embd=8, n_layer=3, n_head=2),
        "neox": lambda: GPTNeoXConfig(**wide, **llama, num_hidden_layers=3),
        "opt": lambda: OPTConfig(
            **wide,
            hidden_size=8,
            ffn_dim=8,
            num_attention_heads=2,
            num_hidden_layers=3,
            word_embed_proj_dim=8,
        ),
        "experts": lambda: MixtralConfig(**wide, **llama, num_hidden_layers=3),
    }
    torch.manual_seed(0)
    config = configs[name]()
    for rate in ("resid_pdrop", "embd_pdrop", "attn_pdrop", "dropout", "hidden_dropout"):
        if hasattr(config, rate):
            setattr(config, rate, 0.0)  # the architecture's own dropout is not what is looked at
    return Model.from_config(config)


IDS = torch.tensor([[1, 5, 3, 7, 9, 4]])


@pytest.mark.parametrize("name", ["llama", "gpt2", "neox", "opt"])
def test_it_acts_while_training_only(name):
    model = small(name)
    with torch.no_grad():
        plain = model.eval()(IDS).logits
        assert torch.equal(model.train()(IDS).logits, plain)  # nothing drops before
        assert add_residual_dropout(model, LIMA) == 6  # two outputs of three layers
        assert torch.equal(model.eval()(IDS).logits, plain)
        assert not torch.allclose(model.train()(IDS).logits, plain)


def test_each_layer_drops_at_its_own_rate():
    model = small("llama").train()
    add_residual_dropout(model, ResidualDropout(bottom=0.0, top=0.8))
    torch.manual_seed(1)
    shares = []
    for layer in model.model.layers:
        with torch.no_grad():
            layer.mlp.down_proj.weight.fill_(1.0)
            out = layer.mlp.down_proj(torch.ones(1, 4000, 8))  # 8 for each kept element
        shares.append(float((out == 0).float().mean()))
        kept = out[out != 0]
        rate = (0.0, 0.4, 0.8)[len(shares) - 1]
        assert kept.min() == pytest.approx(8 / (1 - rate))  # the expectation stays 8
    assert shares == pytest.approx([0.0, 0.4, 0.8], abs=0.01)  # 32,000 draws: ±0.003


def test_an_unknown_layer_is_refused():
    with pytest.raises(ConfigError, match="residual_dropout"):
        add_residual_dropout(small("experts"), LIMA)
    with pytest.raises(ConfigError, match="residual_dropout"):
        add_residual_dropout(torch.nn.Linear(2, 2), LIMA)


@pytest.mark.parametrize("name", ["llama", "gpt2", "neox", "opt"])
def test_attention_drops_weights_while_training_only(name):
    model = small(name)
    with torch.no_grad():
        plain = model.eval()(IDS).logits
        assert set_attention_dropout(model, 0.5) == 3
        assert torch.equal(model.eval()(IDS).logits, plain)
        torch.manual_seed(0)
        dropped = model.train()(IDS).logits
        # the first token attends to itself alone: its weight is 0 or 1/(1 - 0.5)
        assert not torch.allclose(dropped, plain)
        assert set_attention_dropout(model, 0.0) == 3
        assert torch.equal(model.train()(IDS).logits, plain)


def test_a_quarter_of_the_attention_weights_is_dropped():
    model = small("llama").train()
    layer = model.model.layers[0].self_attn
    set_attention_dropout(model, 0.25)
    assert [block.self_attn.attention_dropout for block in model.model.layers] == [0.25] * 3
    with torch.no_grad():
        layer.v_proj.weight.fill_(1 / 8)
        layer.o_proj.weight.copy_(torch.eye(8))
        states = torch.ones(4000, 1, 8)  # one token: its only weight is 1, its value 1
        places = torch.zeros(4000, 1, dtype=torch.int64)
        rotary = model.model.rotary_emb(states, places)
        out = layer(states, rotary, None)[0][:, 0, ::4]  # one of either head's channels
    assert float((out == 0).float().mean()) == pytest.approx(0.25, abs=0.02)  # 8,000 draws: 0.005
    assert out[out != 0].unique().tolist() == pytest.approx([1 / 0.75])


def test_attention_that_is_not_known_is_refused():
    with pytest.raises(ConfigError, match="attention_dropout"):
        set_attention_dropout(torch.nn.ModuleList([torch.nn.Linear(2, 2)] * 2), 0.1)
    with pytest.raises(ConfigError, match="attention_dropout"):
        set_attention_dropout(torch.nn.Linear(2, 2), 0.1)
