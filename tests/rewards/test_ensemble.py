"""Several reward models as one, by hand."""

from __future__ import annotations

import pytest
import torch

from alignlab.rewards.ensemble import Ensemble

# three members, two completions
SCORES = torch.tensor([[1.0, 0.0], [2.0, 0.5], [6.0, 1.0]])


@pytest.mark.parametrize(
    ("combine", "expected"),
    [
        ("mean", [3.0, 0.5]),
        ("min", [1.0, 0.0]),
        # variances ((−2)² + (−1)² + 3²)/3 = 14/3 and (0.25 + 0 + 0.25)/3 = 1/6, times 0.3
        ("uwo", [3.0 - 0.3 * 14 / 3, 0.5 - 0.3 / 6]),
    ],
)
def test_members_become_one_score(combine, expected):
    found = Ensemble(combine=combine, penalty=0.3)(SCORES)
    assert found.tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("combine", ["mean", "min", "uwo"])
def test_one_member_is_itself(combine):
    assert torch.equal(Ensemble(combine=combine, penalty=9.0)(SCORES[:1]), SCORES[0])


def test_the_penalty_takes_the_lead_from_what_only_one_member_likes():
    mean, careful = (Ensemble(combine=how, penalty=0.6)(SCORES) for how in ("mean", "uwo"))
    assert mean[0] > mean[1]  # 3.0 against 0.5
    assert careful[0] < careful[1]  # 3.0 − 0.6·14/3 = 0.2 against 0.5 − 0.1 = 0.4
