"""Small real tokenizers (trained here in milliseconds) and chat templates of three families.

The gallery of silent bugs uses them too.
"""

from __future__ import annotations

import pytest

CHATML = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}"
    "<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{% for m in messages %}{% set text = '<|start_header_id|>' + m['role'] + "
    "'<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.first %}{% set text = bos_token + text %}{% endif %}{{ text }}{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
    "{{ '<start_of_turn>' + role + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
TEXT = "the film was good and the acting was very good . a bad bad movie\n\nuser assistant model "


def make_tokenizer(bos, eos, extra=(), *, adds_bos, template=None, prefix_space=False):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<|pad|>", *dict.fromkeys((bos, eos, *extra))]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT] * 4, trainer)
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, pad_token="<|pad|>"
    )
    fast.chat_template = template
    return fast


@pytest.fixture(scope="session")
def tokenizer_factory():
    return make_tokenizer


@pytest.fixture(scope="session")
def plain_tokenizer():
    """Like reviews_lm: byte level, adds BOS, no chat template."""
    return make_tokenizer("<|bos|>", "<|eos|>", adds_bos=True)


@pytest.fixture(scope="session")
def chatml_tokenizer():
    """Like SmolLM2-Instruct: no BOS of its own, BOS and EOS are the turn marks."""
    return make_tokenizer("<|im_start|>", "<|im_end|>", adds_bos=False, template=CHATML)


@pytest.fixture(scope="session")
def llama3_tokenizer():
    """Like a Llama 3 base: EOS is not the end of a turn."""
    extra = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    return make_tokenizer(
        "<|begin_of_text|>", "<|end_of_text|>", extra, adds_bos=True, template=LLAMA3
    )


@pytest.fixture(scope="session")
def gemma_tokenizer():
    """Like Gemma: BOS in template and tokenizer, `<end_of_turn>` apart from EOS."""
    extra = ("<start_of_turn>", "<end_of_turn>")
    return make_tokenizer("<bos>", "<eos>", extra, adds_bos=True, template=GEMMA)
