from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import yaml

from alignlab import spec
from alignlab.data.group import PromptGroup
from alignlab.rewards.annotator import Annotator, tiers
from alignlab.spec import Spec

CONF = Path(__file__).parents[2] / "conf"
TEXTS = ["good", "the table", "awful", "very good", "a chair"]  # VADER .44, 0, −.46, .49, 0


def annotator(reward, **changes):
    values = {"noise": 0.0, "distribution": "gumbel", "flip": 0.0, "ties": 0.0}
    return Annotator(reward=reward, **{**values, **changes})


def test_without_noise_the_ranking_is_the_gold_order(vader):
    got = annotator(vader).annotate(PromptGroup("p", id="1"), TEXTS, 0)
    assert got.verdict.ranks == (1, 2, 3, 0, 2)  # the two neutral ones tie
    assert got.scores == pytest.approx((0.4404, 0, -0.4588, 0.4927, 0), abs=1e-4)
    assert got.perceived == got.scores
    assert not got.flipped


def test_ties_make_tiers_that_do_not_chain():
    # Width 0.1 from each tier's best: 1.0, .95 | .87, .80 | .70 — neighbours .95 and .87 are near.
    assert tiers([0.80, 1.0, 0.87, 0.95, 0.70], 0.1) == (1, 0, 1, 0, 2)
    assert tiers([1.0, 0.5], 0.5) == (0, 0)
    assert tiers([], 0.1) == ()
    assert tiers([1.0, 1.0, 1.0], 0.0) == (0, 0, 0)


def test_flip_turns_the_whole_ranking_round(vader):
    got = annotator(vader, flip=1.0).annotate(PromptGroup("p", id="1"), TEXTS, 0)
    assert got.verdict.ranks == (2, 1, 0, 3, 1)
    assert got.flipped
    assert got.scores[3] == max(got.scores)  # the truth stays


def test_flip_rate(vader):
    noisy = annotator(vader, flip=0.25)
    flipped = [
        noisy.annotate(PromptGroup("", id=str(i)), ["a", "b"], 0).flipped for i in range(800)
    ]
    assert abs(np.mean(flipped) - 0.25) < 3 * math.sqrt(0.25 * 0.75 / 800)


@pytest.mark.parametrize(
    ("distribution", "rate"),
    [("gumbel", 1 / (1 + math.exp(-1))), ("normal", 0.5 * (1 + math.erf(1 / 2)))],
)
def test_noise_gives_the_stated_pair_probability(length, distribution, rate):
    # Scores 0 and −0.25, noise 0.25: σ(1) = 0.731; Φ(1 / √2) = ½(1 + erf(1/2)) = 0.760.
    noisy = annotator(length, noise=0.25, distribution=distribution)
    wins = [
        noisy.rank(PromptGroup("", id=str(i)), ["a b c d", "a b c"], 0).ranks == (0, 1)
        for i in range(1500)
    ]
    assert abs(np.mean(wins) - rate) < 3 * math.sqrt(rate * (1 - rate) / 1500)


def test_gumbel_noise_ranks_by_plackett_luce(length):
    # Scores 0, −0.25, −0.5, noise 0.25, so weights w = e⁰, e⁻¹, e⁻². The best is first with
    # w₀ / Σw = 0.665; the worst is last with 0.702, the sum over the two orders of the others.
    noisy = annotator(length, noise=0.25)
    texts = ["a b c d", "a b c", "a b"]
    ranks = [noisy.rank(PromptGroup("", id=str(i)), texts, 0).ranks for i in range(3000)]
    w = [math.exp(-i) for i in range(3)]
    first = w[0] / sum(w)
    last = first * w[1] / (w[1] + w[2]) + w[1] / sum(w) * w[0] / (w[0] + w[2])
    assert abs(np.mean([r[0] == 0 for r in ranks]) - first) < 3 * math.sqrt(0.25 / 3000)
    assert abs(np.mean([r[2] == 2 for r in ranks]) - last) < 3 * math.sqrt(0.25 / 3000)


def test_verdicts_do_not_depend_on_order(vader):
    noisy = annotator(vader, noise=0.5, flip=0.3)
    order = [3, 0, 4, 2, 1]
    for i in range(30):
        group = PromptGroup("p", id=str(i))
        straight = noisy.rank(group, TEXTS, 7).ranks
        shuffled = noisy.rank(group, [TEXTS[k] for k in order], 7).ranks
        assert shuffled == tuple(straight[k] for k in order)


def test_seed_and_prompt_change_the_noise(vader):
    noisy = annotator(vader, noise=1.0)
    verdicts = {
        noisy.rank(PromptGroup("p", id=i), TEXTS, seed).ranks for i in "abc" for seed in range(3)
    }
    assert len(verdicts) > 3


def test_equal_completions_tie_whatever_the_noise(vader):
    ranks = annotator(vader, noise=5.0).rank(PromptGroup("p"), ["x", "good", "x"], 0).ranks
    assert ranks[0] == ranks[2]


def test_messages_are_read_as_text():
    marked = Spec("alignlab.rewards.lexicon.Vader", {"part": "text"})
    group = PromptGroup(({"role": "user", "content": "It is good"},), id="1")
    got = annotator(marked).annotate(group, [" a", " bad"], 0)
    assert got.scores[0] > got.scores[1]


@pytest.mark.parametrize("name", ["gold", "noisy_gold"])
def test_annotator_yamls_build(name, vader):
    node = yaml.safe_load((CONF / "annotator" / f"{name}.yaml").read_text(encoding="utf-8"))
    assert node["reward"] == "${gold}"
    built = spec.build(spec.parse({**node, "reward": vader.to_node()}, "annotator"))
    assert built.rank(PromptGroup("p", id="1"), TEXTS, 0).pairs()
    assert built.fingerprint()
