"""Which prompts a task asks, and the worked examples that may stand before them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

from alignlab.annotations import Range
from alignlab.data.group import PromptGroup, Text
from alignlab.data.wording import content, folded
from alignlab.errors import DataError
from alignlab.spec import Spec, build

SEPARATOR = "\n\n"


@dataclass(frozen=True, kw_only=True)
class FewShot:
    """Worked examples before each question, from a split that is not evaluated.

    For plain text an example is ``question`` with its ``{prompt}`` and ``answer`` with its
    ``{completion}``, and examples are parted by a blank line. In conversations an example is two
    turns, and ``question`` shapes what the user says.
    """

    shots: Annotated[int, Range(min=0)]
    split: str  # where the examples come from
    question: str
    answer: str

    def __post_init__(self) -> None:
        for name, mark in (("question", "{prompt}"), ("answer", "{completion}")):
            if mark not in getattr(self, name):
                raise DataError(f"few_shot.{name} must hold {mark} where the text goes.")

    def apply(self, groups: Sequence[PromptGroup], data: Any) -> list[PromptGroup]:
        """Put the question's frame and the examples around every prompt."""
        examples = self._examples(groups, data)
        return [replace(g, prompt=self._prompt(g, examples)) for g in groups]

    def _examples(self, groups: Sequence[PromptGroup], data: Any) -> list[PromptGroup]:
        if not self.shots:
            return []
        asked = {folded(content(g.prompt)) for g in groups}
        found: list[PromptGroup] = []
        for group in data.stream(self.split):
            shown = group.demonstration()
            if shown is not None and folded(content(shown.prompt)) not in asked:
                found.append(shown)
            if len(found) == self.shots:
                return found
        raise DataError(
            f"few_shot.shots={self.shots}, but the split '{self.split}' has only {len(found)}"
            " answered prompts that are not evaluated themselves. Give training rows as data.path"
            " and the evaluated ones as data.test_path, or set few_shot.shots=0."
        )

    def _prompt(self, group: PromptGroup, examples: Sequence[PromptGroup]) -> Text:
        if isinstance(group.prompt, str):
            blocks = [self._asked(str(e.prompt)) + self._answered(e) for e in examples]
            return SEPARATOR.join([*blocks, self._asked(group.prompt)])
        head = [m for m in group.prompt if m["role"] == "system"]
        rest = [m for m in group.prompt if m["role"] != "system"]
        turns = []
        for example in examples:
            turns += [
                {"role": "user", "content": self._asked(content(example.prompt))},
                {"role": "assistant", "content": content(example.completions[0]).strip()},
            ]
        last = {**rest[-1], "content": self._asked(str(rest[-1]["content"]))}
        return (*head, *turns, *rest[:-1], last)

    def _asked(self, prompt: str) -> str:
        bare = prompt if self.question == "{prompt}" else prompt.strip()
        return self.question.replace("{prompt}", bare)

    def _answered(self, example: PromptGroup) -> str:
        return self.answer.replace("{completion}", content(example.completions[0]).strip())


def load(data: Spec, split: str, items: int | None, task: str) -> tuple[Any, list[PromptGroup]]:
    """Return the data source and the groups that are evaluated, the first ``items`` of the split.

    Raises:
        DataError: the split is empty.
    """
    source, name = opened(data, split)
    groups = source.load(name)[:items]
    if not groups:
        raise DataError(
            f"{task}: the split '{split}' of {data.target.rpartition('.')[2]} is empty, so there is"
            " nothing to ask. Name another split or another file."
        )
    return source, groups


def opened(data: Spec, split: str) -> tuple[Any, str]:
    """Return a data source and which of its splits is meant; "all" is all rows of a file.

    Raises:
        DataError: "all" of a source that is no file.
    """
    if split != "all":
        return build(data), split
    if not {"path", "test_path"} <= set(data.arguments):
        raise DataError(
            f"split=all is for a file, and this is {data.target.rpartition('.')[2]}: name a split,"
            " such as split=test."
        )
    whole = {**data.arguments, "test_path": data.arguments["path"]}
    return build(Spec(data.target, whole)), "test"


def item_id(group: PromptGroup, number: int) -> str:
    """Name an item the same way for every policy: the group's own id, else its number."""
    return group.id or str(number)


def cut_warning(task: str, cut: int, of: int) -> list[str]:
    """Say that prompts lost their beginning, if any did."""
    if not cut:
        return []
    return [f"{task}: {cut} of {of} prompts did not fit and lost their beginning"]
