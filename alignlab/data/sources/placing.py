"""Where the groups of a part stand in a mixture: evenly, by their number or by their length."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator

from alignlab.data.group import PromptGroup
from alignlab.data.wording import content


def characters(group: PromptGroup) -> int:
    """Length of all texts of a group: its prompt and its completions."""
    return len(content(group.prompt)) + sum(len(content(text)) for text in group.completions)


def lengths(groups: Iterable[PromptGroup]) -> array[int]:
    """Characters of every group, eight bytes each."""
    return array("q", (characters(group) for group in groups))


def given(sizes: array[int], wanted: int) -> int:
    """Groups, from the first on and again from the first, whose sizes come nearest to ``wanted``.

    At least one.
    """
    whole = sum(sizes)
    rounds, rest = divmod(wanted, whole)
    count, seen = 0, 0
    for size in sizes:
        if seen + size / 2 > rest:
            break
        seen, count = seen + size, count + 1
    return max(1, rounds * len(sizes) + count)


def places(sizes: array[int], count: int) -> Iterator[float]:
    """Middle of each of ``count`` groups on the line from 0 to 1, ascending.

    Each takes as much of the line as its size is of all that is given.
    """
    rounds, rest = divmod(count, len(sizes))
    total = rounds * sum(sizes) + sum(sizes[:rest])
    seen = 0
    for number in range(count):
        size = sizes[number % len(sizes)]
        yield (seen + size / 2) / total
        seen += size
