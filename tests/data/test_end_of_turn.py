"""LIMA's end-of-turn token: one of its own after every utterance, in place of EOS."""

from __future__ import annotations

import re
from pathlib import Path

from alignlab.data.group import DEMONSTRATION, PromptGroup
from alignlab.data.template import Tokenization
from alignlab.models.tiny import byte_tokenizer

PAGE = Path(__file__).resolve().parents[2] / "alignlab" / "data" / "README.md"
[TEMPLATE] = re.findall(r"```jinja\n(.*?)\n```", PAGE.read_text(encoding="utf-8"), flags=re.S)
EOT = "<|reserved_special_token_0|>"


def test_the_template_of_the_page_ends_every_turn_with_its_token():
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [EOT]})
    tokenization = Tokenization(tokenizer, None, None, TEMPLATE)
    eot, eos = tokenizer.convert_tokens_to_ids(EOT), tokenizer.eos_token_id
    say = [
        {"role": r, "content": t} for r, t in zip(("user", "assistant") * 2, "abcd", strict=True)
    ]
    group = PromptGroup((say[0],), (tuple(say[1:]),), DEMONSTRATION)
    made = tokenization.group(group, 0)

    def text(ids):
        return tokenizer.decode(ids, skip_special_tokens=False)

    assert text(made.prompt) == f"<|bos|>a{EOT}"
    assert text(made.completions[0]) == f"b{EOT}c{EOT}d{EOT}"
    # what the assistant says and its token are targets, the user's turn is read
    assert made.masks[0].tolist() == [True, True, False, False, True, True]
    assert eos not in made.completions[0]
    assert tokenization.end_of_turn == eot
    assert tokenization.stop_ids == (eot, eos)
