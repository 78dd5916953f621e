"""Values of a row's fields, checked: every complaint names the field."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from alignlab.data.formats.chat import is_message, messages_of
from alignlab.data.group import Message, PromptGroup, Text, Verdict
from alignlab.errors import DataError

Row = Mapping[str, Any]

PROMPTS = ("prompt", "instruction", "question", "problem", "query")
CONVERSATIONS = ("messages", "conversations", "conversation")
ANSWERS = ("completion", "response", "output", "targets")
QUESTIONS = (*PROMPTS, "definition", "inputs", "input")  # where an answer stands beside it
BESIDE = ("input", "context", "inputs")  # what a question may be about
_EXACT = ("prompt", "inputs")  # holds whatever joins it to its answer
SYSTEMS = ("system", "system_prompt")
_TRUE = "true 1 1.0 +1 yes up good desirable chosen thumbs_up 👍"
_FALSE = "false 0 0.0 -1 -1.0 no down bad undesirable rejected thumbs_down 👎"
_FLAGS = dict.fromkeys(_TRUE.split(), True) | dict.fromkeys(_FALSE.split(), False)


# Images have a switch, since nothing but a vision-language backbone reads them.
_SEEN = dict.fromkeys(
    ("images", "image"), " unless data.images names the folder of images ('.': beside the file)"
)


def refuse_media(row: Row) -> None:
    """Refuse a row with images, videos or sound: its text alone would say something else."""
    for field in ("images", "image", "videos", "video", "audios", "audio"):
        value = row.get(field)
        inline = isinstance(value, str) and value.startswith("data:")
        if value and (inline or field.endswith("s") or isinstance(value, dict | list | bytes)):
            raise DataError(
                f"'{field}' is not empty, and alignlab trains on text{_SEEN.get(field, '')}. To "
                f"train on the text alone, rename the field with data.fields.{field}=left_out."
            )


def first_of(row: Row, names: Sequence[str]) -> str:
    """Return the first of the fields that the row has, or an empty text."""
    return next((name for name in names if row.get(name) is not None), "")


def text_of(row: Row, field: str) -> Text:
    """Return the text or the messages of a field; one message alone is a list of one."""
    value = row.get(field)
    if isinstance(value, str):
        return value
    if isinstance(value, list) or is_message(value):
        return messages_of(field, value)
    raise DataError(f"'{field}' must be text or a list of messages; it is {kind_of(value)}.")


def plain(row: Row, field: str) -> str:
    """Return the text of a field, which may not be messages."""
    value = row.get(field)
    if not isinstance(value, str):
        raise DataError(f"'{field}' must be text; it is {kind_of(value)}.")
    return value


def kind_of(value: Any) -> str:
    """Return what a JSON value is, in words."""
    words = {bool: "true or false", str: "text", list: "a list", dict: "an object"}
    if value is None:
        return "missing"
    return words.get(type(value), "a number" if isinstance(value, int | float) else "no JSON value")


def flag_of(row: Row, field: str) -> bool:
    """Return a thumb written as bool, 1/0 (or 1/-1) or a word such as desirable, "thumbs up"."""
    value = row.get(field)
    flag = _FLAGS.get(str(value).strip().lower().replace(" ", "_"))
    if flag is None:
        advice = f" If '{field}' is no thumb, state the format with data.format." * (
            field == "label"
        )
        raise DataError(
            f"'{field}' must be true or false (or 1, 0, desirable, undesirable), not {value!r:.60}."
            f"{advice}"
        )
    return flag


def number_of(field: str, value: Any) -> float:
    """Return a number; text that spells one counts (CSV has no numbers), a bool does not.

    Raises:
        DataError: anything else, or an infinite number.
    """
    try:
        if isinstance(value, bool) or not isinstance(value, int | float | str):
            raise ValueError
        number = float(value)
    except (ValueError, OverflowError):
        raise DataError(f"'{field}' must hold numbers, not {value!r:.60}.") from None
    if math.isinf(number):
        raise DataError(f"'{field}' must hold finite numbers, not {value!r:.60}.")
    return number


def from_json(value: Any) -> Any:
    """Return what a text spells as JSON; any other value, and text that is no JSON, as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def system_of(row: Row) -> tuple[Message, ...]:
    """Return the system message of a field ``system`` or ``system_prompt``; blank means none."""
    field = first_of(row, SYSTEMS)
    value = row.get(field)
    if value is None or value == "":
        return ()
    if isinstance(value, list):  # Anthropic: a list of text blocks
        return messages_of(field, [{"role": "system", "content": value}])
    if not isinstance(value, str):
        raise DataError(f"'{field}' must be text; it is {kind_of(value)}.")
    return ({"role": "system", "content": value},) if value.strip() else ()


def with_system(row: Row, messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Return the messages, headed by the row's system prompt if it has one.

    Raises:
        DataError: the messages open with another system prompt.
    """
    system = system_of(row)
    if not system or messages[:1] == system:
        return messages
    if messages and messages[0]["role"] == "system":
        field = first_of(row, SYSTEMS)
        raise DataError(f"'{field}' and the first message are two different system prompts.")
    return system + messages


def prompt_of(row: Row, names: Sequence[str] = PROMPTS) -> Text:
    """Return the prompt of a row from the first of ``names`` it has.

    A field ``prompt`` (FLAN: ``inputs``) is kept exactly. After the others a blank line follows,
    and ``input``, ``context`` or ``inputs`` with another one. Where the row has a field for a
    system prompt or a history (also an empty one), the prompt is messages.
    """
    field = first_of(row, names)
    value = text_of(row, field)
    if isinstance(value, tuple):
        return with_system(row, value)
    extra = "" if field in BESIDE else first_of(row, BESIDE)
    if field == "prompt" and extra:
        raise DataError(
            f"'prompt' and '{extra}' are both there. To append the second, rename the first with "
            f"data.fields.prompt=instruction; to leave it out, use data.fields.{extra}=other."
        )
    parts = [value, plain(row, extra) if extra else ""]
    if "history" in row or any(name in row for name in SYSTEMS):
        content = value if field in _EXACT else "\n\n".join(part for part in parts if part)
        asked: Message = {"role": "user", "content": content}
        return with_system(row, (*_history(row), asked))
    return value if field in _EXACT else "".join(part + "\n\n" for part in parts if part)


def _history(row: Row) -> tuple[Message, ...]:
    pairs = from_json(row.get("history")) or []
    said: list[Message] = []
    for number, pair in enumerate(pairs if isinstance(pairs, list) else [pairs], 1):
        both = isinstance(pair, list | tuple) and len(pair) == 2
        if not both or not all(isinstance(text, str) for text in pair):
            raise DataError(f"'history', pair {number}: must be [question, answer], both text.")
        said += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    return tuple(said)


def as_user(prompt: str) -> tuple[Message, ...]:
    """Return a text prompt as the message of a user, without the blank line after a question."""
    return ({"role": "user", "content": prompt.removesuffix("\n\n")},)


def assemble(
    prompt: Text,
    answers: Sequence[Text],
    verdict: Verdict,
    meta: Mapping[str, Any] | None = None,
) -> PromptGroup:
    """Return a group whose prompt and completions are all text, or all messages if one is."""
    if isinstance(prompt, str) and all(isinstance(answer, str) for answer in answers):
        return PromptGroup(prompt, tuple(answers), verdict, meta=meta or {})
    asked = as_user(prompt) if isinstance(prompt, str) else prompt
    said = tuple(
        ({"role": "assistant", "content": a},) if isinstance(a, str) else a for a in answers
    )
    return PromptGroup(asked, said, verdict, meta=meta or {})
