"""The forgetting–gain plane: differences to the start, intervals, points that are not beaten."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from alignlab.run import Store

FOLDER = Path(__file__).resolve().parents[2] / "experiments" / "07_forgetting"


@pytest.fixture(scope="module")
def study() -> ModuleType:
    spec = importlib.util.spec_from_file_location("forgetting_run", FOLDER / "run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = list(sys.path)
    spec.loader.exec_module(module)
    sys.path[:] = before
    return module


def evaluated(gold: float, loss: float) -> dict[str, float]:
    return {"gold": gold, "reference_nll": loss, "audit": gold / 2, "kl": 1.0}


def test_rows_are_differences_to_the_start_of_the_same_seed(study: ModuleType) -> None:
    seeds = {
        0: {"evaluate": evaluated(0.1, 3.8), "evaluate_l2sp,weight=0.1": evaluated(0.4, 4.0)},
        1: {"evaluate": evaluated(0.2, 3.9), "evaluate_l2sp,weight=0.1": evaluated(0.7, 4.3)},
    }
    [row] = study.rows_of(seeds)
    assert (row["method"], row["strength"], row["seeds"]) == ("l2sp", "weight=0.1", 2)
    # gains 0.3 and 0.5: mean 0.4, standard error 0.1, t(0.975, 1 degree) = 12.706
    assert row["gained"] == pytest.approx([0.4, 0.4 - 1.2706, 0.4 + 1.2706], abs=1e-3)
    assert row["forgotten"][0] == pytest.approx(0.3)
    one = study.rows_of({0: seeds[0]})[0]
    assert one["gained"] == [0.3, None, None]


def test_what_forgets_less_and_gains_more_beats_the_rest(study: ModuleType) -> None:
    def row(method: str, forgotten: float, gained: float) -> dict[str, object]:
        return {"method": method, "strength": "", "forgotten": [forgotten], "gained": [gained]}

    rows = [row("a", 0.1, 0.2), row("b", 0.2, 0.5), row("c", 0.3, 0.4), row("d", 0.1, 0.1)]
    assert study.undominated(rows) == ["a", "b"]


def test_methods_are_compared_at_equal_gain(study: ModuleType) -> None:
    def at(gold: float, loss: float) -> dict[str, float]:
        return evaluated(0.1 + gold, 3.0 + loss)

    one = {
        "evaluate": at(0, 0),
        "evaluate_tuned": at(0.5, 1.0),
        # Gains more and forgets less than a weaker hold, which is left out.
        "evaluate_l2sp,weight=1": at(0.1, 0.4),
        "evaluate_l2sp,weight=3": at(0.2, 0.1),
        "evaluate_ties,scale=1": at(0.2, 0.6),
    }
    found = study.at_equal_gain({0: one, 1: one})
    assert found["l2sp"]["0.15"] == pytest.approx([0.075] * 3, abs=1e-4)  # from (0, 0)
    assert found["l2sp"]["0.25"] == pytest.approx([0.25] * 3, abs=1e-4)  # towards the plain run
    assert found["ties"] == {"0.15": pytest.approx([0.45] * 3, abs=1e-4)}  # ends at a gain of 0.2
    lines = study.equal_gain_table(found).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| l2sp", "| ties"]
    assert "not reached" in lines[-1]


def test_only_finished_evaluations_of_the_study_count(study: ModuleType, tmp_path: Path) -> None:
    store = Store(tmp_path)
    for key, name, of, done in (
        ("a", "evaluate", "forgetting", True),
        ("b", "evaluate_tuned", "forgetting", True),
        ("c", "evaluate_ewc", "forgetting", False),
        ("d", "evaluate_js", "another", True),
    ):
        run = store.run("evaluate", key)
        run.update_record(kind="evaluate", study=of, name=name, seed=3, summary=evaluated(0.1, 3.0))
        if done:
            run.finish()
    assert {s: sorted(v) for s, v in study.evaluations(store, "forgetting").items()} == {
        3: ["evaluate", "evaluate_tuned"]
    }


def test_the_figure_is_drawn(study: ModuleType, tmp_path: Path) -> None:
    seeds = {0: {"evaluate": evaluated(0.1, 3.8), "evaluate_ties,scale=1": evaluated(0.4, 4.0)}}
    rows = study.rows_of(seeds)
    study.draw(rows, tmp_path / "plane.png")
    assert (tmp_path / "plane.png").stat().st_size > 10_000
    assert "| ties | scale=1 | 0.20 | 0.30 | 0.15 | 0.00 |" in study.table(rows)
