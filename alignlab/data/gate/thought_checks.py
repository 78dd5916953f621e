"""Checks of thoughts: one that never ends, or that no answer follows, teaches a model just that."""

from __future__ import annotations

from collections.abc import Iterable

from alignlab.data.gate.check import RowCheck
from alignlab.data.gate.chunk import Chunk
from alignlab.data.gate.finding import Severity
from alignlab.data.group import Message, Text
from alignlab.data.thinking import CLOSE, OPEN, split


class ThoughtAlone(RowCheck):
    """Answers that are a thought and nothing else."""

    severity: Severity = "warning"
    code = "thought_without_answer"
    message = f"An answer is a thought alone: {OPEN} is never closed, or nothing follows {CLOSE}"
    advice = "Drop these rows, or end their thoughts; often they were cut off when they were made."

    def look(self, chunk: Chunk) -> Iterable[int]:
        """Rows with such an answer."""
        for row, texts in enumerate(chunk.answer_texts):
            marked = any(OPEN in text or CLOSE in text for text in texts)
            if marked and any(map(_alone, chunk.groups[row].completions)):
                yield row


def _alone(completion: Text) -> bool:
    """Whether a text, or a message of the assistant, is nothing but a thought."""
    turns: Iterable[Message] = (
        [{"role": "assistant", "content": completion}]
        if isinstance(completion, str)
        else completion
    )
    return any(
        split(turn["content"]).thought is not None and not split(turn["content"]).answer.strip()
        for turn in turns
        if turn["role"] == "assistant" and not turn.get("tool_calls")
    )
