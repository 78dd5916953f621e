"""Instruction templates: the same task asked in several ways, as in FLAN.

Wei et al. 2021 (arXiv:2109.01652) write ten templates per task, a few of which turn the task round,
and draw one for every example. Together with `Mix` (a cap on what one task may give) this makes an
instruction-tuning mixture out of labelled data sets.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from string import Formatter
from typing import Annotated, Any

from alignlab.data.group import PromptGroup, Text
from alignlab.data.quality.step import Reason, Step, StepEffect, effect
from alignlab.data.quality.texts import plain
from alignlab.errors import DataError, did_you_mean
from alignlab.typed import Range

_FORMATTER = Formatter()


@dataclass(frozen=True, kw_only=True)
class Template:
    """One way to ask. ``{name}`` stands for a field of the row, ``{{`` and ``}}`` for braces.

    The names are ``prompt``, ``completion`` (the one that is written) and the fields of the data.
    """

    prompt: str
    completion: str
    share: Annotated[float, Range(min=0, min_open=True)]  # of the task's rows, relative

    def __post_init__(self) -> None:
        for text in (self.prompt, self.completion):
            _names(text)


@dataclass(frozen=True, kw_only=True)
class Instruct(Step):
    """Rewrites every row with one of its task's templates, drawn by a hash of the row and the seed.

    A row keeps its template whatever other rows there are. Completions of messages are rewritten in
    their last message, prompts of messages in the last one too. Rows of a task without templates
    stay as they are, and are counted.
    """

    field: str | None  # field of the data that names the task; null = all rows are "any"
    templates: Mapping[str, tuple[Template, ...]]  # task -> its templates
    seed: int

    def __post_init__(self) -> None:
        if empty := [task for task, listed in self.templates.items() if not listed]:
            raise DataError(f"templates.{empty[0]} has no template.")
        if self.field is None and set(self.templates) != {"any"}:
            raise DataError("Without a field for the task, templates has one entry, 'any'.")

    def apply(self, groups: Iterable[PromptGroup]) -> tuple[list[PromptGroup], StepEffect]:
        """Return the rows, rewritten, with the number of their template in ``meta['template']``."""
        rows, out, noted = list(groups), [], []
        used: Counter[str] = Counter()
        for row in rows:
            task = "any" if self.field is None else str(row.meta.get(self.field))
            if task not in self.templates:
                out.append(row)
                noted.append((row, Reason(f"task {task} has no template")))
                continue
            number = self._draw(task, row)
            out.append(_rewritten(row, self.templates[task][number], f"{task} {number + 1}"))
            noted.append((out[-1], Reason(f"template {number + 1} of {task}")))
            used[task] += 1
        # With a field for the task, "any" is nothing but what conf/quality/instruct.yaml states.
        wanted = [task for task in self.templates if task != "any" or self.field is None]
        if unused := [task for task in wanted if rows and not used[task]]:
            tasks = sorted({str(row.meta.get(self.field or "")) for row in rows})[:20]
            hint = did_you_mean(unused[0], tasks)
            raise DataError(f"No row is of the task '{unused[0]}'; there are {tasks}.{hint}")
        return out, effect(self.name, len(rows), len(out), noted)

    def _draw(self, task: str, row: PromptGroup) -> int:
        shares = [template.share for template in self.templates[task]]
        name = row.id or plain(row.prompt)
        digest = hashlib.sha256(f"template:{self.seed}:{task}:{name}".encode()).digest()
        left = int.from_bytes(digest[:8], "big") / 2**64 * sum(shares)
        for number, share in enumerate(shares):
            left -= share
            if left < 0:
                return number
        return len(shares) - 1


def _rewritten(row: PromptGroup, template: Template, name: str) -> PromptGroup:
    fields: dict[str, Any] = {**row.meta, "prompt": _last(row.prompt)}
    if row.completions and row.verdict.kind in ("none", "demonstration"):
        fields["completion"] = _last(row.completions[0])
    prompt = _with_last(row.prompt, _filled(template.prompt, fields, row))
    completions = tuple(
        _with_last(c, _filled(template.completion, {**fields, "completion": _last(c)}, row))
        for c in row.completions
    )
    return replace(row, prompt=prompt, completions=completions, meta={**row.meta, "template": name})


def _last(text: Text) -> str:
    return text if isinstance(text, str) else plain(text[-1:])


def _with_last(text: Text, content: str) -> Text:
    if isinstance(text, str):
        return content
    return (*text[:-1], {**text[-1], "content": content})


def _names(text: str) -> list[str]:
    """Names in a template; DataError for anything but plain names in braces."""
    try:
        found = [part[1:] for part in _FORMATTER.parse(text) if part[1] is not None]
    except ValueError as error:
        raise DataError(f"Template {text!r}: {error}. Write a brace as {{{{ or }}}}.") from error
    for name, form, conversion in found:
        if not str(name).isidentifier() or form or conversion:
            raise DataError(f"Template {text!r}: only {{field}} is known, not {{{name}}}.")
    return [str(name) for name, _, _ in found]


def _filled(text: str, fields: Mapping[str, Any], row: PromptGroup) -> str:
    for name in _names(text):
        if fields.get(name) is None:
            known = ", ".join(fields)
            hint = did_you_mean(name, fields)
            place = row.meta.get("place") or row.id
            raise DataError(f"{place}: a template wants '{name}'; there are {known}.{hint}")
    return _FORMATTER.vformat(text, (), fields)
