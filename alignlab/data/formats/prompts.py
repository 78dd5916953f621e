"""Formats without a judged answer: prompts to sample from, and answers without their prompts."""

from __future__ import annotations

from alignlab.data.formats.fields import Row, assemble, first_of, prompt_of
from alignlab.data.group import DEMONSTRATION, NONE, PromptGroup
from alignlab.errors import DataError


def prompt_only(row: Row) -> PromptGroup:
    """Read a prompt to sample from, as text or messages (IFEval: its checks stay in ``meta``)."""
    prompt = prompt_of(row)
    if isinstance(prompt, tuple) and prompt[-1]["role"] == "assistant":
        raise DataError(
            "the prompt ends with an answer. If it demonstrates, name the field 'messages' "
            "(data.fields.prompt=messages)."
        )
    return assemble(prompt, [], NONE)


def prompt_turns(row: Row) -> PromptGroup:
    """Read what a user says over several turns (MT-bench); the first turn is the prompt.

    A second turn means nothing before the first is answered: all stay in ``meta["turns"]``.
    """
    field = first_of(row, ("turns", "prompt"))
    turns = row[field]
    if isinstance(turns, list):  # Arena-Hard: [{"content": text}]
        turns = [turn.get("content") if isinstance(turn, dict) else turn for turn in turns]
    if not isinstance(turns, list) or not turns or not all(isinstance(t, str) for t in turns):
        raise DataError(f"'{field}' must be a list of texts, the user's turns.")
    return assemble(({"role": "user", "content": turns[0]},), [], NONE, {"turns": turns})


def model_answers(row: Row) -> PromptGroup:
    """Read answers kept without their questions (MT-bench's references), as texts to model.

    The turns of the first choice are joined by blank lines, and kept in ``meta["turns"]``.
    """
    choice = row["choices"][0] if isinstance(row["choices"], list) and row["choices"] else None
    turns = choice.get("turns") if isinstance(choice, dict) else None
    if not isinstance(turns, list) or not turns or not all(isinstance(t, str) for t in turns):
        raise DataError("'choices' must be a list of objects with 'turns', a list of texts.")
    return PromptGroup("", ("\n\n".join(turns),), DEMONSTRATION, meta={"turns": turns})
