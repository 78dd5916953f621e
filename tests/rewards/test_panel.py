from __future__ import annotations

import pytest
import yaml

from alignlab.compose import compose, conf_dir
from alignlab.data.group import PromptGroup
from alignlab.errors import ConfigError
from alignlab.rewards.agreement import (
    agreement_of,
    cohen_kappa,
    krippendorff_alpha,
    pair_votes,
    pairwise_agreement,
)
from alignlab.rewards.annotator import Annotator
from alignlab.rewards.panel import Member, Panel
from alignlab.spec import Spec, build, parse

ANNOTATOR = "alignlab.rewards.annotator.Annotator"
LEXICON = "alignlab.rewards.lexicon.Lexicon"
TEXTS = ["good", "dull", "good good dull", "table"]


def judge(positive, negative=("zzz",), weight=1.0, **changes):
    """A member who likes and dislikes single words."""
    reward = {"positive": positive, "negative": negative, "part": "completion"}
    values = {"noise": 0.0, "distribution": "gumbel", "flip": 0.0, "ties": 0.0, **changes}
    return Member(
        annotator=Spec(ANNOTATOR, {"reward": Spec(LEXICON, reward), **values}), weight=weight
    )


def panel(aggregation="majority", **members):
    return Panel(members=members, aggregation=aggregation)


def ranks(made, texts, name="1"):
    return made.rank(PromptGroup("p", id=name), texts, 0).ranks


def test_votes_and_agreement_by_hand():
    assert pair_votes((0, 1, 1)) == (1, 1, 0)  # 0 beats 1 and 2, which tie
    assert pair_votes((1, 0)) == (-1,)
    # Three members on two pairs: (1, 1), (1, −1), (1, −1): of 3 · 2 comparisons 3 + 1 are equal.
    assert pairwise_agreement([(1, 1), (1, -1), (1, -1)]) == 4 / 6
    assert pairwise_agreement([(1, 1)]) is None
    assert pairwise_agreement([(), ()]) is None


def test_kappa_by_hand():
    # 20 + 15 of 50 are equal: p_o = 0.7; shares of "yes" 25/50 and 30/50: p_e = 0.3 + 0.2 = 0.5.
    first = [1] * 20 + [1] * 5 + [0] * 10 + [0] * 15
    second = [1] * 20 + [0] * 5 + [1] * 10 + [0] * 15
    assert cohen_kappa(first, second) == pytest.approx(0.4)
    assert cohen_kappa([1, 1], [1, 1]) is None  # no chance to disagree
    assert cohen_kappa([], []) is None


def test_alpha_of_krippendorff_s_example():
    # Krippendorff 2011, section A: binary data, two observers, no missing ones: α = 0.095.
    meg = [0, 1, 0, 0, 0, 0, 0, 0, 1, 0]
    owen = [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]
    # 4 unequal units: D_o = 8/20; 14 zeros and 6 ones: D_e = 2 · 14 · 6 / (20 · 19).
    alpha = krippendorff_alpha(list(zip(meg, owen, strict=True)))
    assert alpha == pytest.approx(1 - (8 / 20) / (168 / 380))
    assert alpha == pytest.approx(0.095, abs=5e-4)
    assert krippendorff_alpha([(1, 1), (0, 0, 0), (1,)]) == 1
    assert krippendorff_alpha([(1, 1), (1, 1)]) is None
    assert krippendorff_alpha([]) is None


def test_agreement_over_prompts():
    votes = [((0, 1), (0, 1)), ((0, 1), (1, 0)), ()]
    found = agreement_of(votes)
    assert found["pairwise"] == 0.5
    # κ: p_o = 1/2; the first always says 1, the second 1 and −1: p_e = 1/2.
    assert found["kappa"] == 0
    # α: D_o = 2/4; three 1 and one −1: D_e = 2 · 3 / (4 · 3) = 1/2.
    assert found["alpha"] == pytest.approx(0)
    assert "kappa" not in agreement_of([((0, 1),) * 3])
    assert agreement_of([(), ()]) is None


def test_the_weighted_majority_of_a_pair():
    votes = {name: judge(["good"], weight=2.0) for name in "ab"}
    votes["c"] = judge(["dull"], weight=3.0)
    assert ranks(panel(**votes), ["good", "dull"]) == (0, 1)  # 4 against 3
    votes["c"] = judge(["dull"], weight=5.0)
    assert ranks(panel(**votes), ["good", "dull"]) == (1, 0)
    votes["c"] = judge(["dull"], weight=4.0)
    assert ranks(panel(**votes), ["good", "dull"]) == (0, 0)  # as much for as against


def test_a_circle_of_majorities_is_a_tie():
    # a > b > c, b > c > a, c > a > b: every completion beats one and loses to one.
    members = {
        "one": judge(["x", "a"], ["c"]),
        "two": judge(["x", "b"], ["a"]),
        "three": judge(["x", "c"], ["b"]),
    }
    made = panel(**members)
    assert ranks(made, ["a", "b", "c"]) == (0, 0, 0)
    assert ranks(made, ["a", "b"]) == (0, 1)  # one and three against two: "b" is disliked by three


def test_the_mean_is_of_the_members_scores():
    # Scores of "good": 1 and 0; of "good good dull": 2/3 − 0 and 1/3. Weights 3 and 1.
    made = panel("mean", a=judge(["good"], weight=3.0), b=judge(["dull"]))
    got = made.annotate(PromptGroup("p", id="1"), TEXTS, 0)
    assert got.scores == pytest.approx((3 / 4, 1 / 4, (3 * 2 / 3 + 1 / 3) / 4, 0))
    assert got.perceived == got.scores
    assert got.verdict.ranks == (0, 2, 1, 3)
    assert got.votes == ((0, 2, 1, 2), (2, 0, 1, 2))
    # Pairs 01 02 03 12 13 23: votes 1 1 1 −1 0 1 and −1 −1 0 1 1 1 agree on one of six.
    assert got.agreement == pytest.approx(1 / 6)


def test_equal_members_err_apart_and_the_panel_errs_less(length):
    noisy = {"reward": length, "noise": 0.5, "distribution": "gumbel", "flip": 0.0, "ties": 0.0}
    members = {str(i): Member(annotator=Spec(ANNOTATOR, noisy), weight=1.0) for i in range(7)}
    made, alone = panel(**members), Annotator(**noisy)
    texts = ["a b c d", "a b"]  # 0 and −0.5: one of them is right in σ(1) = 73 %
    right = {
        judge: sum(ranks(judge_made, texts, str(i)) == (0, 1) for i in range(300)) / 300
        for judge, judge_made in (("panel", made), ("alone", alone))
    }
    agreement = [made.annotate(PromptGroup("", id=str(i)), texts, 0).agreement for i in range(300)]
    assert right["alone"] == pytest.approx(0.73, abs=0.08)
    assert right["panel"] > right["alone"] + 0.1  # 7 of 73 %: the majority is right in 92 %
    # Two of them agree in 0.73² + 0.27² = 61 %.
    assert sum(agreement) / 300 == pytest.approx(0.61, abs=0.04)


def test_a_panel_is_flipped_when_most_of_it_is():
    members = {"a": judge(["good"], flip=1.0, weight=2.0), "b": judge(["good"])}
    got = panel(**members).annotate(PromptGroup("p", id="1"), ["good", "dull"], 0)
    assert got.flipped
    assert got.verdict.ranks == (1, 0)
    assert got.scores == (1, 0)  # the truth stays
    lighter = {"a": judge(["good"], flip=1.0), "b": judge(["good"], weight=2.0)}
    assert not panel(**lighter).annotate(PromptGroup("p", id="1"), ["good", "dull"], 0).flipped


def test_one_member_is_no_panel():
    with pytest.raises(ConfigError, match="at least two"):
        panel(a=judge(["good"]))


def test_panel_yaml_builds_and_annotates():
    node = compose(["annotator=panel"])["annotator"]
    made = build(parse(node, "annotator"))
    assert set(made.members) == {"careful", "hasty", "words"}
    got = made.annotate(PromptGroup("p", id="1"), ["great", "awful", "a table"], 0)
    assert len(got.votes) == 3
    assert 0 <= got.agreement <= 1
    assert made.fingerprint() == build(parse(node, "annotator")).fingerprint()
    text = (conf_dir() / "annotator" / "panel.yaml").read_text(encoding="utf-8")
    assert set(yaml.safe_load(text)) == {"defaults", "_target_", "aggregation", "members"}
