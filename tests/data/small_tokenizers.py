"""Small real tokenizers (trained here in milliseconds) and chat templates of many families.

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
LLAMA2 = (  # the system message goes into the first user turn; no generation prompt
    "{% if messages[0]['role'] == 'system' %}"
    "{% set rest = messages[1:] %}{% set opening = '<<SYS>>\n' + messages[0]['content'] +"
    " '\n<</SYS>>\n\n' %}{% else %}{% set rest = messages %}{% set opening = '' %}{% endif %}"
    "{% for m in rest %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('user and assistant must alternate') }}{% endif %}"
    "{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + (opening if loop.first else '') + "
    "m['content'] | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)
ZEPHYR = (  # EOS ends every message, the user's too
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
MISTRAL = (  # the system message goes into the last user turn, so earlier turns change
    "{{ bos_token }}{% set ns = namespace(system='') %}"
    "{% for m in messages %}{% if m['role'] == 'system' %}{% set ns.system = m['content'] %}"
    "{% endif %}{% endfor %}"
    "{% set last = messages | selectattr('role', 'equalto', 'user') | list | last %}"
    "{% for m in messages %}{% if m['role'] == 'user' %}"
    "{{ '[INST] ' + (ns.system + '\n\n' if ns.system and m == last else '') + m['content'] + "
    "'[/INST]' }}{% elif m['role'] == 'assistant' %}{{ ' ' + m['content'] + eos_token }}"
    "{% endif %}{% endfor %}"
)
THINKING = (  # like Qwen 3: thoughts of turns before the last question are dropped
    "{% set ns = namespace(last=-1) %}{% for m in messages %}{% if m['role'] == 'user' %}"
    "{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' and loop.index0 > ns.last and '</think>' not in m['content'] %}"
    "{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ m['content'] if loop.index0 > ns.last else m['content'].split('</think>')[-1].lstrip() }}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_BODY = (
    "{{ m['content'] if loop.index0 > ns.last else m['content'].split('</think>')[-1].lstrip() }}"
    "{{ '<|im_end|>\n' }}"
)
MARKED = THINKING.replace(  # ... and says itself what the assistant wrote, and the line break
    _BODY,
    "{% if m['role'] == 'assistant' %}{% generation %}"
    + _BODY
    + "{% endgeneration %}{% else %}"
    + _BODY
    + "{% endif %}",
)
DEEPSEEK = (  # no line breaks at all
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'] }}"
    "{% elif m['role'] == 'user' %}{{ '<|User|>' + m['content'] }}"
    "{% else %}{{ '<|Assistant|>' + m['content'] + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|Assistant|>' }}{% endif %}"
)
PHI3 = (  # writes EOS after a conversation that does not go on
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}"
    "{% else %}{{ eos_token }}{% endif %}"
)
PLAIN = (  # role names as plain text: only EOS is a token of its own
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] }}"
    "{{ eos_token if m['role'] == 'assistant' else '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
UNENDED = (  # an answer ends with a line break, as text
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
TOOLS = (  # like Qwen 2.5: tools in the system message, calls as JSON, results as a user's turn
    "{% if tools %}{{ '<|im_start|>system\n' }}{% for tool in tools %}{{ tool | tojson + '\n' }}"
    "{% endfor %}{{ '<|im_end|>\n' }}{% endif %}{% for m in messages %}"
    "{{ '<|im_start|>' + ('user' if m['role'] == 'tool' else m['role']) + '\n' }}"
    "{% if m['role'] == 'tool' %}{{ '<result>' + m['content'] + '</result>' }}"
    "{% elif m.tool_calls %}{{ m.content or '' }}{% for call in m.tool_calls %}"
    "{{ '<call>' + call.function.name + ' ' + call.function.arguments | tojson + '</call>' }}"
    "{% endfor %}{% else %}{{ m['content'] }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEXT = "the film was good and the acting was very good . a bad bad movie\n\nuser assistant model "


def make_tokenizer(
    bos, eos, extra=(), *, adds_bos, template=None, prefix_space=False, trim=False, rstrip=()
):
    """Byte-level BPE; ``trim``: offsets leave out a token's first space; ``rstrip``: special
    tokens that swallow the white space after them."""
    from tokenizers import (
        AddedToken,
        Tokenizer,
        decoders,
        models,
        pre_tokenizers,
        processors,
        trainers,
    )
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
    elif trim:
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer.add_special_tokens([AddedToken(t, rstrip=True, special=True) for t in rstrip])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, pad_token="<|pad|>"
    )
    fast.chat_template = template
    return fast


def make_metaspace(bos, eos, *, template):
    """Like Llama 2 and Mistral: spaces are written as "▁", also before a text's first word."""
    from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)])
    special = ["<unk>", bos, eos, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator([TEXT + "[INST] [/INST] <<SYS>> \n"] * 4, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, unk_token="<unk>"
    )
    fast.chat_template = template
    return fast


class Slow:
    """A tokenizer that tells no offsets, as those written in Python do not."""

    is_fast = False

    def __init__(self, tokenizer):
        self.inner = tokenizer

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def __call__(self, text, **options):
        if options.get("return_offsets_mapping"):
            raise NotImplementedError
        return self.inner(text, **options)


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
