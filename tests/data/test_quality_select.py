from __future__ import annotations

import itertools

import numpy as np
import pytest
from quality_rows import passage

from alignlab.data.group import DEMONSTRATION, PromptGroup, Verdict
from alignlab.data.quality.scores import AnswerLength, Field, Rewarded
from alignlab.data.quality.select import Select
from alignlab.data.quality.vectors import facility_location, k_center, ranks, vectors
from alignlab.errors import DataError
from alignlab.spec import Spec

VOTES = Spec("alignlab.data.quality.scores.Field", {"field": "votes"})


def select(**changes):
    values = {
        "budget": 3,
        "quality": VOTES,
        "method": "k_center",
        "diversity": 0.5,
        "scope": "prompt",
        "dimensions": 256,
        "pool": 100,
        "strata": None,
        "shares": "equal",
    }
    return Select(**{**values, **changes})


def row(prompt, votes, source="a", answer="x"):
    meta = {"votes": votes, "source": source}
    return PromptGroup(prompt, (answer,), DEMONSTRATION, prompt, meta)


def angles(*degrees):
    radians = np.deg2rad(degrees)
    return np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)


def test_vectors_are_unit_and_alike_where_texts_are():
    base = passage(1)
    found = vectors([base, base.upper(), base + " more", passage(2), ""], 512)
    assert found.shape == (5, 512)
    assert np.linalg.norm(found, axis=1) == pytest.approx([1, 1, 1, 1, 0], abs=1e-6)
    similar = found @ found[0]
    assert similar[1] == pytest.approx(1)
    assert similar[2] > 0.9
    assert abs(similar[3]) < 0.4
    assert vectors([], 16).shape == (0, 16)


def test_rare_words_weigh_more_than_common_ones():
    # All texts share "the"; 0 and 1 also share a rare word, 0 and 2 nothing else.
    found = vectors(["the walrus", "the walrus", "the pencil", "the garden", "the rocket"], 4096)
    assert found[0] @ found[1] == pytest.approx(1)
    # "the" weighs 1 + ln(6/6) = 1; "walrus", "the walrus" 1 + ln(6/3); "pencil" 1 + ln(6/2).
    # cosine = 1 / √(1 + 2 · 1.693²) / √(1 + 2 · 2.099²); without weights it would be 1/3.
    assert found[0] @ found[2] == pytest.approx(0.12305, abs=1e-4)


def test_ranks_share_the_mean_of_ties():
    assert ranks(np.array([5.0, 1, 3, 3])).tolist() == [1, 0, 0.5, 0.5]
    assert ranks(np.array([2.0])).tolist() == [0]


def test_k_center_by_hand():
    found = angles(0, 5, 90, 180, 45)
    quality = np.array([0.5, 1, 0, 0, 0])
    # Starts at the best, 1; farthest from 5° are 180° (cut to 1) and 90° − 5° (0.91): 3, then 2.
    assert k_center(found, quality, 3, 1.0) == [1, 3, 2]
    assert k_center(found, quality, 3, 0.0) == [1, 0, 2]  # quality only; a tie goes by number
    assert k_center(found, quality, 9, 1.0)[-1] == 0  # all of them, the nearest last
    assert k_center(found[:0], quality[:0], 3, 1.0) == []


def test_facility_location_reaches_what_it_promises():
    found = angles(0, 2, 4, 90, 92, 94, 200, 205)
    quality = np.zeros(8)

    def covered(chosen):
        return np.maximum(found @ found[list(chosen)].T, 0).max(axis=1).sum()

    chosen = facility_location(found, quality, 3, 1.0)
    best = max(covered(s) for s in itertools.combinations(range(8), 3))
    assert covered(chosen) >= (1 - 1 / np.e) * best
    assert sorted(i // 3 for i in chosen) == [0, 1, 2]  # one of every bundle
    again = facility_location(found, np.eye(8)[7], 1, 0.2)
    assert again == [7]  # quality counts where diversity counts little


def test_lazy_greedy_is_greedy():
    source = np.random.default_rng(0)
    found = source.normal(size=(40, 6)).astype(np.float32)
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    quality = source.random(40)
    covered, plain = np.zeros(40), []
    for _ in range(8):
        gains = [
            0.6 / 40 * np.maximum(found @ found[j] - covered, 0).sum() + 0.4 / 8 * quality[j]
            if j not in plain
            else -1
            for j in range(40)
        ]
        plain.append(int(np.argmax(gains)))
        covered = np.maximum(covered, found @ found[plain[-1]])
    assert facility_location(found, quality, 8, 0.6) == plain


@pytest.mark.parametrize("method", ["k_center", "facility_location"])
def test_selection_takes_one_of_each_kind(method):
    kinds = [passage(i) for i in range(3)]
    rows = [row(f"{kinds[i % 3]} {i}", votes=float(i)) for i in range(30)]
    kept, effect = select(method=method).apply(rows)
    assert len({group.prompt[:30] for group in kept}) == 3
    assert effect.rows_out == 3
    assert effect.why == {"not chosen": 27}
    assert effect.numbers["mean_quality_after"] > effect.numbers["mean_quality_before"] == 14.5
    best = select(method=method, diversity=0.0).apply(rows)[0]
    assert [group.meta["votes"] for group in best] == [27, 28, 29]
    assert kept == select(method=method).apply(rows)[0]


def test_a_budget_above_the_rows_keeps_all():
    rows = [row(f"p{i}", 1.0) for i in range(4)]
    assert select(budget=9).apply(rows)[0] == rows
    assert select().apply([])[0] == []


def test_strata_share_the_budget():
    rows = [row(f"{passage(i)}", float(i), "a" if i < 20 else "b") for i in range(24)]
    equal = select(budget=6, strata="source").apply(rows)[1].numbers
    assert (equal["kept of a"], equal["kept of b"]) == (3, 3)
    more = select(budget=12, strata="source").apply(rows)[1].numbers
    assert (more["kept of a"], more["kept of b"]) == (8, 4)  # b has no more than four
    shares = select(budget=6, strata="source", shares="proportional").apply(rows)[1].numbers
    assert (shares["kept of a"], shares["kept of b"]) == (5, 1)


def test_the_pool_is_the_best_by_quality():
    rows = [row(passage(i), float(i)) for i in range(20)]
    kept = select(pool=5, diversity=1.0, budget=4).apply(rows)[0]
    assert min(group.meta["votes"] for group in kept) >= 15


def test_scores():
    rows = [row("p", 2, answer="a b"), row("p", 3, answer="a b c d e f")]
    assert Field(field="votes").score(rows).tolist() == [2, 3]
    assert AnswerLength(target_words=4).score(rows).tolist() == [0.5, 1]
    ranked = PromptGroup("p", ("long long long", "good"), Verdict("ranking", ranks=(1, 0)))
    assert AnswerLength(target_words=4).score([ranked]).tolist() == [0.25]  # of the best one
    with pytest.raises(DataError, match="no completion to score"):
        AnswerLength(target_words=4).score([PromptGroup("p", id="7")])
    with pytest.raises(DataError, match="Did you mean 'votes'"):
        Field(field="vote").score(rows)


def test_a_reward_can_be_freed_of_length():
    reward = Spec("alignlab.rewards.length.Length", {"target_words": 64})
    texts = ["w " * n for n in (1, 3, 7, 15)]  # the reward grows with the words
    rows = [row(f"p{i}", 0, answer=text) for i, text in enumerate(texts)]
    plain = Rewarded(reward=reward, length_free=False).score(rows)
    assert plain.tolist() == [-63 / 64, -61 / 64, -57 / 64, -49 / 64]
    free = Rewarded(reward=reward, length_free=True).score(rows)
    size = np.log([2, 4, 8, 16]) - np.log([2, 4, 8, 16]).mean()
    assert free @ size == pytest.approx(0, abs=1e-9)  # nothing is left that grows with ln words
    assert free.sum() == pytest.approx(plain.sum())
    one = Rewarded(reward=reward, length_free=True)
    other = Rewarded(reward=Spec(reward.target, {"target_words": 3}), length_free=True)
    assert one.fingerprint() != other.fingerprint()
