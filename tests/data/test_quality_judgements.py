from __future__ import annotations

import pytest
from quality_rows import rows

from alignlab.data.group import CHOSEN_REJECTED, DEMONSTRATION, PromptGroup, Verdict
from alignlab.data.quality.judgements import Balance, Bounds, Margin, Mix, apportion
from alignlab.errors import DataError


def scored(*scores, **meta):
    completions = tuple(f"c{i}" for i in range(len(scores)))
    return PromptGroup("p", completions, Verdict("scores", scores=scores), str(scores), meta)


def tagged(**counts):
    """Rows of sources in turn: a, b, a, b, … as long as each has some left."""
    out = [(i, name) for name, count in counts.items() for i in range(count)]
    return [
        PromptGroup(f"{name}{i}", ("x",), DEMONSTRATION, f"{name}{i}", {"source": name})
        for i, name in sorted(out)
    ]


def test_margin_drops_near_ones_and_ties():
    groups = [scored(3.0, 1.0), scored(2.0, 1.5), scored(1.0, 1.0), scored(1.0, 5.0, 4.9)]
    kept, effect = Margin(least=1.0, field=None).apply(groups)
    assert kept == [groups[0], groups[3]]
    assert effect.why == {"margin below 1": 1, "tie": 1}
    pair = PromptGroup("p", ("a", "b"), CHOSEN_REJECTED)
    assert Margin(least=1.0, field=None).apply([pair])[0] == [pair]  # one rank apart
    assert Margin(least=2.0, field=None).apply([pair])[0] == []
    assert len(Margin(least=2.0, field=None).apply(rows("one"))[0]) == 1  # nothing to compare


def test_margin_by_a_field():
    groups = [
        PromptGroup("p", ("a", "b"), CHOSEN_REJECTED, meta={"gold": g}) for g in ([1, 4], [1, 2])
    ]
    assert Margin(least=2.0, field="gold").apply(groups)[0] == groups[:1]
    with pytest.raises(DataError, match="Did you mean 'gold'"):
        Margin(least=2.0, field="golds").apply(groups)
    with pytest.raises(DataError, match="one number for each of the 2"):
        Margin(least=2.0, field="gold").apply([PromptGroup("p", ("a", "b"), meta={"gold": [1]})])


def test_bounds_on_agreement():
    groups = [scored(1.0, agreement=a) for a in (0.5, 0.7, 1.0)] + [scored(2.0)]
    step = Bounds(field="agreement", least=0.7, most=None, missing="keep")
    assert [g.meta.get("agreement") for g in step.apply(groups)[0]] == [0.7, 1.0, None]
    step = Bounds(field="agreement", least=None, most=0.7, missing="drop")
    assert step.apply(groups)[1].why == {"agreement above 0.7": 1, "no agreement": 1}
    with pytest.raises(DataError, match="Did you mean 'agreement'"):
        Bounds(field="agrement", least=0.7, most=None, missing="keep").apply(groups)
    with pytest.raises(DataError, match="must be a number, not 'high'"):
        step.apply([scored(1.0, agreement="high")])


def test_balance_keeps_the_first_of_each_label():
    thumbs = [True, True, False, True, True, False, True]
    groups = [
        PromptGroup("p", ("c",), Verdict("thumbs", thumbs=(t,)), str(i))
        for i, t in enumerate(thumbs)
    ]
    kept, effect = Balance(field=None, ratio=1.0).apply(groups)
    assert [g.id for g in kept] == ["0", "1", "2", "5"]
    assert effect.why == {"more than 2 rows of the label True": 3}
    assert effect.numbers == {"label False": 2.0, "label True": 5.0}
    assert len(Balance(field=None, ratio=1.5).apply(groups)[0]) == 5
    with pytest.raises(DataError, match="nothing to balance"):
        Balance(field=None, ratio=1.0).apply(groups[:2])
    with pytest.raises(DataError, match="field=NAME"):
        Balance(field=None, ratio=1.0).apply([PromptGroup("p", ("a", "b"), CHOSEN_REJECTED)])
    assert len(Balance(field="source", ratio=1.0).apply(tagged(a=5, b=2))[0]) == 4


def test_mix_caps_every_source():
    groups = tagged(a=5, b=2, c=4)
    mix = {"field": "source", "most": 3, "caps": {"c": 1}, "total": None}
    kept, effect = Mix(**mix).apply(groups)
    assert sorted(g.id for g in kept) == ["a0", "a1", "a2", "b0", "b1", "c0"]
    assert [g for g in groups if g in kept] == kept  # order stays
    assert effect.why == {"more than 3 rows of a": 2, "more than 1 rows of c": 3}
    with pytest.raises(DataError, match="the field 'source' holds a, b, c"):
        Mix(**{**mix, "caps": {"d": 1}}).apply(groups)
    with pytest.raises(DataError, match=r"no field 'sauce'.*Did you mean 'source'"):
        Mix(**{**mix, "field": "sauce"}).apply(groups)


def test_mix_is_examples_proportional_below_the_cap():
    # min(e, K): a 4, b 2, c 4 with K = 4. Ten rows in all, so 5 in total give 2, 1, 2.
    groups = tagged(a=50, b=2, c=4)
    kept, effect = Mix(field="source", most=4, caps={}, total=5).apply(groups)
    assert effect.numbers == {"kept of a": 2.0, "kept of b": 1.0, "kept of c": 2.0}
    assert len(Mix(field="source", most=4, caps={}, total=99).apply(groups)[0]) == 10
    assert len(kept) == 5


def test_apportion_is_exact():
    # 7 of weights 5, 3, 2: 3.5, 2.1, 1.4 → 3, 2, 1 and one more for the largest remainder.
    assert apportion(7, {"a": 5, "b": 3, "c": 2}) == {"a": 4, "b": 2, "c": 1}
    assert apportion(3, {"b": 1, "a": 1}) == {"b": 1, "a": 2}  # a tie goes by name
    assert apportion(2, {"a": 0, "b": 0}) == {"a": 0, "b": 0}
    for total in range(12):
        given = apportion(total, {"a": 7, "b": 1, "c": 3})
        assert sum(given.values()) == total
        assert given["a"] <= 7
        assert given["b"] <= 1
        assert given["c"] <= 3
