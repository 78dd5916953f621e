"""The placeholder tokens that a processor writes for an image, in the prompts that show one.

A mark becomes the processor's image token before a chat template writes the prompt, and each of
these in the written prompt becomes what the processor makes of it for an image of that size: so
limits, counts and budgets see as many tokens as the model does.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from alignlab.data.group import Message, PromptGroup, Text
from alignlab.data.shown_images import shown
from alignlab.data.turns import Turns, Written
from alignlab.data.wording import content
from alignlab.errors import DataError
from alignlab.images import Reference, images_of, mark, opened


class ImageTokens:
    """Image tokens of a transformers ``processor``."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor
        self.token: str = processor.image_token
        # The text of an image depends on nothing but its size.
        self._texts: dict[tuple[int, int], str] = {}

    def fingerprint(self) -> str:
        """Hash of what decides the tokens and pixels of an image."""
        own = [self.processor.to_dict(), self.processor.image_processor.to_dict()]
        return hashlib.sha256(json.dumps(own, sort_keys=True, default=str).encode()).hexdigest()

    def placed(self, group: PromptGroup) -> PromptGroup:
        """Return the group with the image token in the place of each mark of its prompt.

        Raises:
            DataError: a text has an image token of its own, with no image behind it.
        """
        marks = [mark(image) for image in shown(group)]
        known = [self.token, *(mark(image) for image in images_of(group.meta))]

        def place(text: str) -> str:
            for one in marks:
                text = text.replace(one, self.token)
            return text

        def refuse(text: str) -> str:
            if self.token in text:
                raise DataError(
                    f"{_name(group)}: an image mark without an image: its text contains "
                    f"{self.token}, the image token of the model. Give the image in 'images' "
                    "(data.images), or take the token out of the text."
                )
            return text

        for said in (group.prompt, *group.completions):
            _mapped(said, refuse)
        if any(one in content(said) for said in group.completions for one in known):
            raise DataError(
                f"{_name(group)}: an image is shown in or after an answer, and only prompts may "
                "show images. Train on the last answer (data.turns=last)."
            )
        return replace(group, prompt=_mapped(group.prompt, place)) if marks else group

    def expanded(self, group: PromptGroup, written: Written) -> Written:
        """Return a written prompt with its completions, every image token as often as it counts.

        Raises:
            DataError: the chat template leaves images out, or an image cannot be read.
        """
        head, tails = written
        images = shown(group)
        first, *rest = head.split(self.token)
        if len(rest) != len(images):
            raise DataError(
                f"The chat template writes {len(rest)} places for the {len(images)} images of "
                f"{_name(group)}. Use the template of the model's processor "
                "(backbone.template=null), or one that writes images."
            )
        if not images:
            return written
        texts = [self._text(image, group) for image in images]
        whole = first + "".join(one + more for one, more in zip(texts, rest, strict=True))
        moved = len(whole) - len(head)
        return whole, tuple(
            tail if isinstance(tail, str) else _shifted(tail, whole, moved) for tail in tails
        )

    def _text(self, image: Reference, group: PromptGroup) -> str:
        """What stands for an image; it is read whole, so a broken one is found here."""
        try:
            picture = opened(image)
        except DataError as error:
            raise DataError(f"{_name(group)}: {error}") from error
        if picture.size not in self._texts:
            made = self.processor(
                images=[picture], text=[self.token], return_text_replacement_offsets=True
            )
            self._texts[picture.size] = made["text_replacement_offsets"][0][0]["replacement"]
        return self._texts[picture.size]


def _shifted(turns: Turns, head: str, moved: int) -> Turns:
    text = head + turns.text[turns.start :]
    spans, thoughts = (
        tuple((first + moved, last + moved) for first, last in part)
        for part in (turns.spans, turns.thoughts)
    )
    return replace(turns, text=text, start=turns.start + moved, spans=spans, thoughts=thoughts)


def _mapped(said: Text, change: Callable[[str], str]) -> Text:
    if isinstance(said, str):
        return change(said)
    return tuple(_message(message, change) for message in said)


def _message(message: Message, change: Callable[[str], str]) -> Message:
    return {**message, "content": change(str(message.get("content") or ""))}


def _name(group: PromptGroup) -> str:
    place = group.meta.get("place")
    return f"group {group.id!r} ({place})" if place else f"group {group.id!r}"
