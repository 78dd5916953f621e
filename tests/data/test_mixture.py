"""Mixtures: who gives how much, in what order, and what each group says of where it is from."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields, replace

import pytest
from table_sources import COMMON, source, write

from alignlab.data.sources.mixture import Mixture, Part
from alignlab.data.sources.source import SPLITS
from alignlab.errors import ConfigError, DataError
from alignlab.spec import Spec

FILE = "alignlab.data.sources.file.File"
EXACT = {"splits": ("sft",), "held_out": (), "scope": "both", "ignore": ()}


def part(path, **changes):
    held_out = {"validation": 0.0, "test": 0.0, **changes.pop("fields", {})}
    own = {"path": path, "validation_path": None, "test_path": None}
    spec = Spec(FILE, {**COMMON, **own, **held_out})
    return Part(
        **{"source": spec, "weight": 1.0, "count": 1, "cap": None, "splits": SPLITS, **changes}
    )


def mixture(parts, **changes):
    return Mixture(
        **{"parts": parts, "mix": "all", "size": None, "repeat": 1, "limit": {}, **changes}
    )


@pytest.fixture
def files(tmp_path):
    return {
        name: write(
            tmp_path / f"{name}.jsonl",
            [{"prompt": f"{name}{i}", "completion": "c"} for i in range(count)],
        )
        for name, count in (("a", 60), ("b", 20), ("c", 9))
    }


def shown(data, split="sft"):
    return Counter(group.meta["part"] for group in data.load(split))


def test_all_groups_once_evenly_mixed(files):
    data = mixture({name: part(path) for name, path in files.items()})
    groups = data.load("sft")
    assert shown(data) == {"a": 60, "b": 20, "c": 9}
    assert {g.prompt[0] for g in groups if g.meta["part"] == "b"} == {"b"}
    for start in range(0, 80, 9):  # of 9 in a row about 9 * 60 / 89 = 6.1 are of `a`
        assert 4 <= sum(g.meta["part"] == "a" for g in groups[start : start + 9]) <= 8
    assert data.load("sft") == groups == list(data.stream("sft"))


def test_order_by_hand(tmp_path):
    """Places (j + ½)/n: a at 1/4, 3/4; b at 1/6, 3/6, 5/6, so b a b a b."""
    rows = {
        n: [{"prompt": f"{n}{i}", "completion": "c"} for i in range(k)]
        for n, k in (("a", 2), ("b", 3))
    }
    data = mixture({n: part(write(tmp_path / n, r)) for n, r in rows.items()})
    assert [g.meta["part"] for g in data.load("sft")] == ["b", "a", "b", "a", "b"]


@pytest.mark.parametrize(
    ("weights", "size", "expected"),
    [
        # as many as no part must repeat: min(60 / ¾, 20 / ¼) = 80
        ({"a": 3.0, "b": 1.0}, None, {"a": 60, "b": 20}),
        # min(60 / ½, 20 / ½) = 40
        ({"a": 1.0, "b": 1.0}, None, {"a": 20, "b": 20}),
        # 10 · (½, ⅓, ⅙) = 5, 3.33, 1.67: the rest goes to the largest remainder
        ({"a": 3.0, "b": 2.0, "c": 1.0}, 10, {"a": 5, "b": 3, "c": 2}),
        ({"a": 0.2, "b": 0.1}, 3, {"a": 2, "b": 1}),
    ],
)
def test_by_weight(files, weights, size, expected):
    parts = {name: part(files[name], weight=w) for name, w in weights.items()}
    assert shown(mixture(parts, mix="weight", size=size)) == expected


def test_by_count_and_cap(files):
    counts = {"a": part(files["a"], count=7), "b": part(files["b"], count=2)}
    assert shown(mixture(counts, mix="count")) == {"a": 7, "b": 2}
    capped = {"a": part(files["a"], cap=5), "b": part(files["b"])}
    data = mixture(capped)
    assert shown(data) == {"a": 5, "b": 20}
    first = [g.prompt for g in data.load("sft") if g.meta["part"] == "a"]
    assert first == [
        g.prompt for g in source(path=files["a"], test=0, validation=0).load("sft")[:5]
    ]
    assert mixture(capped).amounts("sft") == {"a": (5, 5), "b": (20, 20)}


def test_repeating_is_refused_until_it_is_stated_and_then_marked(files):
    parts = {"a": part(files["a"], weight=1.0), "c": part(files["c"], weight=1.0)}
    with pytest.raises(DataError, match=r"'c' .* gives 25 groups to 'sft' and has 9.*repeat=3"):
        mixture(parts, mix="weight", size=50).load("sft")
    data = mixture(parts, mix="weight", size=50, repeat=3)
    groups = [g for g in data.load("sft") if g.meta["part"] == "c"]
    # 25 of 9: two rounds and seven more; the copies come later and keep the id
    assert Counter(Counter(g.id for g in groups).values()) == {3: 7, 2: 2}
    assert [g.meta.get("copy", 0) for g in groups] == [0] * 9 + [1] * 9 + [2] * 7
    assert len(data.load("sft")) == 50


def test_held_out_splits_are_whole(files):
    fields = {"fields": {"validation": 0.3}}
    parts = {name: part(files[name], count=1, **dict(fields)) for name in ("a", "b")}
    data = mixture(parts, mix="count")
    assert sum(shown(data, "sft").values()) == 2
    alone = {
        n: len(source(path=files[n], validation=0.3, test=0.0).load("validation"))
        for n in ("a", "b")
    }
    assert shown(data, "validation") == alone


def test_a_part_for_some_splits(files):
    parts = {"a": part(files["a"], splits=("sft",)), "b": part(files["b"], splits=("preference",))}
    data = mixture(parts)
    assert shown(data, "sft") == {"a": 60}
    assert shown(data, "preference") == {"b": 20}
    assert data.load("test") == []


def test_mixtures_in_mixtures_and_limits(files):
    inner = mixture({"b": part(files["b"]), "c": part(files["c"])})
    arguments = {f.name: getattr(inner, f.name) for f in fields(inner) if f.init}
    outer = Part(
        source=Spec("alignlab.data.sources.mixture.Mixture", arguments),
        weight=1.0,
        count=1,
        cap=None,
        splits=SPLITS,
    )
    data = mixture({"a": part(files["a"]), "rest": outer}, limit={"sft": 30})
    assert sum(shown(data).values()) == 30
    assert set(shown(data)) == {"a", "rest"}


def test_the_fingerprint_is_of_the_parts_and_of_how_they_are_mixed(files):
    parts = {name: part(path) for name, path in files.items()}
    prints = [
        mixture(parts).fingerprint(),
        mixture(parts, repeat=2).fingerprint(),
        mixture({**parts, "a": part(files["a"], weight=2.0)}).fingerprint(),
        mixture({**parts, "a": part(files["a"], cap=2)}).fingerprint(),
        mixture({"a": parts["a"], "b": parts["b"]}).fingerprint(),
    ]
    write(files["a"], [{"prompt": "other", "completion": "c"}])
    prints.append(mixture(parts).fingerprint())
    assert len(set(prints)) == len(prints)
    assert mixture(parts).fingerprint() == prints[-1]


def test_an_error_of_a_part_names_its_file(tmp_path, files):
    bad = write(tmp_path / "bad.jsonl", [{"prompt": "p", "completion": c} for c in ("c", 3)])
    with pytest.raises(DataError, match=r"bad\.jsonl, line 2"):
        mixture({"a": part(files["a"]), "bad": part(bad)}).load("sft")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"parts": {}}, "at least one part"),
        ({"repeat": 0}, "at least 1"),
        ({"size": 0}, "at least 1"),
        ({"limit": {"tset": 1}}, "Did you mean 'test'"),
    ],
)
def test_what_cannot_be_mixed_is_refused(files, changes, message):
    with pytest.raises((ConfigError, DataError), match=message):
        mixture(**{"parts": {"a": part(files["a"])}, **changes})


@pytest.mark.parametrize("wrong", [{"weight": 0.0}, {"count": 0}, {"cap": 0}, {"splits": ("stf",)}])
def test_a_part_that_gives_nothing_is_refused(files, wrong):
    with pytest.raises(ConfigError, match=r"parts\.a"):
        mixture({"a": part(files["a"], **wrong)})


def test_the_card_says_what_every_part_gave_and_repeats_the_parts_own_cards(files):
    steps = {"exact": Spec("alignlab.data.quality.duplicates.ExactDuplicates", EXACT)}
    inner = part(files["b"]).source
    refined = Spec(
        "alignlab.data.quality.refined.Refined",
        {"source": inner, "steps": steps, "order": ("exact",)},
    )
    parts = {"a": part(files["a"]), "b": replace(part(files["b"]), source=refined)}
    data = mixture(parts, mix="weight", size=20)
    assert data.card()["splits"] == {}
    data.load("sft")
    card = data.card()
    # weights are equal, so each gives 10; a has 60 rows and b has 20
    assert card["splits"] == {
        "sft": {"a": {"rows": 60, "given": 10}, "b": {"rows": 20, "given": 10}}
    }
    [effect] = card["parts"]["b"]["splits"]["sft"]
    assert (effect["step"], effect["rows_in"], effect["rows_out"]) == ("exact", 20, 20)
