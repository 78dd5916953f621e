from __future__ import annotations

import numpy as np
import pytest
import torch

from alignlab.data.group import NONE, TokenGroup
from alignlab.rewards.learned import score_groups


class LastToken:
    """A view: score = last token of the completion + a thousandth of its prompt's first token."""

    def __init__(self):
        self.tokens = []

    def scores(self, batch):
        assert not torch.is_grad_enabled()
        self.tokens.append(batch.tokens)
        first = torch.tensor([batch.input_ids[s.prompt[0]] for s in batch.spans])
        last = batch.input_ids[batch.end_index]
        return last.double() + first[batch.completion_group].double() / 1000


def groups():
    rng = np.random.default_rng(0)
    made = []
    for row, count in enumerate([2, 1, 0, 3, 1, 2]):
        completions = tuple(rng.integers(1, 90, rng.integers(1, 6)) for _ in range(count))
        made.append(TokenGroup(rng.integers(1, 90, 3 + row), completions, NONE, row, str(row)))
    return made


@pytest.mark.parametrize("budget", [1, 20, 1000])
def test_scores_come_back_in_order_whatever_the_packing(budget):
    view, made = LastToken(), groups()
    got = score_groups(view, made, budget, "cpu")
    want = [c[-1] + g.prompt[0] / 1000 for g in made for c in g.completions]
    torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float32))
    largest = max(len(g.prompt) + sum(map(len, g.completions)) for g in made)
    assert max(view.tokens) <= max(budget, largest)
    if budget == 20:
        assert 1 < len(view.tokens) < 5


def test_nothing_to_score():
    assert score_groups(LastToken(), groups()[2:3], 10, "cpu").shape == (0,)
