from __future__ import annotations

import pytest
from mutation import catches, planted

from alignlab.data.order import step_rows, steps_of

HALF = ("alignlab.data.order", "math.ceil(round(", "math.floor(round(")


def test_a_bug_is_there_inside_the_block_and_gone_after_it() -> None:
    assert steps_of(0.5, 2, 10) == 3
    with planted(*HALF):
        assert steps_of(0.5, 2, 10) == 2
    assert steps_of(0.5, 2, 10) == 3


def test_a_wrapped_function_can_be_broken() -> None:
    before = step_rows(0, 5, 10, seed=123)
    with planted("alignlab.data.order", "default_rng([seed, epoch])", "default_rng([seed + 1])"):
        assert step_rows(0, 5, 10, seed=124) != step_rows(0, 5, 10, seed=125)
    assert step_rows(0, 5, 10, seed=123) == before


@pytest.mark.parametrize("old", ["no such text", "seed"])
def test_the_text_must_stand_there_once(old: str) -> None:
    with pytest.raises(AssertionError, match="holds"), planted("alignlab.data.order", old, "x"):
        pass


def test_a_check_that_notices_nothing_is_refused() -> None:
    @catches(*HALF)
    def blind() -> None:
        assert steps_of(1.0, 2, 10) == 5

    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        blind()


@catches(*HALF)
def test_a_check_that_notices() -> None:
    assert steps_of(0.5, 2, 10) == 3
