from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from alignlab import spec
from alignlab.errors import ConfigError, DataError
from alignlab.rewards.length import Length
from alignlab.rewards.lexicon import Lexicon, Vader
from alignlab.rewards.mixture import Mixture, Weighted
from alignlab.rewards.verifiable import Contains, FinalNumber, Matches, final_number
from alignlab.spec import Spec

CONF = Path(__file__).parents[2] / "conf"


def scores(reward, completions, prompts=None, meta=None):
    prompts = prompts or [""] * len(completions)
    got = reward.score(prompts, completions, meta or [{}] * len(completions))
    assert got.dtype == np.float32
    assert got.shape == (len(completions),)
    return got.tolist()


def test_vader_by_hand():
    # "good" has valence 1.9 in the lexicon: 1.9 / sqrt(1.9² + 15) = 0.4404 (VADER rounds to 4).
    got = scores(Vader(part="completion"), [" good", "", "the table"])
    assert got == pytest.approx([0.4404, 0, 0], abs=1e-4)


def test_vader_part_decides_whether_the_prompt_counts():
    prompts, completions = ["This was good,"], [" they said."]
    assert scores(Vader(part="completion"), completions, prompts) == [0]
    assert scores(Vader(part="text"), completions, prompts)[0] == pytest.approx(0.4404, abs=1e-4)


def test_lexicon_by_hand():
    reward = Lexicon(positive=("good", "fun"), negative=("bad",), part="completion")
    # "Good, GOOD fun but bad" = (3 − 1) / 5 words
    assert scores(reward, ["Good, GOOD fun but bad", "goodness", ""]) == pytest.approx([0.4, 0, 0])


def test_lexicon_refuses_contradictions_and_phrases():
    with pytest.raises(ConfigError, match="both positive and negative"):
        Lexicon(positive=("a",), negative=("a",), part="completion")
    with pytest.raises(ConfigError, match="single lower-case"):
        Lexicon(positive=("so good",), negative=(), part="completion")


def test_length_by_hand():
    # target 4: lengths 4, 3, 6, 9 and 0 are off by 0, 1/4, 1/2, 5/4 → 1 and 1
    texts = ["a b c d", "a b c", "a b c d e f", "a b c d e f g h i", ""]
    assert scores(Length(target_words=4), texts) == [0, -0.25, -0.5, -1, -1]


def test_mixture_is_the_weighted_sum(vader, length):
    mix = Mixture(terms=(Weighted(reward=vader, weight=2.0), Weighted(reward=length, weight=-0.5)))
    # 2 × 0.4404 − 0.5 × (−3/4) and 2 × 0 − 0.5 × 0
    assert scores(mix, ["good", "on a table there"]) == pytest.approx([1.2558, 0], abs=2e-4)
    assert mix.name == "2*vader+-0.5*length_4"


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("2 + 2 = 4. So\n#### 1,234", 1234),
        ("first #### 3 then #### 5 and 7", 5),
        ("#### $-12.50", -12.5),
        ("#### none, though 8 was near", 8),
        ("####", None),
        (r"thus \boxed{42} of 99", 42),
        (r"\boxed{x = \frac{3}{4}}", 0.75),
        (r"\boxed{7", 7),
        ("it costs 3 dollars, or 4.", 4),
        ("between 10-12", 12),
        ("3 − 5 = −2", -2),
        ("a 1/4 share", 0.25),
        ("1/0", None),
        (".5", 0.5),
        ("version v2", None),
        ("1,2", 2),
        ("no digits", None),
    ],
)
def test_final_number(text, number):
    assert final_number(text) == number


def test_final_number_is_exact():
    reward = FinalNumber(answer="answer")
    meta = [{"answer": "so 0.1 + 0.2\n#### 0.3"}] * 4
    texts = ["#### 0.30", "#### 3/10", "#### 0.30000000000000004", "I do not know"]
    assert scores(reward, texts, meta=meta) == [1, 1, 0, 0]


def test_a_reference_without_a_number_is_a_data_error():
    with pytest.raises(DataError, match=r"no number under 'answer'.*solution"):
        scores(FinalNumber(answer="answer"), ["4"], meta=[{"solution": "4"}])


def test_matches():
    texts = [" Yes. ", "yes", "oh yes"]
    assert scores(Matches(pattern="^yes", whole=False, ignore_case=True), texts) == [1, 1, 0]
    assert scores(Matches(pattern="yes", whole=True, ignore_case=False), texts) == [0, 1, 0]
    with pytest.raises(ConfigError, match="no regular expression"):
        Matches(pattern="(", whole=False, ignore_case=False)


def test_contains():
    texts = ["Cats and a dog", "category", "dog"]
    words = ("cats", "dog", "C++")
    assert scores(Contains(words=words, need="share"), texts) == pytest.approx([2 / 3, 0, 1 / 3])
    assert scores(Contains(words=words, need="any"), texts) == [1, 0, 1]
    assert scores(Contains(words=words, need="all"), [*texts, "dog cats c++"]) == [0, 0, 0, 1]


COMPOSED = ("run", "process", "judge", "checkpoint")  # of groups, runs, models; own tests
REWARDS = [f for f in sorted((CONF / "reward").glob("*.yaml")) if f.stem not in COMPOSED]


@pytest.mark.parametrize("file", REWARDS, ids=lambda f: f.stem)
def test_every_reward_yaml_builds_and_scores(file):
    node = yaml.safe_load(file.read_text(encoding="utf-8"))
    if file.stem == "reasoning_gym":
        pytest.importorskip("reasoning_gym", reason="needs alignlab[reasoning]")
    given = {"pattern": "a", "words": ["a"]}
    node = {key: given[key] if value == "???" else value for key, value in node.items()}
    reward = spec.build(spec.parse(node, file.stem))
    assert reward.name
    assert reward.fingerprint() == spec.build(spec.parse(node, file.stem)).fingerprint()
    if file.stem != "classifier":  # trained in its own test
        empty = reward.score([], [], [])
        assert empty.shape == (0,)
        known = {"answer": "4", "tools": [{"name": "f"}], "calls": []}
        assert np.isfinite(reward.score(["p"], [" 4"], [known])).all()


def test_fingerprints_differ_with_fields():
    assert Vader(part="text").fingerprint() != Vader(part="completion").fingerprint()
    one = Spec("alignlab.rewards.length.Length", {"target_words": 4})
    two = Spec("alignlab.rewards.length.Length", {"target_words": 5})
    mixes = [Mixture(terms=(Weighted(reward=r, weight=1.0),)) for r in (one, two)]
    assert mixes[0].fingerprint() != mixes[1].fingerprint()
