"""Which images the prompt of a group shows, told by the marks in its text."""

from __future__ import annotations

from collections.abc import Sequence

from alignlab.data.group import PromptGroup
from alignlab.data.wording import content
from alignlab.errors import DataError
from alignlab.images import PLAIN_MARK, Reference, images_of, mark


def shown(group: PromptGroup) -> tuple[Reference, ...]:
    """Images of the row that the group's own prompt shows."""
    found = images_of(group.meta)
    text = content(group.prompt) if found else ""
    return tuple(image for image in found if mark(image) in text)


def require_marks(
    group: PromptGroup, images: Sequence[Reference], *, anywhere: bool = False
) -> None:
    """Check that the prompt shows the images of its row, each once, and no completion does.

    Where every answer becomes a row of its own, an image may be shown ``anywhere`` before one.

    Raises:
        DataError: an image without a mark, a mark in a completion, or marks in another order.
    """
    marks = [mark(image) for image in images]
    answers = [content(completion) for completion in group.completions]
    if not anywhere and any(mark in answer for mark in marks for answer in answers):
        raise DataError(
            "an image is shown in or after an answer, and only prompts may show images. In "
            "conversations that show one later, train on the last answer (data.turns=last)."
        )
    text, at = "\n".join([content(group.prompt), *answers]), 0
    for number, one in enumerate(marks):
        found = text.find(one, at)
        if found < 0:
            raise DataError(
                f"'{images[number]['at']}' is an image without a mark: write {PLAIN_MARK} in the "
                'prompt where it is shown, or a content part {"type": "image"}; one mark for '
                f"every image, in their order ({len(marks)} images)."
            )
        at = found + len(one)
