"""Token ids as words: a tokenizer of one word per id, and rows that a stage reads from them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cases import MAX_COMPLETION, MAX_PROMPT, words

if TYPE_CHECKING:
    from alignlab.data.group import TokenGroup


def word_tokenizer(vocabulary: int, eos: int, pad: int) -> Any:
    """A tokenizer of one word per id: ``t17`` is 17, ``<eos>`` and ``<pad>`` are those two."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = {eos: "<eos>", pad: "<pad>"}
    names = {special.get(i, f"t{i}"): i for i in range(vocabulary)}
    core = Tokenizer(models.WordLevel(names, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<eos>", pad_token="<pad>")


def as_the_stage_reads_them(
    folder: Path, groups: Sequence[TokenGroup], eos: int
) -> list[TokenGroup]:
    """Write the rows as words, and return them in the order a stage gets them from that file."""
    from transformers import AutoTokenizer

    from alignlab.data.sources.file import File
    from alignlab.data.template import Tokenization

    def written(group: TokenGroup) -> dict[str, str]:
        return {
            "prompt": words(group.prompt, eos),
            "completion": " " + words(group.completions[0][:-1], eos),  # EOS is put there again
        }

    rows = [written(group) for group in groups]
    held_out = {"prompt": words(groups[0].prompt[::-1], eos), "completion": " t30"}
    for name, lines in (("rows.jsonl", rows), ("held_out.jsonl", [held_out])):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / name).write_text(text, encoding="utf-8")
    source = File(
        path=str(folder / "rows.jsonl"),
        validation_path=str(folder / "held_out.jsonl"),
        test_path=None,
        format="auto",
        style="as_is",
        turns="all",
        fields={},
        weights={},
        split_by=None,
        validation=0.0,
        test=0.0,
        unlabeled=0.0,
        sft=0.5,
        share=True,
        allow_test=False,
        limit={},
    )
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    read = Tokenization(tokenizer, MAX_PROMPT, MAX_COMPLETION).groups(source.load("sft"))
    before = sorted([*g.prompt.tolist(), -1, *g.completions[0].tolist()] for g in groups)
    after = sorted([*g.prompt.tolist(), -1, *g.completions[0].tolist()] for g in read)
    if before != after:
        raise SystemExit("the words do not give back the token ids: the case is broken.")
    return read
