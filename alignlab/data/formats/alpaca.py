"""Alpaca's prompts: an instruction, with or without an input, under headings of their own."""

from __future__ import annotations

from dataclasses import replace

from alignlab.data.formats.fields import BESIDE, Row, first_of, plain
from alignlab.data.group import PromptGroup
from alignlab.errors import DataError

# The prompts of Stanford Alpaca (Taori et al. 2023, github.com/tatsu-lab/stanford_alpaca); what the
# model writes follows the last colon at once.
_OPENING = "Below is an instruction that describes a task"
_ASKING = "Write a response that appropriately completes the request."
WITHOUT_INPUT = f"{_OPENING}. {_ASKING}\n\n### Instruction:\n{{instruction}}\n\n### Response:"
WITH_INPUT = (
    f"{_OPENING}, paired with an input that provides further context. {_ASKING}"
    "\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)


def with_headings(group: PromptGroup, row: Row) -> PromptGroup:
    """Return the group of a row with its prompt under Alpaca's headings.

    A row's ``input`` (or ``context``, where an instruction stands beside it) has a heading of its
    own unless it is blank; the prompt of any other row is the instruction.

    Raises:
        DataError: a conversation, for which there are no headings.
    """
    if not isinstance(group.prompt, str):
        raise DataError(
            "data.style=alpaca has headings for one instruction and no place for a conversation, a"
            " system prompt or a history. Set data.style=as_is and use a chat template."
        )
    instruction, beside = group.prompt.strip("\n"), ""
    if row.get("instruction") is not None:
        instruction, field = plain(row, "instruction"), first_of(row, BESIDE)
        beside = plain(row, field) if field else ""
    elif not instruction:
        raise DataError("data.style=alpaca needs a prompt, and this row is text alone.")
    form = WITH_INPUT if beside.strip() else WITHOUT_INPUT
    return replace(group, prompt=form.format(instruction=instruction, input=beside))
