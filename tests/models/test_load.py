from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from alignlab.errors import ConfigError
from alignlab.models.load import make_once, resolve


def test_the_tiny_model_is_the_same_every_time(cache, tmp_path) -> None:
    first, second = resolve("random:tiny", cache), resolve("random:tiny", tmp_path)
    names = sorted(file.name for file in first.iterdir())
    assert names == sorted(file.name for file in second.iterdir())
    assert "model.safetensors" in names
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_the_tiny_tokenizer(cache) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(resolve("random:tiny", cache))
    text = "Grüße, 你好 \n\t42  <tag>"
    ids = tokenizer(text).input_ids
    assert ids[0] == tokenizer.bos_token_id == 1
    assert len(ids) == 1 + len(text.encode())
    assert tokenizer.decode(ids[1:]) == text
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, len(tokenizer)) == (0, 2, 259)
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hi"}], add_generation_prompt=True, tokenize=False
    )
    assert chat == "<|bos|>user: hi<|eos|>assistant: "


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("random:tny", "Did you mean 'random:tiny'"),
        ("wheel:smollm3", "Did you mean 'wheel:smollm2'"),
        ("package:review_lm", "Did you mean 'package:reviews_lm'"),
        ("./nowhere", "no such folder"),
    ],
)
def test_unknown_models_are_refused(path, message, tmp_path) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve(path, tmp_path)


def test_a_model_that_no_hub_gives_is_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ConfigError, match="nor a model that can be had"):
        resolve("nobody/no-such-model", tmp_path)


def test_a_folder_must_hold_a_model(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"no config\.json"):
        resolve(str(tmp_path), tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert resolve(str(tmp_path), tmp_path) == tmp_path


def test_a_missing_packaged_model_says_how_to_make_it(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("alignlab.models.load.ASSETS", tmp_path)
    with pytest.raises(ConfigError, match="pipeline=pretrain"):
        resolve("package:reviews_lm", tmp_path)


def test_made_once_among_many_and_whole_or_not_at_all(tmp_path) -> None:
    made = []

    def make(folder) -> None:
        made.append(folder)
        (folder / "file").write_text("x")

    def fail(folder) -> None:
        (folder / "half").write_text("x")
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        make_once(tmp_path / "a", fail)
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == []
    threads = [threading.Thread(target=make_once, args=(tmp_path / "a", make)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["file"]


@pytest.mark.slow
@pytest.mark.parametrize("module", ["load", "memory"])
def test_configuration_imports_no_torch(module) -> None:
    code = f"import sys, alignlab.models.{module}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.slow
def test_full_parameters_need_no_peft(cache) -> None:
    # peft takes seconds to import; training every parameter must not wait for it.
    code = f"""
import sys
sys.path.insert(0, {str(__file__.rsplit("/", 1)[0])!r})
from pathlib import Path
from model_cases import backbone_config, make_batch
from alignlab.models.backbone import Backbone
backbone = Backbone.load(backbone_config(), Path({str(cache)!r}))
backbone.add("policy", source=None, trainable=True, head=True)
with backbone.view("policy") as view:
    view.logps(make_batch()).sum().backward()
backbone.save("policy", Path({str(cache)!r}) / "saved")
print("peft" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "False"


def test_without_weights_a_hub_model_is_its_tokenizer_and_configuration(monkeypatch, tmp_path):
    import huggingface_hub

    asked: list[list[str]] = []

    def snapshot_download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append(allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    resolve("some/model", tmp_path, weights=False)
    resolve("some/model", tmp_path)
    assert not any("safetensors" in pattern for pattern in asked[0])
    assert {"*.json", "*.model", "*.jinja"} <= set(asked[0])
    assert set(asked[1]) == {*asked[0], "*.safetensors"}
