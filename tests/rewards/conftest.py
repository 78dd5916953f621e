from __future__ import annotations

import pytest

from alignlab.spec import Spec


@pytest.fixture
def vader() -> Spec:
    return Spec("alignlab.rewards.lexicon.Vader", {"part": "completion"})


@pytest.fixture
def length() -> Spec:
    return Spec("alignlab.rewards.length.Length", {"target_words": 4})
