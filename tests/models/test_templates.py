"""The chat template of a backbone: named in one place and kept with every run."""

from __future__ import annotations

from dataclasses import replace

import pytest
from model_cases import backbone_config

from alignlab.errors import ConfigError
from alignlab.models import templates
from alignlab.models.backbone import Backbone
from alignlab.models.templates import template_hash, template_identity, use_template
from alignlab.models.tiny import byte_tokenizer

CHAT = [
    {"role": "system", "content": "be kind"},
    {"role": "user", "content": "a film"},
    {"role": "assistant", "content": "was good"},
]


def written(tokenizer, messages=CHAT, **options):
    return tokenizer.apply_chat_template(messages, tokenize=False, **options)


def test_null_leaves_the_tokenizers_own() -> None:
    own = byte_tokenizer().chat_template
    assert use_template(byte_tokenizer(), None).chat_template == own


def test_dialogue_writes_roles_as_text_and_ends_answers_with_eos() -> None:
    tokenizer = use_template(byte_tokenizer(), "dialogue")
    assert written(tokenizer) == (
        "System: be kind\n\nUser: a film\n\nAssistant: was good<|eos|>\n\n"
    )
    asked = written(tokenizer, CHAT[:2], add_generation_prompt=True)
    assert asked == "System: be kind\n\nUser: a film\n\nAssistant:"
    assert written(tokenizer).startswith(asked)


def test_chatml_needs_its_tokens() -> None:
    with pytest.raises(ConfigError, match=r"no token <\|im_start\|> and no <\|im_end\|>.*dialogue"):
        use_template(byte_tokenizer(), "chatml")
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    assert written(use_template(tokenizer, "chatml"), CHAT[1:]) == (
        "<|im_start|>user\na film<|im_end|>\n<|im_start|>assistant\nwas good<|im_end|>\n"
    )


@pytest.mark.parametrize("name", ["dialogue", "chatml"])
def test_the_bank_marks_what_the_assistant_says(name) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    use_template(tokenizer, name)
    made = tokenizer.apply_chat_template(
        CHAT, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    ids = [i for i, on in zip(made["input_ids"], made["assistant_masks"], strict=True) if on]
    assert tokenizer.decode(ids).strip() in ("was good<|eos|>", "was good<|im_end|>")


def test_a_file_of_ones_own(tmp_path) -> None:
    file = tmp_path / "mine.jinja"
    file.write_text("{{ messages | length }}", encoding="utf-8")
    assert written(use_template(byte_tokenizer(), str(file))) == "3"
    first = template_identity(str(file))
    file.write_text("{{ messages | length }}!", encoding="utf-8")
    assert template_identity(str(file)) != first  # a changed file is another stage key
    file.write_text(" ")
    with pytest.raises(ConfigError, match="is empty"):
        use_template(byte_tokenizer(), str(file))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("chatm", r"there are dialogue, chatml, .*training.*Did you mean 'chatml'"),
        ("gone.jinja", r"gone\.jinja: cannot be read"),
    ],
)
def test_a_template_that_is_not_there_is_refused(name, message) -> None:
    for use in (lambda: use_template(byte_tokenizer(), name), lambda: template_identity(name)):
        with pytest.raises(ConfigError, match=message):
            use()


def test_identities_differ() -> None:
    names = (None, "dialogue", "chatml", "training")
    assert len({template_identity(name) for name in names}) == 4


@pytest.mark.slow  # imports trl
def test_training_takes_the_version_of_trl_or_says_what_it_knows() -> None:
    from importlib.resources import files

    folder = files("trl") / "chat_templates"
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (folder / "qwen3.jinja").read_text(encoding="utf-8")
    use_template(tokenizer, "training")
    assert tokenizer.chat_template == (folder / "qwen3_training.jinja").read_text(encoding="utf-8")
    again = template_hash(use_template(tokenizer, "training"))  # as in the stages that follow
    assert again == template_hash(tokenizer)
    tokenizer.chat_template = "{{ messages }}"
    with pytest.raises(ConfigError, match=r"deepseekv3.*qwen3.*by their exact text"):
        use_template(tokenizer, "training")
    tokenizer.chat_template = None
    with pytest.raises(ConfigError, match="no chat template of its own"):
        use_template(tokenizer, "training")


@pytest.fixture
def trained(tmp_path, cache):
    """A run folder whose model was made with `dialogue`."""
    config = replace(backbone_config(rank=2), template="dialogue")
    backbone = Backbone.load(config, cache)
    backbone.add("policy", source=None, trainable=True)
    backbone.save("policy", tmp_path / "sft-1" / "model")
    return tmp_path / "sft-1" / "model"


@pytest.mark.parametrize("template", ["dialogue", None])
def test_a_run_hands_its_template_on(trained, cache, template) -> None:
    backbone = Backbone.load(replace(backbone_config(rank=2), template=template), cache)
    backbone.add("policy", source=trained, trainable=True)
    assert backbone.tokenizer.chat_template == templates.DIALOGUE


def test_another_template_than_the_runs_is_refused(trained, cache, tmp_path) -> None:
    file = tmp_path / "other.jinja"
    file.write_text("{{ messages }}", encoding="utf-8")
    backbone = Backbone.load(replace(backbone_config(rank=2), template=str(file)), cache)
    mine = template_hash(backbone.tokenizer)
    theirs = templates._hash(templates.DIALOGUE)
    with pytest.raises(ConfigError, match=rf"sft-1 was made with.*{theirs}.*this stage.*{mine}"):
        backbone.add("policy", source=trained, trainable=True)


def test_two_runs_with_different_templates_do_not_meet(trained, cache, tmp_path) -> None:
    plain = Backbone.load(backbone_config(rank=2), cache)
    plain.add("reward", source=None, trainable=True, head=True)
    plain.save("reward", tmp_path / "reward-1" / "model")
    backbone = Backbone.load(backbone_config(rank=2), cache)
    backbone.add("policy", source=trained, trainable=False)
    backbone.drop("policy")  # as a stage drops its reference
    with pytest.raises(ConfigError, match="reward-1 was made with"):
        backbone.add("reward", source=tmp_path / "reward-1" / "model", trainable=False, head=True)
