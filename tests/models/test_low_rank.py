"""LoRA's variants: each trains what it says, in every stage, and is saved, continued and merged."""

from __future__ import annotations

import pytest
from technique_lab import METHODS, Tried

# Names of what each trains: matrices of the adapters, and what is special.
TRAINS = {
    "adalora": r".*\.lora_(A|B|E)",
    "dora": r".*\.lora_(A\.weight|B\.weight|magnitude_vector\.weight)",
    "rslora": r".*\.lora_(A|B)\.weight",
    "qlora": r".*\.lora_(A|B)\.weight",
    "vera": r".*\.vera_lambda_(b|d)",
    "olora": r".*\.lora_(A|B)\.weight",
    "pissa": r".*\.lora_(A|B)\.weight",
    "lora_plus": r".*\.lora_(A|B)\.weight",
}


LIKE_OTHERS = ("lora_plus", "olora", "rslora")  # they run what plain LoRA and PiSSA run
PARAMS = [pytest.param(n, marks=[pytest.mark.slow] if n in LIKE_OTHERS else []) for n in TRAINS]


@pytest.fixture(scope="module", params=PARAMS)
def tried(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tried:
    folder = tmp_path_factory.mktemp(request.param)
    more = ["adapter.initial_rank=6"] if request.param == "adalora" else []
    return Tried.make(folder, request.param, "adapter.rank=4", "adapter.dropout=0.1", *more)


@pytest.mark.slow
def test_exactly_what_it_says_changes(tried: Tried) -> None:
    name = tried.chain.lab.stage("sft").backbone.adapter.mode
    tried.check_changes(TRAINS[name], *METHODS)


@pytest.mark.slow
def test_what_is_saved_is_what_was_trained(tried: Tried) -> None:
    tried.check_loads()
    tried.check_merges()


@pytest.mark.slow
def test_a_cut_off_training_ends_in_the_same_bytes(tried: Tried) -> None:
    tried.check_resumes()
