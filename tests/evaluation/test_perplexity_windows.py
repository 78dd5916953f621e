"""Documents in windows: every token once, after the context that was asked for."""

from __future__ import annotations

import numpy as np
import pytest

from alignlab.data.group import DEMONSTRATION, NONE, PromptGroup, TokenGroup
from alignlab.errors import DataError
from alignlab.evaluation.perplexity import Perplexity, document, windows
from alignlab.evaluation.policy import bare
from alignlab.spec import Spec


def tokens(prompt: list[int], body: list[int]) -> TokenGroup:
    ids = np.array(prompt, dtype=np.int32), np.array(body, dtype=np.int32)
    return TokenGroup(ids[0], (ids[1],), NONE, 0, "d")


def test_windows_by_hand() -> None:
    found = windows(tokens([9], [1, 2, 3, 4, 5, 6, 7]), window=4, context=2)
    # 9|123, then 23|45, then 45|67
    assert [(g.prompt.tolist(), g.completions[0].tolist()) for g in found] == [
        ([9], [1, 2, 3]),
        ([2, 3], [4, 5]),
        ([4, 5], [6, 7]),
    ]


@pytest.mark.parametrize(("size", "window", "context"), [(1, 2, 1), (50, 7, 3), (64, 64, 1)])
def test_every_token_is_predicted_once(size: int, window: int, context: int) -> None:
    found = windows(tokens([0], list(range(1, size + 1))), window, context)
    assert [i for g in found for i in g.completions[0].tolist()] == list(range(1, size + 1))
    assert all(len(g.prompt) + len(g.completions[0]) <= window for g in found)


def test_context_must_leave_room() -> None:
    spec = Spec("alignlab.data.sources.reviews.Reviews")
    with pytest.raises(DataError, match="nothing to predict"):
        Perplexity(data=spec, split="test", items=1, window=8, context=8)


def test_a_document_is_prompt_and_demonstration() -> None:
    assert document(PromptGroup("", ("whole text",), DEMONSTRATION)) == "whole text"
    assert document(PromptGroup("open", (" end",), DEMONSTRATION)) == "open end"
    with pytest.raises(DataError, match="empty"):
        document(PromptGroup(""))


def test_the_end_token_is_no_part_of_a_text() -> None:
    group = tokens([9], [1, 2, 3])
    assert bare(group, 3).completions[0].tolist() == [1, 2]
    assert bare(group, 4).completions[0].tolist() == [1, 2, 3]
    with pytest.raises(DataError, match="empty text"):
        bare(tokens([9], [3]), 3)
