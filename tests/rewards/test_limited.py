"""Which annotators have a budget, and so are asked by one process for all."""

from __future__ import annotations

import pytest

from alignlab.compose import compose
from alignlab.rewards.judge.annotator import limited
from alignlab.spec import parse

ENDPOINT = ("judge.base_url=http://127.0.0.1:1/v1", "judge.model=m")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["annotator=gold"], False),
        (["annotator=judge", "judge=local"], False),
        (["annotator=judge", "judge=endpoint", *ENDPOINT], True),
    ],
)
def test_a_budget_inside_of_an_annotator_is_found(words: list[str], expected: bool) -> None:
    stages = compose(["pipeline=preference", *words])["stages"]
    assert limited(parse(stages["annotate"]["annotator"], "annotator")) is expected
