from __future__ import annotations

import pytest

from alignlab.data.group import CHOSEN_REJECTED, DEMONSTRATION, NONE, PromptGroup, Verdict
from alignlab.errors import DataError


def test_ranking_gives_all_pairs_without_ties():
    # ranks 1 0 1 2: completion 1 beats all, 0 and 2 tie and beat 3
    verdict = Verdict("ranking", ranks=(1, 0, 1, 2))
    assert verdict.pairs() == ((0, 3), (1, 0), (1, 2), (1, 3), (2, 3))
    assert verdict.best() == 1


def test_scores_are_higher_is_better():
    verdict = Verdict("scores", scores=(0.5, -1.0, 2.0))
    assert verdict.pairs() == ((0, 1), (2, 0), (2, 1))
    assert verdict.best() == 2


def test_thumbs_pairs_are_up_over_down():
    verdict = Verdict("thumbs", thumbs=(False, True, True))
    assert verdict.pairs() == ((1, 0), (2, 0))
    assert verdict.best() == 1
    assert verdict.desirable() == (False, True, True)


def test_nine_completions_make_36_pairs():
    assert len(Verdict("ranking", ranks=tuple(range(9))).pairs()) == 36


def test_desirable_of_rankings():
    assert CHOSEN_REJECTED.desirable() == (True, False)
    # wins - losses: 2, 0, -2
    assert Verdict("ranking", ranks=(0, 1, 2)).desirable() == (True, None, False)
    # two tied first places win one and lose none: +1 +1 -2
    assert Verdict("ranking", ranks=(0, 0, 1)).desirable() == (True, True, False)
    assert Verdict("scores", scores=(1.0, 1.0)).desirable() == (None, None)
    assert NONE.desirable() == DEMONSTRATION.desirable() == ()


def test_nothing_is_best_without_a_verdict():
    assert DEMONSTRATION.best() == 0
    assert not NONE
    with pytest.raises(DataError, match="no verdict"):
        NONE.best()


def test_verdict_must_fit_its_kind_and_its_completions():
    with pytest.raises(DataError, match="needs scores"):
        Verdict("scores")
    with pytest.raises(DataError, match="has thumbs"):
        Verdict("scores", scores=(1.0,), thumbs=(True,))
    with pytest.raises(DataError, match="not a number"):
        Verdict("scores", scores=(float("nan"),))
    with pytest.raises(DataError, match="3 completions but 2 ranking values"):
        PromptGroup("p", ("a", "b", "c"), CHOSEN_REJECTED)


def test_keep_reorders_completions_and_verdict():
    group = PromptGroup("p", ("a", "b", "c"), Verdict("ranking", ranks=(2, 0, 1)))
    kept = group.keep([1, 0])
    assert kept.completions == ("b", "a")
    assert kept.verdict.ranks == (0, 2)
    assert kept.verdict.pairs() == ((0, 1),)


def test_what_is_imitated_is_the_best_completion_and_never_one_of_thumbs_down():
    def shown(verdict):
        group = PromptGroup("p", ("a", "b"), verdict).demonstration()
        return None if group is None else group.completions

    assert shown(Verdict("ranking", ranks=(1, 0))) == ("b",)
    assert shown(Verdict("scores", scores=(0.5, 0.2))) == ("a",)
    assert shown(Verdict("thumbs", thumbs=(False, True))) == ("b",)
    assert shown(Verdict("thumbs", thumbs=(False, False))) is None
    assert shown(DEMONSTRATION) == ("a",)
    assert PromptGroup("p").demonstration() is None
    with pytest.raises(DataError, match="no verdict"):
        shown(NONE)
