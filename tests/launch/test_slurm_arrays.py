"""From stages to job arrays: every edge becomes a dependency, and alike stages one submission."""

from __future__ import annotations

import random

import pytest

from alignlab.launch.slurm.arrays import Batch, Item, Spot, arranged, dependency, spans


def item(run: str, *strict: str, kind: str = "", tolerant: tuple[str, ...] = (), script: str = "a"):
    return Item(run, kind or run.partition("-")[0], strict, tolerant, script)


def told(items: list[Item], largest: int = 1000, spots: dict[str, Spot] | None = None):
    """Batches by their runs, each with what sbatch would be told; jobs are J1, J2 … in order."""
    batches = arranged(items, spots or {}, largest)
    ids: dict[str, str] = {}
    where = dict(spots or {})
    found = {}
    for number, batch in enumerate(batches, start=1):
        array = len(batch.items) > 1
        waits = dependency(batch, ids, where, {b.name: len(b.items) for b in batches})
        ids[batch.name] = f"J{number}"
        runs = " ".join(f"{i}:{it.run}" if array else it.run for i, it in batch.items.items())
        found[runs] = waits
        for index, it in batch.items.items():
            where[it.run] = Spot(batch.name, index if array else None)
    return found


def test_chains_of_many_seeds_are_an_array_for_each_link() -> None:
    items = []
    for seed in range(3):
        items += [item(f"sft-{seed}"), item(f"dpo-{seed}", f"sft-{seed}")]
        items += [item(f"eval-{seed}", f"dpo-{seed}", f"sft-{seed}")]
    found = told(items)
    assert list(found) == [
        "0:sft-0 1:sft-1 2:sft-2", "0:dpo-0 1:dpo-1 2:dpo-2", "0:eval-0 1:eval-1 2:eval-2",
    ]  # fmt: skip
    sft, dpo, scored = found.values()
    assert (sft, dpo) == ("", "aftercorr:J1")
    assert set(scored.split(",")) == {"aftercorr:J1", "aftercorr:J2"}  # task i of either


def test_many_readers_of_one_run_are_one_array() -> None:
    items = [item("sft-a"), *(item(f"dpo-{i}", "sft-a") for i in range(4))]
    assert told(items) == {"sft-a": "", "0:dpo-0 1:dpo-1 2:dpo-2 3:dpo-3": "afterok:J1"}


def test_methods_over_seeds_take_the_fewest_arrays() -> None:
    """Two seeds, five methods: an array per seed. Five seeds, two methods: an array per method."""
    for seeds, methods, arrays in ((2, 5, 2), (5, 2, 2)):
        items = [item(f"sft-{s}") for s in range(seeds)]
        items += [item(f"dpo-{s}x{m}", f"sft-{s}") for s in range(seeds) for m in range(methods)]
        found = told(items)
        assert len(found) == 1 + arrays
        waits = set(list(found.values())[1:])
        assert waits == ({"aftercorr:J1"} if seeds > methods else {"afterok:J1_0", "afterok:J1_1"})


def test_resources_and_kinds_stay_apart() -> None:
    items = [item("sft-0"), item("sft-1", script="b"), item("reward-0"), item("reward-1")]
    assert list(told(items)) == ["sft-0", "sft-1", "0:reward-0 1:reward-1"]


def test_a_tolerant_reader_waits_until_all_have_ended() -> None:
    trials = [item(f"dpo-{i}") for i in range(3)]
    chosen = item("select-0", tolerant=("dpo-0", "dpo-1", "dpo-2"))
    some = item("select-1", tolerant=("dpo-0", "dpo-2"))
    found = told([*trials, chosen, some, item("eval-0", "select-0", tolerant=("dpo-1",))])
    assert found["select-0"] == "afterany:J1"  # the whole array
    assert found["select-1"] == "afterany:J1_0:J1_2"
    assert found["eval-0"] == "afterok:J2,afterany:J1_1"


def test_an_array_is_no_longer_than_the_cluster_allows() -> None:
    items = [item(f"sft-{i}") for i in range(5)]
    items += [item(f"dpo-{i}", f"sft-{i}") for i in range(5)]
    found = told(items, largest=2)
    assert list(found) == [
        "0:sft-0 1:sft-1", "0:sft-2 1:sft-3", "sft-4",
        "0:dpo-0 1:dpo-1", "0:dpo-2 1:dpo-3", "dpo-4",
    ]  # fmt: skip
    assert list(found.values())[3:] == ["aftercorr:J1", "aftercorr:J2", "afterok:J3"]


def test_inputs_at_unlike_indices_are_waited_for_one_by_one() -> None:
    items = [item("sft-0"), item("sft-1"), item("reward-0"), item("reward-1")]
    items += [item("ppo-0", "sft-0", "reward-1"), item("ppo-1", "sft-1", "reward-0")]
    found = told(items)
    assert found["ppo-0"] == "afterok:J1_0:J2_1"
    assert found["ppo-1"] == "afterok:J1_1:J2_0"


def test_what_was_submitted_before_is_waited_for_where_it_stands() -> None:
    spots = {"sft-0": Spot("77", 3), "sft-1": Spot("77", 4), "reward-0": Spot("80")}
    items = [item(f"dpo-{i}", f"sft-{i}", "reward-0") for i in range(2)]
    assert told(items, spots=spots) == {"3:dpo-0 4:dpo-1": "aftercorr:77,afterok:80"}


@pytest.mark.parametrize("seed", range(30))
def test_every_edge_of_any_graph_is_kept_and_none_is_added(seed: int) -> None:
    draw = random.Random(seed)
    items: list[Item] = []
    for i in range(draw.randint(1, 60)):
        above = [it.run for it in items]
        parents = draw.sample(above, min(len(above), draw.randint(0, 3)))
        cut = draw.randint(0, len(parents))
        kind = draw.choice("abc")
        items.append(
            Item(f"{kind}-{i}", kind, tuple(parents[:cut]), tuple(parents[cut:]), draw.choice("xy"))
        )
    largest = draw.randint(1, 9)
    batches = arranged(items, {}, largest)
    spots = {}
    for batch in batches:
        for index, it in batch.items.items():
            assert it.run not in spots
            spots[it.run] = (batch.name, index, len(batch.items) > 1)
    assert spots.keys() == {it.run for it in items}
    before: set[str] = set()
    for batch in batches:
        assert len(batch.items) <= largest
        assert all(index < largest for index in batch.items)
        arrays = {b.name: b for b in batches}
        for index, it in batch.items.items():
            alike = {arrays[name].items[index].run for name in batch.alike}
            assert alike | set(batch.strict) == set(it.strict)
            assert set(batch.tolerant) == set(it.tolerant)
            assert {*it.strict, *it.tolerant} <= before  # its inputs were submitted earlier
        assert len({(it.kind, it.script) for it in batch.items.values()}) == 1
        before |= {it.run for it in batch.items.values()}


def test_spans() -> None:
    assert spans([0, 1, 2, 5, 7, 8]) == "0-2,5,7-8"
    assert spans([3]) == "3"


def test_a_part_of_an_array_keeps_its_indices() -> None:
    batch = Batch("a", "x", {i: item(f"a-{i}") for i in (2, 3, 5)}, 0, ("b",), (), ())
    assert list(batch.part([3, 5]).items) == [3, 5]
    assert batch.part([3, 5]).name != batch.name
    assert batch.part([5]).name == "a-5"
