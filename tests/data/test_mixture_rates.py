"""Rates of a mixture by hand: T5's proportional mixing with a cap, and weights of characters."""

from __future__ import annotations

from array import array
from collections import Counter

import pytest
from table_sources import write
from test_mixture import files, mixture, part, shown

from alignlab.data.sources.placing import given, places
from alignlab.data.sources.rates import divided, proportional, unrepeated, weighted
from alignlab.errors import ConfigError, DataError

__all__ = ["files"]

FLAN = {"big": 30_000, "middle": 3_000, "small": 600}


def test_proportional_rates_by_hand():
    # 30000, 3000 and 600 of 33600
    assert proportional(FLAN) == pytest.approx({"big": 25 / 28, "middle": 5 / 56, "small": 1 / 56})
    # K = 3000: 3000, 3000, 600 of 6600
    assert proportional(FLAN, 3_000) == pytest.approx(
        {"big": 5 / 11, "middle": 5 / 11, "small": 1 / 11}
    )
    # T = 2: the roots of 16, 4, 1 are 4, 2, 1
    assert proportional({"a": 16, "b": 4, "c": 1}, None, 2.0) == pytest.approx(
        {"a": 4 / 7, "b": 2 / 7, "c": 1 / 7}
    )
    # the maximum comes before the temperature: min(16, 9)^(1/2) = 3, 2, 1
    assert proportional({"a": 16, "b": 4, "c": 1}, 9, 2.0) == pytest.approx(
        {"a": 1 / 2, "b": 1 / 3, "c": 1 / 6}
    )
    even = proportional(FLAN, None, 1e9)
    assert all(rate == pytest.approx(1 / 3) for rate in even.values())
    assert proportional({}) == {}


def test_sizes_by_hand():
    rates = weighted({"a": 3.0, "b": 1.0})
    assert unrepeated({"a": 60, "b": 10}, rates) == 40  # b allows 10 / ¼
    assert divided(10, {"a": 0.5, "b": 0.3, "c": 0.2}) == {"a": 5, "b": 3, "c": 2}
    assert divided(7, weighted({"a": 1, "b": 1})) == {"a": 4, "b": 3}  # the name breaks the tie


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {"a": 60, "b": 20, "c": 9}),
        # K = 20: rates 20, 20, 9 of 49; nothing is repeated up to 49, where c has given all
        ({"rate_cap": 20}, {"a": 20, "b": 20, "c": 9}),
        # 98 of them: a gives rows beyond its cap, b and c give theirs twice
        ({"rate_cap": 20, "size": 98, "repeat": 2}, {"a": 40, "b": 40, "c": 18}),
        # T = 2 without a cap: √60, √20, 3 = 7.746, 4.472, 3 of 15.218; 9 / (3 / 15.218) = 45.65,
        # and 45 · (0.509, 0.2939, 0.1971) = 22.9, 13.2, 8.9
        ({"temperature": 2.0}, {"a": 23, "b": 13, "c": 9}),
    ],
)
def test_a_mixture_by_the_sizes_of_its_parts(files, changes, expected):
    data = mixture({n: part(path) for n, path in files.items()}, mix="proportional", **changes)
    assert shown(data) == expected
    most = Counter(Counter(g.id for g in data.load("sft")).values())
    assert max(most) == (2 if "repeat" in changes else 1)


def test_flans_two_caps(files):
    """A part's cap bounds what there is of it, the rate cap how much it weighs."""
    parts = {n: part(path, cap=30) for n, path in files.items()}
    data = mixture(parts, mix="proportional", rate_cap=20, size=90, repeat=2)
    # 90 · (20, 20, 9) / 49 = 36.7, 36.7, 16.5; a has 30 rows of 60 left to give
    assert shown(data) == {"a": 37, "b": 37, "c": 16}
    assert len({g.id for g in data.load("sft") if g.meta["part"] == "a"}) == 30


def test_the_rates_of_training_alone(files):
    fields = {"fields": {"validation": 0.3}}
    parts = {name: part(files[name], **dict(fields)) for name in ("a", "b")}
    data = mixture(parts, mix="proportional", rate_cap=2)
    plain = mixture(parts)
    assert shown(data, "validation") == shown(plain, "validation")
    # beyond 2 rows nothing counts: the same of both, as many as the smaller one has
    least = shown(plain, "sft")["b"]
    assert shown(data, "sft") == {"a": least, "b": least}


@pytest.fixture
def documents(tmp_path):
    """Ten long documents of 100 characters, a hundred short ones of 10."""
    rows = {"long": [f"{i:<99}." for i in range(10)], "short": [f"{i:<9}." for i in range(100)]}
    return {
        name: write(tmp_path / f"{name}.jsonl", [{"text": text} for text in texts])
        for name, texts in rows.items()
    }


def test_weights_of_characters_by_hand(documents):
    """Both have 1,000 characters: 3 to 1 leaves 1,000 and 333, so 10 documents beside 33."""
    parts = {"long": part(documents["long"], weight=3.0), "short": part(documents["short"])}
    data = mixture(parts, mix="weight", measure="characters")
    groups = data.load("pretrain")
    assert Counter(g.meta["part"] for g in groups) == {"long": 10, "short": 33}
    assert data.card()["splits"]["pretrain"] == {
        "long": {"rows": 10, "given": 10, "characters": 1000, "given_characters": 1000},
        "short": {"rows": 100, "given": 33, "characters": 1000, "given_characters": 330},
    }
    counted = mixture(parts, mix="weight").load("pretrain")  # of groups: 10 beside 3
    assert Counter(g.meta["part"] for g in counted) == {"long": 10, "short": 3}
    # every stretch of about two long documents has its quarter of short ones
    seen = 0
    for number, group in enumerate(groups):
        if group.meta["part"] == "short":
            assert abs(number - seen / 3.3 - seen) < 2
            seen += 1


def test_characters_repeat_only_where_it_is_allowed(documents):
    parts = {"long": part(documents["long"]), "short": part(documents["short"])}
    with pytest.raises(DataError, match=r"gives 1,250 characters .* has 1,000, .*repeat=2"):
        mixture(parts, mix="weight", measure="characters", size=2500).load("pretrain")
    data = mixture(parts, mix="weight", measure="characters", size=2500, repeat=2)
    assert shown(data, "pretrain") in ({"long": 12, "short": 125}, {"long": 13, "short": 125})


def test_places_take_as_much_of_the_line_as_they_are_long():
    # 10 and 30 of 40: middles at 5 / 40 and 25 / 40
    assert list(places(array("q", [10, 30]), 2)) == pytest.approx([0.125, 0.625])
    # and once more from the first: 10, 30, 10 of 50
    assert list(places(array("q", [10, 30]), 3)) == pytest.approx([0.1, 0.5, 0.9])
    assert [given(array("q", [10, 30]), wanted) for wanted in (1, 8, 24, 26, 40, 48)] == [
        *(1, 1, 1, 2, 2, 3)
    ]


def test_a_field_that_would_say_nothing_is_refused(files):
    parts = {"a": part(files["a"])}
    for changes in (
        {"rate_cap": 3},
        {"temperature": 2.0, "mix": "weight"},
        {"measure": "characters", "mix": "count"},
    ):
        with pytest.raises(ConfigError, match=r"says nothing with data\.mix="):
            mixture(parts, **changes)
    for wrong in ({"rate_cap": 0}, {"temperature": -1.0}):
        with pytest.raises(ConfigError, match="positive"):
            mixture(parts, mix="proportional", **wrong)


def test_old_mixtures_keep_their_fingerprint_and_new_fields_change_it(files):
    parts = {name: part(path) for name, path in files.items()}
    prints = [
        mixture(parts, mix="weight").fingerprint(),
        mixture(parts, mix="weight", measure="characters").fingerprint(),
        mixture(parts, mix="proportional").fingerprint(),
        mixture(parts, mix="proportional", rate_cap=3).fingerprint(),
        mixture(parts, mix="proportional", temperature=3.0).fingerprint(),
    ]
    assert len(set(prints)) == len(prints)
    null = mixture(parts, mix="weight", rate_cap=None, temperature=None, measure=None)
    assert null.fingerprint() == prints[0]
